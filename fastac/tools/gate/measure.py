"""Two trees side by side: the same slices of training in turn, in pairs of processes that are started anew.

Of a pair only one process ever works. Slices are ordered A B B A, B A A B, and so on. All workloads are measured in a
few pairs; those in which something seems slower in more, up to the last stage, and only then anything is slower.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from time import monotonic
from typing import TypeAlias

import numpy as np

from fastac.config import ConfigValue
from fastac.system import pinnable_cores
from fastac.tools.gate.sides import DriverError, Side, Tree, Workloads
from fastac.tools.gate.statistics import Comparison, FloatArray, compare

log = logging.getLogger("fastac")

# Margins by part, see `statistics`. Wall-clock varies more than CPU time, and is there for what waits.
MARGINS = {"collector": 0.025, "update": 0.025, "iteration": 0.025, "wall": 0.10}


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure.

    Attributes:
        stages: how many pairs of processes there are at the end of each stage.
        seconds: after so many no further pair of the last stage is started.
    """

    stages: Sequence[int]
    seconds: float = math.inf


QUICK, FULL = Effort((4, 8, 14), 120.0), Effort((8, 16, 28), 600.0)

_SLICE_S = 0.025  # several iterations, so that what happens only in some of them is in every slice
_SLICES, _LEAST_SLICES = 12, 4  # of each build
# Where its arrays lie is part of a run's speed, by several percent; to build it anew costs less than a new process.
_BUILDS = 3
_BUILD_S = 0.4  # of slices of one workload in one build, unless its iterations are too long for that
MEMORY_MARGIN = 0.05
_PEAK_NOISE = 2**20  # bytes; between equal trees peaks were 0.1 MiB apart

Seconds: TypeAlias = "dict[str, float]"  # of an iteration, by part


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the two sides, medians over processes."""

    what: str
    base: float
    head: float

    @property
    def more(self) -> bool:
        """Whether HEAD takes more than the margin; of the peak, a MiB is noise."""
        noise = _PEAK_NOISE if self.what == "peak" else 0
        return self.head > self.base * (1.0 + MEMORY_MARGIN) + noise


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured.

    Attributes:
        comparisons: every part of every workload.
        memory: what the sides hold.
        skipped: why the base does not run a workload, by name.
    """

    comparisons: Sequence[Comparison]
    memory: Sequence[Memory] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def slower(self) -> list[Comparison]:
        """What is slower."""
        return [c for c in self.comparisons if c.slower]

    @property
    def larger(self) -> list[Memory]:
        """What takes more memory."""
        return [m for m in self.memory if m.more]

    @property
    def passed(self) -> bool:
        """Whether something was compared, and nothing is slower or takes more memory."""
        return bool(self.comparisons) and not self.slower and not self.larger


def measure(base: Tree, head: Tree, workloads: Workloads, effort: Effort) -> Measured:
    """Measure in pairs of processes, in as many stages as there is something that seems slower; each pair is logged.

    Raises:
        DriverError: HEAD does not run a workload, or a process ended.
    """
    series, found = _Series(base, head), dict[str, list[Comparison]]()
    asked, began = dict(workloads), monotonic()
    for number in effort.stages:
        while series.pairs < number and asked:
            if number == effort.stages[-1] and monotonic() - began > effort.seconds:
                break
            asked = series.add_pair(asked)
            names, took_s = ", ".join(asked), monotonic() - began
            log.info("measured in %d of %d pairs of processes, after %.0f s: %s", series.pairs, number, took_s, names)
        found |= {name: series.compare(name) for name in asked}
        asked = {name: asked[name] for name in asked if any(c.seems_slower for c in found[name])}
    comparisons = [c for name in workloads for c in found.get(name, [])]
    return Measured(comparisons, series.compare_memory(), series.skipped)


class _Series:
    """Pairs of processes, one after the other.

    Attributes:
        pairs: how many there were.
        skipped: why the base does not run a workload, by name.
    """

    def __init__(self, base: Tree, head: Tree) -> None:
        self.pairs = 0
        self.skipped: dict[str, str] = {}
        self._trees = base, head
        self._cores = find_cores()
        self._plans: dict[str, tuple[int, int]] = {}  # by workload: slices, and iterations in each
        # By workload and side: of each process its slices, seconds by part.
        self._slices: dict[str, tuple[list[list[Seconds]], list[list[Seconds]]]] = {}
        self._memory: dict[str, tuple[list[float], list[float]]] = {}

    def add_pair(self, workloads: dict[str, Mapping[str, ConfigValue]]) -> dict[str, Mapping[str, ConfigValue]]:
        """Measure a pair of new processes; return the workloads that both run."""
        with ExitStack() as stack:
            sides = [stack.enter_context(side) for side in [Side(tree, workloads) for tree in self._trees]]
            for side in sides:
                side.wait()
                if self._cores:
                    side.keep_to(self._cores[self.pairs % len(self._cores)])
            for name, failure in sides[1].failures.items():
                raise DriverError(f"This working tree does not run {name}: {failure}.")
            self.skipped |= sides[0].failures
            both = {name: settings for name, settings in workloads.items() if name not in self.skipped}
            self._time_builds(sides, list(both), notes_memory=both.keys() == workloads.keys())
        self.pairs += 1
        return both

    def _time_builds(self, sides: Sequence[Side], names: Sequence[str], notes_memory: bool) -> None:
        """Time workloads, built several times; memory is that of the first build, if both processes run all of them."""
        results: dict[str, tuple[list[Seconds], list[Seconds]]] = {name: ([], []) for name in names}
        for build in range(_BUILDS):
            for name in names:
                if build:
                    for side in sides:
                        side.rebuild(name)
                self._time(sides, name, results[name])
            if build == 0 and notes_memory and self._slices.keys() <= set(names):
                self._note_memory(sides)
        for name, pair in results.items():
            for whole, part in zip(self._slices.setdefault(name, ([], [])), pair, strict=True):
                whole.append(part)

    def _time(self, sides: Sequence[Side], workload: str, results: tuple[list[Seconds], list[Seconds]]) -> None:
        if workload not in self._plans:
            self._plans[workload] = plan_slices(min(sides[0].time(workload, 1)["wall"] for _ in range(5)))
        slices, iterations = self._plans[workload]
        for turn in order(slices):
            results[turn].append(sides[turn].time(workload, iterations))

    def _note_memory(self, sides: Sequence[Side]) -> None:
        for turn, side in enumerate(sides):
            for what, number in side.memory().items():
                self._memory.setdefault(what, ([], []))[turn].append(number)

    def compare(self, workload: str) -> list[Comparison]:
        """Compare every part of a workload over all pairs so far."""
        base, head = self._slices[workload]
        return [
            compare(workload, part, _take(part, base), _take(part, head), margin) for part, margin in MARGINS.items()
        ]

    def compare_memory(self) -> list[Memory]:
        """Compare what both sides tell of."""
        both = {what: sides for what, sides in self._memory.items() if all(sides)}
        return [Memory(what, median(base), median(head)) for what, (base, head) in both.items()]


def find_cores() -> list[int]:
    """Return the cores that this process may use; none where the system cannot tie a process to one.

    Both processes of a pair use the same core. On a virtual machine one core may be slower than the other for as long
    as its neighbour works: between equal trees a pair's ratio varied by 4 % on one core, and by 11 % on any.
    """
    return pinnable_cores()


def _take(part: str, processes: list[list[Seconds]]) -> FloatArray:
    return np.array([[row[part] for row in slices] for slices in processes])


def plan_slices(iteration_s: float) -> tuple[int, int]:
    """Return how many slices a build measures, and of how many iterations each is."""
    iterations = max(1, round(_SLICE_S / iteration_s))
    slices = int(_BUILD_S / (iterations * iteration_s)) // 2 * 2
    return min(max(slices, _LEAST_SLICES), _SLICES), iterations


def order(slices: int) -> list[int]:
    """Whose turn it is, `slices` of each (an even number): whatever drifts weighs on both alike."""
    blocks = ((0, 1, 1, 0), (1, 0, 0, 1))
    return [side for index in range(slices // 2) for side in blocks[index % 2]]
