"""The whole examination: trials one after the other, each with its share of the time, then the judgements."""

from __future__ import annotations

import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import numpy as np

from fastac.config import EnvConfig, is_atari
from fastac.contract import EnvFailure
from fastac.envs import Given
from fastac.envs.cautions import find_cautions
from fastac.tools.doctor.batches import judge_autoreset
from fastac.tools.doctor.budget import Budget
from fastac.tools.doctor.checker import judge_gymnasium, judge_spaces, try_borders
from fastac.tools.doctor.episodes import judge_ends
from fastac.tools.doctor.findings import Diagnosis, Finding
from fastac.tools.doctor.leak import find_resident_growth, judge_growth, measure_growth
from fastac.tools.doctor.machine import judge_sending, judge_time, profile
from fastac.tools.doctor.masks import judge_masks
from fastac.tools.doctor.patient import Batch, Clock, Single, build_patient
from fastac.tools.doctor.repeats import FirstWalk, find_warnings, judge_repeats, repeat, walk_first
from fastac.tools.doctor.trial import Trial, play
from fastac.tools.doctor.values import judge_infos, judge_observations, judge_rewards

STEPS = 10_000
_SEED = 1


def examine(
    config: EnvConfig, given: Given | None = None, seconds: float = 10.0, steps: int | None = None
) -> Diagnosis:
    """Examine the environment of a configuration; see `doctor`.

    Args:
        config: names the environment and its arguments.
        given: the environment itself, if its name is not enough.
        seconds: limit of the time.
        steps: of the main trial, at most; 10,000 by default.

    Raises:
        ValueError: see `doctor`.
        EnvFailure: likewise.
    """
    if not 0.0 < seconds <= 86_400.0:
        raise ValueError(f"seconds is {seconds!r}, expected a number above 0, up to 86,400.")
    if is_atari(config.env_id):
        raise ValueError(
            f"env_id is {config.env_id!r}, expected an environment of your own or of Gymnasium: fastac plays the games "
            "of ALE/ in ALE's own batch, as its Atari settings say."
        )
    began_s, steps = time.monotonic(), steps or STEPS
    with _global_streams_kept(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        examination = _Examination(config, given, Budget(seconds), steps)
        findings = [*examination.run()]
    trial = examination.trial
    return Diagnosis(
        config.env_id,
        0 if trial is None else trial.steps,
        0 if trial is None else len(trial.episodes),
        time.monotonic() - began_s,
        trial is not None and trial.steps < steps and not any(finding.check == "failure" for finding in findings),
        (*findings, *find_warnings(caught)),
    )


class _Examination:
    """Runs the trials and yields what they find.

    Attributes:
        trial: the record of the main trial, once it is there.
    """

    def __init__(self, config: EnvConfig, given: Given | None, budget: Budget, steps: int) -> None:
        """Build the environment.

        Raises:
            ValueError, EnvFailure: it cannot be built.
        """
        self._config, self._given, self._budget, self._steps = config, given, budget, steps
        self._build = partial(build_patient, config, given)
        self.trial: Trial | None = None
        self._patient = self._build()
        self._patient.action_space.seed(_SEED)

    def run(self) -> Iterator[Finding]:
        """Examine; a failure of the environment ends it, and is a finding."""
        patient = self._patient
        for caution in find_cautions(patient.env):
            yield Finding("warning", "wrappers", f"{caution}.")
        try:
            yield from judge_spaces(patient, self._config)
            first = walk_first(patient, self._budget.part(0.03))  # while it is new
            yield from self._examine_steps(first.length)
            yield from self._examine_rest(first)
        except EnvFailure as error:
            yield Finding("error", "failure", str(error))
        finally:
            with suppress(Exception):  # some cannot be closed twice
                patient.close()
        yield from judge_masks(patient.masks)
        yield from judge_sending(self._config, self._given)

    def _examine_rest(self, first: FirstWalk) -> Iterator[Finding]:
        """Examine what there is still time for."""
        patient = self._patient
        parts: dict[str, Callable[[], Iterator[Finding]]] = {
            "seeds, state": lambda: judge_repeats(repeat(first, patient, self._build)),  # closes it, so it comes last
        }
        if isinstance(patient, Single):
            parts = {"gymnasium": partial(judge_gymnasium, patient)} | parts
        parts = {"actions, memory, time": self._examine_cost} | parts
        for done, examine_part in enumerate(parts.values()):
            if self._budget.is_spent:
                left_out = ", ".join(list(parts)[done:])
                yield Finding("note", "seconds", f"no time was left for these checks: {left_out}; raise --seconds.")
                return
            yield from examine_part()

    def _examine_steps(self, first_length: int) -> Iterator[Finding]:
        """Take random steps, and judge what was returned."""
        patient = self._patient
        self.trial = trial = play(patient, self._steps, _SEED, self._budget.part(0.45))
        yield from judge_observations(trial)
        yield from judge_rewards(trial)
        yield from judge_ends(trial, patient.max_episode_steps, first_length)
        yield from judge_infos(trial)
        if isinstance(patient, Batch):
            yield from judge_autoreset(patient)

    def _examine_cost(self) -> Iterator[Finding]:
        """Measure time and memory, and try the borders of the actions."""
        patient, trial = self._patient, self.trial
        assert trial is not None
        clock, patient.clock = patient.clock, Clock()  # what comes now is not typical
        yield from try_borders(patient, self._budget.part(0.1))
        growth = measure_growth(patient, self._steps, find_resident_growth(trial.resident), self._budget.part(0.5))
        yield from judge_growth(growth, trial.steps)
        cost = profile(patient, self._budget.part(0.2))
        yield from judge_time(patient, clock, cost, self._config, self._given)


@contextmanager
def _global_streams_kept() -> Iterator[None]:
    """Restore the global random streams, which an environment may use."""
    python, numpy = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    of_torch = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if torch is not None:
            torch.set_rng_state(of_torch)
