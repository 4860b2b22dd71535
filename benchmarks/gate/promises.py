"""The ratios that the README promises, both sides in turn in this process, one torch thread, in CPU time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from time import process_time
from typing import NamedTuple

from benchmarks.peers.settings import Task
from fastac.tools.gate.measure import order

SLICES = 10
CONFIRM = 3  # times as many slices, where a promise seems broken
_SLICE_S = 0.02


class Promise(NamedTuple):
    name: str
    fast: str  # the names of the two sides in the trend
    slow: str
    floor: float
    # Builds both sides' tasks, which return how many steps they did.
    sides: Callable[[], Sequence[AbstractContextManager[Task]]]


class Kept(NamedTuple):
    """What a promise was found to be; rates are steps per CPU second."""

    promise: Promise
    fast_rate: float
    slow_rate: float

    @property
    def ratio(self) -> float:
        return self.fast_rate / self.slow_rate

    @property
    def holds(self) -> bool:
        return self.ratio >= self.promise.floor


def _gae() -> Sequence[AbstractContextManager[Task]]:
    from benchmarks.peers import fastac

    return fastac.gae(128, 8), fastac.gae_reference(128, 8)


def _a2c() -> Sequence[AbstractContextManager[Task]]:
    from benchmarks.peers import fastac, sb3

    return fastac.a2c(64, "separate"), sb3.a2c(64, "separate")


# A floor is half of what was measured, or less: other machines have other ratios, but what makes the faster side
# twice as slow is seen. Measured on two cores of an Intel Xeon, torch 2.13, each side on one thread.
PROMISES = (
    Promise("GAE (128, 8): kernel over reference", "gae (128, 8), kernel", "gae (128, 8), reference", 200.0, _gae),
    Promise("A2C 64x16: fastac over stable-baselines3", "fastac a2c 64x16", "stable-baselines3 a2c 64x16", 3.0, _a2c),
)


def check_promises(promises: Sequence[Promise] = PROMISES) -> list[Kept]:
    """Measure every promise, and once more and longer what seems broken."""
    kept = []
    for promise in promises:
        found = _measure(promise, SLICES)
        kept.append(found if found.holds else _measure(promise, CONFIRM * SLICES))
    return kept


def _measure(promise: Promise, slices: int) -> Kept:
    """Take each side's best rate."""
    best = [0.0, 0.0]
    with ExitStack() as stack:
        tasks = [stack.enter_context(side) for side in promise.sides()]
        repeats = [_fill_slice(task) for task in tasks]
        for side in order(slices):
            began = process_time()
            steps = sum(tasks[side]() for _ in range(repeats[side]))
            best[side] = max(best[side], steps / (process_time() - began))
    return Kept(promise, *best)


def _fill_slice(task: Task) -> int:
    """Return how many calls make a slice, after one that may allocate and compile."""
    task()
    began = process_time()
    calls = 0
    while process_time() - began < _SLICE_S:
        task()
        calls += 1
    return calls
