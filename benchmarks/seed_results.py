"""What presets came to over seeds, kept in a file: which presets to measure, measuring them, and a line per seed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from benchmarks.machine import describe_machine, format_machine
from fastac.presets import Preset

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def parse(
    argv: Sequence[str] | None,
    doc: str | None,
    choose: Callable[[Sequence[str]], dict[str, Preset]],
    path: Path,
    seeds: int,
) -> argparse.Namespace:
    """Read the words of a command; `chosen` are the presets that `choose` finds for those named `ENV:NAME`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", metavar="ENV:NAME")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--output", type=Path, default=path)
    parser.add_argument("--table", action="store_true", help="train nothing, print all that the file holds")
    options = parser.parse_args(argv)
    try:
        options.chosen = choose(options.presets)
    except ValueError as error:
        parser.error(str(error))
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}, expected at least 1")
    return options


def save(path: Path, found: Mapping[str, DataclassInstance]) -> None:
    """Write dataclasses by preset, each with its `seeds`, a line per seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, result in found.items():
        entry = asdict(result)
        seeds = ",\n".join(f"   {json.dumps(seed)}" for seed in entry.pop("seeds"))
        entries.append(f' "{name}": {json.dumps(entry)[:-1]}, "seeds": [\n{seeds}\n ]}}')
    path.write_text("{\n" + ",\n".join(entries) + "\n}\n")


def run(
    options: argparse.Namespace,
    load: Callable[[Path], dict[str, T]],
    measure: Callable[[Preset, int, int, str], T],
    form: Callable[[Mapping[str, T]], str],
    keep: Callable[[Path, Mapping[str, T]], None] = save,
) -> None:
    """Measure the chosen presets, keep each in the file as soon as it is there, and print the file's table.

    Args:
        options: of `parse`.
        load: returns what a file holds; nothing if it is not there.
        measure: takes a preset, how many seeds, the first of them, and the machine in words.
        form: returns the table.
        keep: writes the file.
    """
    if not options.table:
        machine = format_machine(describe_machine(torch_threads=1))
        print(machine, flush=True)
        for name, preset in options.chosen.items():
            result = measure(preset, options.seeds, options.first_seed, machine)
            keep(options.output, {**load(options.output), name: result})
            print(form({name: result}), flush=True)
    print(form(load(options.output)))
