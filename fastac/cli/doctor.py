"""fastac doctor."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from fastac.cli.flags import Flag, asks_for_help, flags_of, read, show_help, split_options
from fastac.cli.train import setting_flags
from fastac.config import Config, ConfigValue
from fastac.garbage import loading

if TYPE_CHECKING:
    from fastac.config import EnvConfig


@dataclass(frozen=True)
class DoctorOptions:
    """Examine an environment before training on it: does it do what the trainer relies on?"""

    env: str | None = None
    """The environment, as train takes it: an id, module:id, or module:name of a class or function."""
    seconds: float = 10.0
    """Time limit of the examination; a slow environment makes fewer steps in it."""
    strict: bool = False
    """Exit with code 1 also if there are warnings, but no errors."""
    json: bool = False
    """Print what was found as one JSON line."""


_PROG = "fastac doctor"
_MORE = "Exit code 0: no errors, 1: errors (with --strict also warnings), 2: bad input, or it cannot be built."
_NOT_OURS = ("env_id", "num_envs", "envs_per_worker", "squash_actions", "start_timeout_s", "env_timeout_s")


def doctor_flags() -> list[Flag]:
    """Return all flags of the command: its own, and those of train that say what an environment is."""
    flags = [flag for flag in setting_flags(Config()) if flag.group == "environments" and flag.name not in _NOT_OURS]
    return [*flags_of(DoctorOptions, "command", None, ["env"]), *flags]


def doctor(words: Sequence[str]) -> int:
    """Run `fastac doctor`."""
    if asks_for_help(words):
        show_help(_PROG, f"{DoctorOptions.__doc__} {_MORE}", doctor_flags(), words)
    values = read(doctor_flags(), words, _PROG)
    options, others = split_options(DoctorOptions, values)
    if options.env is None:
        raise ValueError("doctor needs your environment, such as: fastac doctor mymodule:MyEnv")
    settings = cast("dict[str, ConfigValue]", others)
    return _examine(Config().replace(env_id=options.env, **settings).env, options)


def _examine(config: EnvConfig, options: DoctorOptions) -> int:
    with loading():
        from fastac.build import name_env
        from fastac.tools.doctor import examine
        from fastac.tools.doctor.report import format_diagnosis, to_json

    diagnosis = examine(config, name_env(config.env_id).given, options.seconds)
    if options.json:
        print(json.dumps(to_json(diagnosis), allow_nan=False))
    else:
        print(format_diagnosis(diagnosis, sys.stdout))
    return 1 if diagnosis.errors or (options.strict and diagnosis.warnings) else 0
