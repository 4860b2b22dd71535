"""The gate for a repository that uses fastac: its environment and network inside fastac's loop, HEAD against a base."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fastac.config import ConfigValue
from fastac.tools.gate.measure import FULL, QUICK, Effort, Measured, measure
from fastac.tools.gate.report import Counts
from fastac.tools.gate.sides import DriverError, Side, Tree, Workloads
from fastac.tools.gate.trees import (
    InputError,
    NoBaseError,
    export_revision,
    export_working_tree,
    find_root,
    has_uncommitted,
    resolve_base,
)


@dataclass(frozen=True, slots=True)
class Compared:
    """What was found.

    Attributes:
        measured: times and memory.
        base_counts: what one iteration of the base does in torch.
        head_counts: what one iteration of HEAD does.
    """

    measured: Measured
    base_counts: Counts
    head_counts: Counts


def check(
    settings: Mapping[str, ConfigValue],
    base: str | None,
    python: str = sys.executable,
    quick: bool = False,
    tell: Callable[[str], None] = print,
) -> Compared:
    """Compare the working tree around the current folder with a base.

    Args:
        settings: what to train; `env_id` or `encoder` is `module:name` of the repository's own code.
        base: a revision; None: where this branch left main, on main the commit before.
        python: the interpreter of the base.
        quick: measure in half as many processes.
        tell: takes a sentence about what is compared.

    Raises:
        ValueError: there is nothing to compare, or a tree does not run it; the message is one sentence.
    """
    names = [str(settings[key]) for key in ("env_id", "encoder") if ":" in str(settings.get(key, ""))]
    if not names:
        raise InputError(
            f"target is {settings['env_id']!r}, expected module:name of this repository's code (or --encoder of such)."
        )
    here = Path.cwd().resolve()
    root = find_root(here)
    try:
        found = resolve_base(root, base)
    except NoBaseError as error:
        raise InputError(f"{error}.") from error
    more = ", with its uncommitted changes," if has_uncommitted(root) else ""
    tell(f"The working tree{more} against {found.commit[:12]} ({found.why}).")
    with TemporaryDirectory() as folder:
        trees = Path(folder) / "base", Path(folder) / "head"
        export_revision(root, found.commit, trees[0])
        export_working_tree(root, trees[1])
        modules, place = [name.partition(":")[0] for name in names], here.relative_to(root)
        if not (trees[0] / place).is_dir():
            raise InputError(f"base is {found.commit[:12]}, which has no folder {place}: name a later revision.")
        sides = [
            Tree(tree.resolve() / place, modules, _find_paths(tree / place), interpreter)
            for tree, interpreter in zip(trees, (python, sys.executable), strict=True)
        ]
        return _compare(sides, {names[0]: settings}, QUICK if quick else FULL)


def _find_paths(folder: Path) -> list[str]:
    return [path for path in ("src", ".") if (folder / path).is_dir()]


def _compare(trees: Sequence[Tree], workloads: Workloads, effort: Effort) -> Compared:
    base, head = trees
    (name,) = workloads
    try:
        with Side(base, workloads) as old, Side(head, workloads) as new:
            for side, which in ((new, "the working tree"), (old, "the base")):
                side.wait()
                if side.failures:
                    raise InputError(f"{which} does not run {name}: {side.failures[name].removesuffix('.')}.")
            counts = old.count(name), new.count(name)
        return Compared(measure(base, head, workloads, effort), *counts)
    except DriverError as error:
        raise InputError(str(error)) from error
