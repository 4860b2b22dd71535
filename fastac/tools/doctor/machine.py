"""Judges what an environment costs, and whether other processes can have it."""

from __future__ import annotations

import cProfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import numpy as np

from fastac.config import EnvConfig
from fastac.cpu import count_cores
from fastac.envs import Given, has_compiled
from fastac.envs.trial import PROCESS_WORTH_US
from fastac.pickling import GUARD, UNSENDABLE, UnsendableError, pickled
from fastac.text import tell_us
from fastac.tools.doctor.budget import Budget
from fastac.tools.doctor.findings import Finding
from fastac.tools.doctor.patient import Batch, Clock, Patient

_PROFILED = 100  # steps
_OWN_SHARE = 0.3  # of the time, from which on a function is named
_CHEAP_US = 100.0  # a step below that is mostly the profiler's
_RESET_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Cost:
    """Where the time of steps goes.

    Attributes:
        function: the function with the largest share of its own, as name (file:line); empty if none stands out.
        share: of the time.
    """

    function: str
    share: float


def profile(patient: Patient, budget: Budget) -> Cost:
    """Find the function that takes most of the time.

    Raises:
        EnvFailure: the environment failed.
    """
    patient.reset(0)
    profiler = cProfile.Profile()
    for _ in range(_PROFILED):
        action = patient.action_space.sample()
        profiler.enable()
        try:
            patient.step(action)
        finally:
            profiler.disable()
        if budget.is_spent:
            break
    entries = profiler.getstats()
    largest = max(entries, key=lambda entry: entry.inlinetime)
    return Cost(_name(largest.code), largest.inlinetime / (sum(entry.inlinetime for entry in entries) or 1.0))


def _name(code: CodeType | str) -> str:
    if isinstance(code, str):  # of a compiled function: <built-in method name>
        return code.strip("<>{}").removeprefix("built-in method ")
    return f"{code.co_qualname} ({Path(code.co_filename).name}:{code.co_firstlineno})"


def judge_time(patient: Patient, clock: Clock, cost: Cost, config: EnvConfig, given: Given | None) -> Iterator[Finding]:
    """Tell what steps and resets cost, and what would be faster."""
    if not clock.step_s:
        return
    step_us, spent_s = 1e6 * float(np.median(clock.step_s)), sum(clock.step_s)
    resets = sum(clock.reset_s) / (sum(clock.reset_s) + spent_s)
    what = f"a step of {patient.num_envs} envs" if patient.num_envs > 1 else "a step"
    told = f"{what} takes {tell_us(step_us)}, resets are {resets:.0%} of the time"
    if step_us > _CHEAP_US and cost.share > _OWN_SHARE:
        told += f", and {cost.function} is {cost.share:.0%} of a step"
    yield Finding("ok", "time", told)
    if getattr(patient.env, "render_mode", None) == "human":
        yield Finding(
            "warning", "time", "render_mode is 'human', so every step draws a window: train with render_mode=None."
        )
    if resets > _RESET_SHARE:
        reset_us = 1e6 * float(np.mean(clock.reset_s))
        yield Finding(
            "note", "time", f"resets take {resets:.0%} of the time, {tell_us(reset_us)} each: make reset() cheaper."
        )
    if not isinstance(patient, Batch):
        yield from _suggest(step_us, config, given)


def _suggest(step_us: float, config: EnvConfig, given: Given | None) -> Iterator[Finding]:
    if has_compiled(config, given):
        yield Finding("ok", "time", "fastac trains on its compiled version, which costs a fraction of that")
    elif step_us > PROCESS_WORTH_US and count_cores() > 1:
        yield Finding(
            "note",
            "time",
            f"a step of {tell_us(step_us)} is worth processes of its own: vectorization auto uses {count_cores()} of "
            "them, and fastac tune measures what is fastest.",
        )


def judge_sending(config: EnvConfig, given: Given | None) -> Iterator[Finding]:
    """Look whether the environment can be built in other processes."""
    try:
        sent = pickled((given, config.env_kwargs), UNSENDABLE)
    except UnsendableError as error:
        yield Finding(
            "warning",
            "processes",
            f"other processes cannot build it ({error.reason}), so a run has one worker: define it at the top level of "
            "a module, with nothing in it that is open.",
        )
        return
    if sent.needs_script:
        yield Finding("note", "processes", f"other processes import your script to build it: {GUARD}.")
        return
    yield Finding("ok", "processes", "other processes can build it")
