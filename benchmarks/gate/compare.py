"""Two trees side by side: the same slices of training in turn, and whether one is slower.

Each tree trains in a process of its own (`driver`), one torch thread, and only one of the two ever works.
Slices are ordered A B B A, B A A B, and so on. A part is slower by the smaller of two estimates: the ratio of
the fast slices, which bursts from neighbours do not reach, and the median over pairs of neighbouring slices,
which a slow minute does not reach. Fast is the slice that a tenth is faster than: between equal trees on a busy
machine the very fastest of 60 erred by up to 10 %, that one by 6 %. What is beyond the margin is measured once
more, by new processes and three times as long, and fails if it is beyond it again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, NamedTuple

Workloads = Mapping[str, dict[str, Any]]

_DRIVER = Path(__file__).with_name("driver.py")
_SLICE_S = 0.025  # several iterations, so that what happens only in some of them is in every slice
# How much slower is a failure. In CPU time equal trees measured 2 % apart (root mean square), 3 % and at most 8 %
# while others kept both cores busy. Wall-clock varies more, and is there for what waits.
MARGINS = {"collector": 0.10, "update": 0.10, "iteration": 0.10, "wall": 0.25}
CONFIRM = 3  # times as many slices

_SEPARATE = {"hidden_sizes": (64, 64), "activation": "tanh", "shared_trunk": False}
_LECTURE = {"hidden_sizes": (128, 128), "activation": "relu", "shared_trunk": True}
A2C_64 = "a2c 64x16, separate 64-64 tanh"
# Settings that every revision knows.
WORKLOADS: Workloads = {
    A2C_64: {"algo": "a2c", "num_envs": 64, "num_steps": 16, **_SEPARATE},
    "a2c 256x16, shared 128-128 relu": {"algo": "a2c", "num_envs": 256, "num_steps": 16, **_LECTURE},
    "ppo 8x32, 4 epochs of 4 minibatches": {
        **{"algo": "ppo", "num_envs": 8, "num_steps": 32, "num_epochs": 4, "num_minibatches": 4},
        **_SEPARATE,
    },
}

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "PYTHONHASHSEED": "0",
    # glibc: never give memory back. Whether it does depends on where in the heap a process happens to put
    # things, and then every update faults its pages in again: equal trees differed by 40 %.
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_MMAP_THRESHOLD_": str(2**40),
}


class DriverError(Exception):
    """A tree cannot be measured; the message is a sentence for the user."""


class Side:
    """A process that trains with the package of one tree.

    Attributes:
        failures: why a workload does not run there, by name.
    """

    def __init__(self, tree: Path, workloads: Workloads) -> None:
        """Start it; `wait` until it is ready."""
        self._workloads = workloads
        path = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_DRIVER), str(tree), json.dumps(workloads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
        )
        self.failures: dict[str, str] = {}

    def wait(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = json.loads(line) if line else dict.fromkeys(self._workloads, "its driver did not start, see above")
        self.failures = {name: failure for name, failure in found.items() if failure}

    def run(self, workload: str, iterations: int) -> dict[str, float]:
        """Return the mean seconds of an iteration by part.

        Raises:
            DriverError: the process is gone.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps([workload, iterations]), file=self._process.stdin, flush=True)
            seconds: dict[str, float] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            raise DriverError(f"The process that measured {workload} ended, see above.") from error
        return seconds

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()  # it keeps nothing
        self._process.communicate()


class Comparison(NamedTuple):
    """One part of one workload, in seconds per iteration, slice by slice; equal places are neighbours in time."""

    workload: str
    part: str
    base_s: list[float]
    head_s: list[float]

    @property
    def ratio(self) -> float:
        """How much longer HEAD takes: 1.1 is 10 % slower."""
        pairs = [head / base for base, head in zip(self.base_s, self.head_s, strict=True)]
        return min(fast(self.head_s) / fast(self.base_s), median(pairs))

    @property
    def slower(self) -> bool:
        return self.ratio > 1.0 + MARGINS[self.part]


def fast(seconds: Sequence[float]) -> float:
    """Return the seconds that a tenth is below: what a side takes undisturbed, whatever happened in one lucky slice."""
    return sorted(seconds)[len(seconds) // 10]


class Measured(NamedTuple):
    comparisons: list[Comparison]
    skipped: dict[str, str]  # why the base does not run a workload


class Verdict(NamedTuple):
    first: Measured
    again: list[Comparison]  # of the workloads in which something seemed slower

    @property
    def slower(self) -> list[Comparison]:
        """What was slower both times."""
        suspects = {(c.workload, c.part) for c in self.first.comparisons if c.slower}
        return [c for c in self.again if c.slower and (c.workload, c.part) in suspects]

    @property
    def passed(self) -> bool:
        return bool(self.first.comparisons) and not self.slower


# Compares the workloads with so many slices of each side.
Measure = Callable[[Workloads, int], Measured]


def judge(measure: Measure, slices: int, workloads: Workloads = WORKLOADS) -> Verdict:
    """Compare, and where something seems slower compare again."""
    first = measure(workloads, slices)
    suspects = {c.workload for c in first.comparisons if c.slower}
    if not suspects:
        return Verdict(first, [])
    again = measure({name: workloads[name] for name in workloads if name in suspects}, CONFIRM * slices)
    return Verdict(first, again.comparisons)


def compare(base: Path, head: Path, workloads: Workloads, slices: int) -> Measured:
    """Measure two trees, in new processes.

    Raises:
        DriverError: HEAD does not run a workload.
    """
    with ExitStack() as stack:
        sides = [stack.enter_context(Side(tree, workloads)) for tree in (base, head)]
        for side in sides:
            side.wait()
        for name, failure in sides[1].failures.items():
            raise DriverError(f"This working tree does not run {name}: {failure}.")
        skipped = sides[0].failures
        runnable = [name for name in workloads if name not in skipped]
        return Measured([c for name in runnable for c in _compare_workload(sides, name, slices)], skipped)


def _compare_workload(sides: Sequence[Side], workload: str, slices: int) -> list[Comparison]:
    iteration_s = min(sides[0].run(workload, 1)["wall"] for _ in range(5))
    iterations = max(1, round(_SLICE_S / iteration_s))
    results: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    for side in order(slices):
        results[side].append(sides[side].run(workload, iterations))
    return [
        Comparison(workload, part, [row[part] for row in results[0]], [row[part] for row in results[1]])
        for part in MARGINS
    ]


def order(slices: int) -> list[int]:
    """Whose turn it is, `slices` of each (an even number): whatever drifts weighs on both alike."""
    blocks = ((0, 1, 1, 0), (1, 0, 0, 1))
    return [side for index in range(slices // 2) for side in blocks[index % 2]]
