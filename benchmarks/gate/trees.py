"""The trees that the gate compares: fastac at a base, in the working tree, and with a slowdown put in."""

from __future__ import annotations

from pathlib import Path

from fastac.tools.gate.trees import copy_compiled, export_revision, export_working_tree

ROOT = Path(__file__).resolve().parents[2]
COUNTS_PATH = ROOT / "benchmarks" / "counts.json"


def export_base(commit: str, tree: Path) -> None:
    """Write the package as of a commit, with compiled kernels if they are the same."""
    export_revision(ROOT, commit, tree, ["fastac"])
    copy_compiled(ROOT, tree)


def export_head(tree: Path) -> None:
    """Write the package as it lies there."""
    export_working_tree(ROOT, tree, ["fastac"])
    copy_compiled(ROOT, tree)


# What is appended to `fastac/__init__.py`. Busy for a share of the call's own CPU time, as a slower call would be.
_SLOWDOWN = """

def _slow_down(owner, method):
    from time import process_time

    call = getattr(owner, method)

    def slowed(*args, **kwargs):
        began = process_time()
        result = call(*args, **kwargs)
        until = process_time() + {share} * (process_time() - began)
        while process_time() < until:
            pass
        return result

    setattr(owner, method, slowed)


from {module} import {owner} as _owner

_slow_down(_owner, "{method}")
"""
_METHODS = {
    "collector": ("fastac.rollout", "Collector", "collect"),
    "update": ("fastac.learning.learner", "Learner", "learn"),
}


def inject_slowdown(tree: Path, part: str, share: float) -> None:
    """Make the collector or the update of an exported tree slower by a share of its own time."""
    module, owner, method = _METHODS[part]
    with (tree / "fastac" / "__init__.py").open("a") as file:
        file.write(_SLOWDOWN.format(share=share, module=module, owner=owner, method=method))
