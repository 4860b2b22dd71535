"""Command-line flags from dataclass fields, on argparse: one-sentence errors and short help.

argparse is part of Python, starts fastest, and lets the caller phrase every message. Each field is a flag. The result
holds only flags that were given, so that a preset can supply the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import shlex
import textwrap
from ast import AnnAssign, ClassDef, Constant, Expr, Name, parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from itertools import pairwise, zip_longest
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from fastac.config import OTHER_NAMES, EnvArguments, JsonValue, read_word

Options = TypeVar("Options")
Reader = Callable[[str], object]

HELP = ("-h", "--help", "--help-all")
_BOOL = "True|False"
_TRUTH = {"True": True, "true": True, "False": False, "false": False}


@dataclass(frozen=True, slots=True)
class Flag:
    """A dataclass field as a flag.

    Attributes:
        name: the field's name.
        kind: its type.
        default: the default that help shows.
        what: its docstring.
        group: its group in the help.
        is_positional: whether it is a positional argument.
    """

    name: str
    kind: object
    default: object
    what: str
    group: str
    is_positional: bool = False

    @property
    def word(self) -> str:
        """The flag as written on the command line; in the singular if it is repeatable."""
        name = self.name.removesuffix("s" if self.is_repeatable else "_")  # from_, since from is a word of Python's
        return "--" + name.replace("_", "-")

    @property
    def is_repeatable(self) -> bool:
        """Whether each use adds one text, which may have several words."""
        return self.kind == tuple[str, ...] and self.name == "wrappers"

    @property
    def is_bool(self) -> bool:
        """Whether it has a `--no-` form, and means True without a value."""
        return self.kind in (bool, bool | None)

    @property
    def takes_several(self) -> bool:
        """Whether it accepts several values."""
        return tuple in (get_origin(self.kind), *map(get_origin, get_args(self.kind)))


def flags_of(kind: type, group: str, default: object = None, positional: Sequence[str] = ()) -> list[Flag]:
    """Return the fields of a dataclass as flags; help shows the values of the instance `default`."""
    hints, told = get_type_hints(kind), _docstrings(kind)
    return [
        Flag(
            f.name,
            hints[f.name],
            getattr(default, f.name, f.default if f.default_factory is dataclasses.MISSING else f.default_factory()),
            told.get(f.name, ""),
            group,
            f.name in positional,
        )
        for f in dataclasses.fields(kind)
    ]


@cache
def _docstrings(kind: type) -> dict[str, str]:
    """Return the docstrings below a class's fields, those of the classes that it extends included."""
    return {name: told for each in reversed(kind.__mro__[:-1]) for name, told in _own_docstrings(each).items()}


def _own_docstrings(kind: type) -> dict[str, str]:
    (body,) = parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ClassDef)
    return {
        field.target.id: str(below.value.value)
        for field, below in pairwise(body.body)
        if isinstance(field, AnnAssign) and isinstance(field.target, Name)
        if isinstance(below, Expr) and isinstance(below.value, Constant)
    }


class _Parser(argparse.ArgumentParser):
    """Raises its errors instead of printing them."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError, in one sentence."""
        raise ValueError(message.removeprefix("argument "))


class _Formatter(argparse.HelpFormatter):
    """Shows each flag once, with its kind of value."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        (word,) = action.option_strings
        if action.metavar == _BOOL:
            return word.replace("--", "--[no-]", 1)
        return f"{word} {self._format_args(action, str(action.metavar))}"


def build_parser(prog: str, what: str, flags: Sequence[Flag], shown: Sequence[str] | None = None) -> _Parser:
    """Build a parser of `flags`; its help shows only those in `shown`, if given."""
    words = [flag.name.upper() for flag in flags if flag.is_positional]
    parser = _Parser(
        prog=prog,
        usage=" ".join([prog, *words, "[FLAGS]"]),
        description=what,
        formatter_class=_Formatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    order = list(shown or ())
    for flag in sorted(flags, key=lambda flag: order.index(flag.name) if flag.name in order else len(order)):
        hidden = shown is not None and flag.name not in shown
        group = flag.group if shown is None or hidden else "flags"
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        _add(groups[group], flag, hidden)
    return parser


def _add(group: argparse._ArgumentGroup, flag: Flag, hidden: bool) -> None:
    reader, metavar = _reader_of(flag.kind)
    reader = partial(_read_one, reader) if flag.takes_several else reader
    told = argparse.SUPPRESS if hidden else f"{flag.what} {_tell_default(flag)}".replace("%", "%%").strip()
    nargs = "*" if flag.takes_several else None
    if flag.is_repeatable:
        group.add_argument(flag.word, dest=flag.name, nargs="+", action="append", metavar="TEXT", help=told)
        return
    if flag.is_positional:
        missing = dataclasses.MISSING  # not a string, which argparse would parse
        group.add_argument(
            flag.name, type=reader, nargs=nargs or "?", default=missing, metavar=flag.name.upper(), help=told
        )
    else:
        group.add_argument(flag.word, dest=flag.name, type=reader, nargs=nargs, metavar=metavar, help=told)


def _read_one(reader: Reader, word: str) -> object:
    """Parse one of several values; what is written as 32,32 or [32,32] is refused with the right spelling."""
    try:
        return reader(word)
    except argparse.ArgumentTypeError as error:
        parts = word.strip("()[]").replace(",", " ").split()
        if len(parts) < 2 or not all(_can_read(reader, part) for part in parts):
            raise
        hint = f"separate with spaces: {' '.join(parts)}"
        raise argparse.ArgumentTypeError(f"{str(error).removesuffix('.')}: {hint}") from None


def _can_read(reader: Reader, word: str) -> bool:
    try:
        reader(word)
    except argparse.ArgumentTypeError:
        return False
    return True


def _tell_default(flag: Flag) -> str:
    if flag.is_positional or flag.default is None or flag.default is dataclasses.MISSING or "Default:" in flag.what:
        return ""
    value = flag.default
    if value == ():
        return ""
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    return f"(default: {json.dumps(value) if isinstance(value, Mapping) else value})"


def read(flags: Sequence[Flag], words: Sequence[str], prog: str) -> dict[str, object]:
    """Return the given values by field name.

    Raises:
        ValueError: the arguments are invalid; the message is one sentence.
    """
    known = {flag.word: flag for flag in flags if not flag.is_positional}
    given, unknown = build_parser(prog, "", flags).parse_known_intermixed_args(list(_spell_out(known, words, prog)))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is one word too many for {prog}: see {prog} --help.")
    values = {name: value for name, value in vars(given).items() if value is not dataclasses.MISSING}
    lines = {flag.name for flag in flags if flag.is_repeatable}
    values |= {name: tuple(map(shlex.join, values[name])) for name in lines & values.keys()}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def read_options(kind: type[Options], words: Sequence[str], prog: str, positional: Sequence[str] = ()) -> Options:
    """Return an instance of the dataclass `kind` from the arguments.

    Raises:
        ValueError: the arguments are invalid; the message is one sentence.
        SystemExit: after --help.
    """
    flags = flags_of(kind, "flags", None, positional)
    show_help(prog, inspect.getdoc(kind) or "", flags, words)
    return kind(**read(flags, words, prog))


def split_options(kind: type[Options], values: Mapping[str, object]) -> tuple[Options, dict[str, object]]:
    """Return the command's own options, an instance of the dataclass `kind`, and all other values that `read` found."""
    own = {flag.name for flag in flags_of(kind, "")}
    others = {name: value for name, value in values.items() if name not in own}
    return kind(**{name: values[name] for name in own & values.keys()}), others


def read_run_options(kind: type[Options], words: Sequence[str], command: str) -> Options:
    """Like `read_options`, for a command whose only positional argument is a run's directory.

    Raises:
        ValueError: the directory is missing, or the arguments are invalid.
    """
    prog = f"fastac {command}"
    try:
        return read_options(kind, words, prog, ["run_dir"])
    except TypeError as error:  # the field without a default
        raise ValueError(f"{command} needs a run's directory, such as: {prog} runs/...") from error


def show_help(
    prog: str, what: str, flags: Sequence[Flag], words: Sequence[str], shown: Sequence[str] | None = None
) -> None:
    """Print help and exit if the arguments ask for it; with --help-all, for all flags by group."""
    if not asks_for_help(words):
        return
    build_parser(prog, what, flags, None if "--help-all" in words else shown).print_help()
    raise SystemExit(0)


def asks_for_help(words: Sequence[str]) -> bool:
    """Return whether the arguments ask for help."""
    return any(word in HELP for word in words)


def _spell_out(known: Mapping[str, Flag], words: Sequence[str], prog: str) -> Iterator[str]:
    """Yield unambiguous arguments for argparse: `--flag=value`, with hyphens, `--x` and `--no-x` with a value.

    Raises:
        ValueError: an unknown flag, or a missing value.
    """
    skip = False
    for word, following in zip_longest(words, words[1:], fillvalue="--"):
        if skip or not word.startswith("--"):
            if not skip:
                yield word
            skip = False
            continue
        flag, is_no = _find_flag(known, word, prog)
        _, equals, value = word.partition("=")
        if is_no or (flag.is_bool and not equals):
            takes_next = not is_no and _is_truth(flag, following)
            yield f"{flag.word}={following if takes_next else not is_no}"
            skip = takes_next
        elif equals:
            yield f"{flag.word}={value}"
        elif flag.takes_several:
            yield flag.word
        elif following.startswith("--"):
            raise ValueError(f"{flag.word} needs a value.")
        else:
            yield f"{flag.word}={following}"
            skip = True


def _is_truth(flag: Flag, word: str) -> bool:
    """Return whether the argument after a bool flag is its value; always so if the flag also accepts None."""
    return not word.startswith("-") and (word in _TRUTH or flag.kind is not bool)


def _find_flag(known: Mapping[str, Flag], word: str, prog: str) -> tuple[Flag, bool]:
    """Return the flag that an argument names, and whether it is its `--no-` form."""
    name, equals, _ = word.partition("=")
    name = name.replace("_", "-")
    if name in known:
        return known[name], False
    positive = name.replace("--no-", "--", 1)
    if positive != name and positive in known:
        if equals or not known[positive].is_bool:
            raise ValueError(f"{word!r} is one word too many for {prog}: see {prog} --help.")
        return known[positive], True
    other = OTHER_NAMES.get(name.removeprefix("--").replace("-", "_"))
    other = f"--{other.replace('_', '-')}" if other else ""
    near = [other] if other in known else get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"see {prog} --help."
    raise ValueError(f"{word!r} is not an option of {prog}: {hint}")


def _reader_of(kind: object) -> tuple[Reader, str]:
    """Return the function that parses a value of that kind, and the kind's name in help."""
    if get_origin(kind) is tuple:
        return _reader_of(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return _Choice(get_args(kind)), "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) in (Union, UnionType):
        kinds = get_args(kind)
        first = next(each for each in kinds if each is not NoneType)
        if get_origin(first) is tuple:
            return _reader_of(first)
        return _either([each for each in kinds if each is not NoneType], NoneType in kinds), _reader_of(first)[1]
    readers: dict[object, tuple[Reader, str]] = {
        int: (to_int, "INT"),
        float: (_to_float, "FLOAT"),
        bool: (_to_bool, _BOOL),
        str: (str, "TEXT"),
        Path: (Path, "PATH"),
        EnvArguments: (_to_env_arguments, "JSON"),
    }
    return readers[kind]


@dataclass(frozen=True, slots=True)
class _Choice:
    """Parses one of a few words."""

    choices: tuple[object, ...]

    def __call__(self, word: str) -> object:
        if word not in self.choices:
            lower = word.lower()
            hint = f"did you mean {lower}?" if lower in self.choices else f"expected one of {_list(self.choices)}."
            raise argparse.ArgumentTypeError(f"{word!r} is not known: {hint}")
        return word


def _list(choices: Sequence[object]) -> str:
    return ", ".join(map(str, choices))


def _either(kinds: list[object], takes_none: bool) -> Reader:
    """Return a function that parses a word as the first kind that accepts it."""
    names = [*(["None"] if takes_none else []), *(_name_of(kind) for kind in kinds)]

    def read_either(word: str) -> object:
        if takes_none and word == "None":
            return None
        for kind in kinds:
            if get_origin(kind) is Literal and word in get_args(kind):
                return word
        for kind in kinds:
            try:
                return _reader_of(kind)[0](word)
            except (ValueError, argparse.ArgumentTypeError):
                continue
        (choice,) = [kind for kind in kinds if get_origin(kind) is Literal] or (None,)
        if choice is not None and len(kinds) == 1:
            return _Choice(get_args(choice))(word)
        raise argparse.ArgumentTypeError(f"{word!r} is neither {' nor '.join(names)}.")

    if kinds == [bool]:
        names[:] = ["True", "False"]
    return read_either


def _name_of(kind: object) -> str:
    if get_origin(kind) is Literal:
        return " nor ".join(map(str, get_args(kind)))
    names: dict[object, str] = {int: "a whole number", float: "a number", bool: "True nor False"}
    return names.get(kind, "a word")


def to_int(word: str) -> int:
    """Parse a whole number in any usual notation: 1000000, 1_000_000 or 1e6."""
    try:
        number = float(word)
        if number == int(number):
            # float() has only 53 bits; parse plain digits exactly.
            return int(word) if word.lstrip("+-").replace("_", "").isdigit() else int(number)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{word!r} is not a whole number.")


def _to_float(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number.") from None


def _to_bool(word: str) -> bool:
    if word not in _TRUTH:
        raise argparse.ArgumentTypeError(f"{word!r} is neither True nor False.")
    return _TRUTH[word]


def _to_env_arguments(word: str) -> dict[str, JsonValue]:
    try:
        return to_arguments(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def to_arguments(word: str) -> dict[str, JsonValue]:
    """Parse the value of `--env-kwargs`.

    Raises:
        ValueError: it is neither a JSON object nor a list of name=value pairs.
    """
    if not word.lstrip().startswith("{"):
        pairs = [pair.partition("=") for pair in word.split(",")]
        if not all(name.isidentifier() and equals for name, equals, _ in pairs):
            raise ValueError(f"{word!r} is neither JSON such as '{{\"level\": 3}}' nor level=3,size=9.")
        return {name: read_word(value) for name, _, value in pairs}
    try:
        arguments: dict[str, JsonValue] = json.loads(word)
    except ValueError as error:
        raise ValueError(f"{word!r} is not JSON ({error}).") from error
    return arguments
