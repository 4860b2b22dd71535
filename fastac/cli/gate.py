"""fastac gate."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from fastac.cli.flags import Flag, asks_for_help, flags_of, read, show_help, split_options
from fastac.cli.train import setting_flags
from fastac.config import Config, ConfigValue
from fastac.text import fit

if TYPE_CHECKING:
    from fastac.tools.gate.repository import Compared


@dataclass(frozen=True)
class GateOptions:
    """Compare the speed, memory and torch calls of your environment and network with those of an earlier revision."""

    target: str | None = None
    """The environment: module:name of a class or function, or any id if --encoder names your code."""
    base: str | None = None
    """Revision to compare with. Default: where this branch left main; on main, the commit before."""
    python: Path | None = None
    """Python interpreter for the base, if it needs other packages. Default: this one."""
    quick: bool = False
    """Measure in half as many processes: in about a minute, unless something seems slower."""
    json: Path | None = None
    """File to write the numbers to."""
    json_format: Literal["github", "bencher"] = "github"
    """Form of that file: for github-action-benchmark (customSmallerIsBetter), or the Bencher Metric Format."""


_PROG = "fastac gate"
_COMMON = (*("target", "encoder", "base", "quick", "json", "json_format", "python"), *("algo", "num_envs", "num_steps"))
_MORE = "Exit code 0: passed, 1: slower or more memory, 2: bad input. The flags of train describe the run."


def gate_flags() -> list[Flag]:
    """Return all flags of the command: its own, and the settings of a run."""
    settings = [
        flag for flag in setting_flags(Config()) if flag.name not in ("env_id", "workers", "shards", "torch_threads")
    ]
    return [*flags_of(GateOptions, "command"), *settings]


def gate(words: Sequence[str]) -> int:
    """Run `fastac gate`."""
    if asks_for_help(words):
        show_help(_PROG, f"{GateOptions.__doc__} {_MORE}", gate_flags(), words, _COMMON)
    values = read(gate_flags(), words, _PROG)
    options, others = split_options(GateOptions, values)
    settings = cast("dict[str, ConfigValue]", others)
    if options.target is None:
        raise ValueError("gate needs your environment: fastac gate --target mypackage.envs:make_env --base main")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise ValueError(f"json is {str(options.json)!r}, expected a file in a folder that exists.")
    # One process does all the work, or its CPU time would not be all of it.
    settings = {"env_id": options.target, "vectorization": "sync", **settings}
    config = Config().replace(**settings)
    if config.algo.has_async_workers:
        raise ValueError("algo is 'a3c', expected one that trains in one process: a2c, ppo or reinforce.")
    from fastac.tools.gate.repository import check

    python = sys.executable if options.python is None else str(options.python)
    compared = check(settings, options.base, python, options.quick, _say)
    return _report(compared, options)


def _say(text: str) -> None:
    print(fit(text, sys.stdout), flush=True)


def _report(compared: Compared, options: GateOptions) -> int:
    from fastac.tools.gate.report import format_counts, format_measured, to_json

    measured = compared.measured
    print(f"\n{format_measured(measured)}\n\n{format_counts(compared.base_counts, compared.head_counts)}")
    if options.json is not None:
        found = to_json(options.json_format, measured, compared.head_counts)
        options.json.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    print(f"\n{'Passed' if measured.passed else 'FAILED'}.")
    return 0 if measured.passed else 1
