"""Finds memory that grows with the steps: Python's own, by the line that allocated it, and the process's."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastac.tools.doctor.budget import Budget
from fastac.tools.doctor.findings import Finding
from fastac.tools.doctor.patient import Patient

_OWN = (tracemalloc.Filter(False, str(Path(__file__).parent / "*")), tracemalloc.Filter(False, tracemalloc.__file__))
_STEPS = 3_000  # under tracing, which makes them some times slower
_LEAST_STEPS = 20
_LEAST_PER_STEP = 16.0  # bytes; a list of numbers grows by 8 to 40
_LEAST_GROWTH = 4_096  # bytes, in each half
_LEAST_RESIDENT = 8e6  # bytes, in each half: less is the allocator's own
_LEAST_READINGS = 5  # of the process's memory


@dataclass(frozen=True, slots=True)
class Growth:
    """How memory grew in two halves of a stretch of steps.

    Attributes:
        steps: of both halves.
        first: bytes that Python had more after the first half.
        second: bytes that it had more again after the second.
        line: the line of code that allocated most of that, as file:number.
        resident: bytes that the process had more in each half of the main trial.
    """

    steps: int
    first: int
    second: int
    line: str
    resident: tuple[int, int]


def measure_growth(patient: Patient, steps: int, resident: tuple[int, int], budget: Budget) -> Growth:
    """Take up to `steps` steps under `tracemalloc`, and compare the memory right after resets.

    Raises:
        EnvFailure: the environment failed.
    """
    patient.reset(0)
    third = max(1, min(steps, _STEPS) // 3)
    with _tracing():
        _stretch(patient, third, budget.part(0.3))
        begin = _take()
        half = _stretch(patient, third, budget.part(0.45))
        middle = _take()
        done = half + _stretch(patient, half, Budget(2.0 * budget.left_s))  # as many, or no half is like the other
        end = _take()
    grown = end.compare_to(middle, "lineno")
    first = sum(stat.size_diff for stat in middle.compare_to(begin, "lineno"))
    largest = max(grown, key=lambda stat: stat.size_diff, default=None)
    line = "" if largest is None else f"{largest.traceback[0].filename}:{largest.traceback[0].lineno}"
    return Growth(done, first, sum(stat.size_diff for stat in grown), line, resident)


@contextmanager
def _tracing() -> Iterator[None]:
    """Trace what Python allocates; collect garbage of that only, as the modules' objects are many."""
    were_frozen = gc.get_freeze_count()
    gc.freeze()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        if not were_frozen:
            gc.unfreeze()


def _stretch(patient: Patient, steps: int, budget: Budget) -> int:
    """Take about `steps` steps, then reset; return how many there were."""
    done = 0
    while done < steps and (not done or not budget.is_spent):
        patient.step(patient.action_space.sample())
        done += 1
    patient.reset(None)
    return done


def _take() -> tracemalloc.Snapshot:
    gc.collect()
    return tracemalloc.take_snapshot().filter_traces(_OWN)


def judge_growth(growth: Growth, steps: int) -> Iterator[Finding]:
    """Tell of a leak; `steps` are those of the main trial."""
    half = growth.steps / 2
    least = max(_LEAST_PER_STEP * half, _LEAST_GROWTH)
    if growth.steps >= _LEAST_STEPS and min(growth.first, growth.second) >= least:
        per_step = growth.second / half
        yield _leak(
            f"memory grows by {_tell(per_step)} per step ({growth.steps:,} steps), most of it allocated at "
            f"{growth.line}: let reset() drop what was kept, or a long run fills the machine's memory."
        )
    elif min(growth.resident) >= _LEAST_RESIDENT:
        per_step = sum(growth.resident) / max(1, steps)
        yield _leak(
            f"the process grows by {_tell(per_step)} per step ({steps:,} steps), outside of Python's own memory: look "
            "for what the simulator allocates and never frees."
        )
    else:
        yield Finding("ok", "memory", f"does not grow ({steps:,} steps)")


def _leak(text: str) -> Finding:
    return Finding("error", "memory", text)


def _tell(bytes_: float) -> str:
    return f"{bytes_:,.0f} bytes" if bytes_ < 1e4 else f"{bytes_ / 1e3:,.0f} kB"


def find_resident_growth(readings: Sequence[int]) -> tuple[int, int]:
    """Return by how much the process's memory grew in two halves of a trial, after its first quarter."""
    settled = readings[len(readings) // 4 :]
    if len(settled) < _LEAST_READINGS:
        return 0, 0
    middle = settled[len(settled) // 2]
    return middle - settled[0], settled[-1] - middle
