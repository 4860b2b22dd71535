"""fastac completion: shell completion of commands and flags, by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastac.cli.config import ConfigOptions
from fastac.cli.doctor import doctor_flags
from fastac.cli.flags import build_parser, flags_of, read_options
from fastac.cli.gate import gate_flags
from fastac.cli.hosts import hosts_flags
from fastac.cli.policy import EvalOptions, ExportOptions, ListOptions, PlotOptions, RecordOptions
from fastac.cli.studies import SweepCommand
from fastac.cli.train import TrainOptions, TuneOptions, resume_flags, setting_flags
from fastac.config import Config


@dataclass(frozen=True)
class CompletionOptions:
    """Print shell completion of the commands: put eval "$(fastac completion bash)" in the shell's start-up file."""

    shell: Literal["bash", "zsh", "tcsh"] = "bash"
    """Shell to complete for."""


def complete(words: Sequence[str]) -> int:
    """Run `fastac completion`."""
    options = read_options(CompletionOptions, words, "fastac completion", ["shell"])
    import shtab

    print(shtab.complete(_build_whole(), options.shell))
    return 0


def _build_whole() -> argparse.ArgumentParser:
    """Build a parser of all commands."""
    whole = argparse.ArgumentParser(prog="fastac")
    commands = whole.add_subparsers()
    settings = setting_flags(Config())
    kinds: dict[str, type] = {
        "train": TrainOptions,
        "config": ConfigOptions,
        "tune": TuneOptions,
        "sweep": SweepCommand,
    }
    own = {name: [*flags_of(kind, "command"), *settings] for name, kind in kinds.items()}
    own |= {"doctor": doctor_flags(), "gate": gate_flags(), "hosts": hosts_flags(), "resume": resume_flags()}
    for name, flags in own.items():
        commands.add_parser(name, parents=[build_parser(f"fastac {name}", "", flags)], add_help=False, help=name)
    positional = ("run_dir", "run_dirs", "shell")
    others: dict[str, type] = {
        "eval": EvalOptions,
        "record": RecordOptions,
        "export": ExportOptions,
        "plot": PlotOptions,
        "list": ListOptions,
        "completion": CompletionOptions,
    }
    for name, kind in others.items():
        parser = build_parser(f"fastac {name}", "", flags_of(kind, "flags", None, positional))
        commands.add_parser(name, parents=[parser], add_help=False, help=name)
    return whole
