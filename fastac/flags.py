"""The words of a command line: flags into dataclasses, and one sentence for what does not fit."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from typing import TypeVar, get_type_hints

import tyro
from tyro.conf import OmitArgPrefixes
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from fastac.config import Config, EnvArguments, JsonValue, setting_names

Options = TypeVar("Options")

_registry = ConstructorRegistry()


@_registry.primitive_rule
def _whole_number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
    """Read whole numbers as people write them: 1000000, 1_000_000 or 1e6."""
    if info.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: _to_int(words[0]),
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def _to_int(word: str) -> int:
    try:
        number = float(word)
        if number == int(number):
            # float() has 53 bits; plain digits keep all of theirs.
            return int(word) if word.lstrip("+-").replace("_", "").isdigit() else int(number)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{word!r} is not a whole number.")


@_registry.primitive_rule
def _optional_bool(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[bool | None] | None:
    """Read True, False, in lower case too, and None; `_spell_out` has made `--x` and `--no-x` such words."""
    if info.type != bool | None:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="[True|False]",
        instance_from_str=lambda words: _to_optional_bool(words[0]),
        is_instance=lambda value: value is None or isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


@_registry.primitive_rule
def _arguments(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[EnvArguments] | None:
    """Read arguments of an environment, as JSON or as name=value,name=value."""
    if info.type != EnvArguments:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=lambda words: to_arguments(words[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    )


def to_arguments(word: str) -> dict[str, JsonValue]:
    """Return what `--env-kwargs` says.

    Raises:
        ValueError: it is neither an object of JSON nor names with values.
    """
    if not word.lstrip().startswith("{"):
        pairs = [pair.partition("=") for pair in word.split(",")]
        if not all(name.isidentifier() and equals for name, equals, _ in pairs):
            raise ValueError(f"env_kwargs is {word!r}, expected JSON such as '{{\"level\": 3}}', or level=3,size=9.")
        return {name: _to_value(value) for name, _, value in pairs}
    try:
        arguments: dict[str, JsonValue] = json.loads(word)
    except ValueError as error:
        raise ValueError(f"env_kwargs is {word!r}, which is not JSON ({error}).") from error
    return arguments


def _to_value(word: str) -> JsonValue:
    """Return a value of JSON, or the word itself where it is none."""
    try:
        value: JsonValue = json.loads(word)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(word, word)
    return value


def _to_optional_bool(word: str) -> bool | None:
    values = {"True": True, "true": True, "False": False, "false": False, "None": None}
    if word not in values:
        raise ValueError(f"{word!r} is neither True nor False.")
    return values[word]


def take_env_id(words: Sequence[str], command: str) -> tuple[str, list[str]]:
    """Return the environment id, which comes first, and the other words; some id where only help is asked for.

    Raises:
        ValueError: there is none.
    """
    if words and not words[0].startswith("-"):
        return words[0], list(words[1:])
    if any(word in ("-h", "--help") for word in words):
        return "CartPole-v1", list(words)
    raise ValueError(f"{command} needs an environment id first, such as: fastac {command} CartPole-v1")


def peek(words: Sequence[str], flag: str) -> str | None:
    """Return the last value that follows a flag (with hyphens), before the parser that depends on it is built."""
    value = None
    for word, following in itertools.zip_longest(words, words[1:], fillvalue="--"):
        name, equals, rest = word.partition("=")
        if name.replace("_", "-") != flag:
            continue
        if equals:
            value = rest
        elif not following.startswith("--"):  # else the parser says that there is none
            value = following
    return value


def given(words: Sequence[str]) -> set[str]:
    """Return the names of the settings that are given on the command line."""
    return {_to_flag(word).removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}


def _to_flag(word: str) -> str:
    """Return a flag as it is listed: without its value, without `no-`, with hyphens."""
    return word.partition("=")[0].replace("_", "-").replace("--no-", "--", 1)


def without(words: Sequence[str], flag: str) -> list[str]:
    """Return the words without a flag and its value."""
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and word != flag and not word.startswith(flag + "="):
            kept.append(word)
        skip = word == flag
    return kept


def parse(kind: type[Options], words: Sequence[str], prog: str, default: Options | None = None) -> Options:
    """Parse flags into a dataclass.

    Raises:
        ValueError: in one sentence, instead of the parser's box.
        SystemExit: after --help.
    """
    _check_flags(kind, words, prog)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            options, unknown = tyro.cli(
                kind,
                args=_spell_out(words),
                prog=prog,
                default=default,
                registry=_registry,
                config=(OmitArgPrefixes,),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code == 0:  # --help
            raise
        raise ValueError(_unbox(box.getvalue())) from None
    if unknown:
        raise ValueError(f"{unknown[0]!r} is one word too many for {prog}: see {prog} --help.")
    assert options is not None
    return options


@cache
def _optional_bools() -> frozenset[str]:
    """Return the flags of the settings that are True, False or None, which the parser gives no `--no-`."""
    sections = get_type_hints(Config).values()
    hints = itertools.chain.from_iterable(get_type_hints(section).items() for section in sections)
    return frozenset("--" + name.replace("_", "-") for name, kind in hints if kind == bool | None)


def _spell_out(words: Sequence[str]) -> list[str]:
    """Return the words with the value that `--x` and `--no-x` stand for, where x may be None too."""
    spelt: list[str] = []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue="--"):
        flag = _to_flag(word)
        is_bare = "=" not in word and flag in _optional_bools()
        if is_bare and word.startswith("--no"):
            spelt.append(f"{flag}=False")
        elif is_bare and following.startswith("-"):
            spelt.append(f"{flag}=True")
        else:
            spelt.append(word)
    return spelt


def _check_flags(kind: type, words: Sequence[str], prog: str) -> None:
    """Refuse an unknown flag before the parser, which would take the word after it for an argument."""
    names = {f.name for f in fields(kind)}
    if "config" in names:
        names = names - {"config"} | set(setting_names())
    flags = ["--" + name.replace("_", "-") for name in sorted(names)]
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and _to_flag(word) not in [*flags, "--help"]:
            near = get_close_matches(flag, flags, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"see {prog} --help."
            raise ValueError(f"{word!r} is not an option of {prog}: {hint}")


# What the parser says, and how it reads better.
_REWORDED = (
    (r"^Error parsing config(\.[a-z]+)?: ", ""),
    (r"^Error parsing ", ""),
    (r"no type matching \{None\}\|(\w+) could be instantiated from \['(.*)'\]\.", r"'\2' is neither None nor \1."),
    (r"^Missing value for argument '(.*)'\. Expected 1 values\.", r"\1 needs a value."),
    (r"^Missing from fastac (\w+): .*", r"\1 needs a run's directory, such as: fastac \1 runs/..."),
)


def _unbox(text: str) -> str:
    """Return the sentence from the parser's box, drawn in Unicode or ASCII: the paragraph below its title.

    Where stdout is a terminal the box on stderr has colours.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    _, *lines = [line.strip("│ ") for line in text.strip().splitlines()]
    below = itertools.dropwhile(_is_rule, lines)
    sentence = " ".join(itertools.takewhile(lambda line: not _is_rule(line), below))
    for pattern, better in _REWORDED:
        sentence = re.sub(pattern, better, sentence)
    return sentence


def _is_rule(line: str) -> bool:
    return set(line) <= {"─", "-"}
