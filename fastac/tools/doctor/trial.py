"""The main trial: random steps, and the record of what the environment returned."""

from __future__ import annotations

from array import array
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from fastac.envs.spaces import ArraySpace, space_dtype
from fastac.system import resident_bytes
from fastac.tools.doctor.budget import Budget
from fastac.tools.doctor.findings import Seen
from fastac.tools.doctor.leaves import find_leaves, to_vector
from fastac.tools.doctor.patient import Event, Patient

_MOST_NUMBERS = 512  # of an observation whose first and last values are kept
_MOST_COMPARED = 100_000  # of one that is compared with its copy
_READ_EVERY = 500  # steps: how often the process's memory is read
_MOST_KEPT = 100  # episodes whose observations are kept
_MOST_PAST = 10  # ends after which one more step is tried

Vector = NDArray[np.float64]


@dataclass(slots=True)
class Episode:
    """An episode that has ended.

    Attributes:
        length: number of steps.
        return_: sum of rewards.
        terminated: the flag of its last step.
        truncated: likewise.
        first: its first observation, as numbers; empty if it is too large, or not among the first episodes.
        before: the observation before the final one.
        final: the final one.
    """

    length: int
    return_: float
    terminated: bool
    truncated: bool
    first: Vector
    before: Vector
    final: Vector


@dataclass(slots=True)
class Moments:
    """Range and mean square of the numbers in one array of the observations, `[D]`."""

    low: Vector
    high: Vector
    square: Vector
    count: int = 0

    def add(self, values: Vector) -> None:
        """Take in another observation `[D]`."""
        np.minimum(self.low, values, out=self.low)
        np.maximum(self.high, values, out=self.high)
        self.square += values * values
        self.count += 1


@dataclass(slots=True)
class Trial:
    """The record of a trial.

    Attributes:
        space: of the observations.
        resets: number of resets.
        rewards: of all steps, as numbers.
        episodes: that have ended.
        going: length of the longest episode that has not ended.
        moments: of every Box of the observations, by name.
        broken: observations with other parts than the space.
        shapes: arrays of another shape.
        dtypes: arrays of another dtype.
        outside: Boxes with numbers beyond the bounds.
        unknown: other arrays that are not in their space.
        not_finite: arrays with NaN or infinity.
        reused: observations that a later call has changed.
        odd_rewards: rewards that are no number.
        rewards_not_finite: rewards that are NaN or infinite.
        past_ends: steps after an end: how many were tried, and how many said that nothing had ended.
        infos: numbers in the infos of ends, by key: how often.
        resident: the process's memory in bytes, read every now and then.
    """

    space: ArraySpace
    resets: int = 0
    rewards: array[float] = field(default_factory=lambda: array("d"))
    episodes: list[Episode] = field(default_factory=list)
    going: int = 0
    moments: dict[str, Moments] = field(default_factory=dict)
    broken: Seen = field(default_factory=Seen)
    shapes: Seen = field(default_factory=Seen)
    dtypes: Seen = field(default_factory=Seen)
    outside: Seen = field(default_factory=Seen)
    unknown: Seen = field(default_factory=Seen)
    not_finite: Seen = field(default_factory=Seen)
    reused: Seen = field(default_factory=Seen)
    odd_rewards: Seen = field(default_factory=Seen)
    rewards_not_finite: Seen = field(default_factory=Seen)
    past_ends: tuple[int, int] = (0, 0)
    infos: dict[str, int] = field(default_factory=dict)
    resident: list[int] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.rewards)

    @property
    def observations(self) -> int:
        """Number of observations."""
        return self.steps + self.resets


class Recorder:
    """Takes in events."""

    def __init__(self, patient: Patient) -> None:
        """Begin a record."""
        self.trial = Trial(patient.observation_space)
        self._lengths, self._returns = [0] * patient.num_envs, [0.0] * patient.num_envs
        nothing = np.zeros(0)
        self._first, self._before = [nothing] * patient.num_envs, [nothing] * patient.num_envs
        self._last: list[tuple[object, Vector]] = [(None, nothing)] * patient.num_envs
        self._when = ""

    def see(self, event: Event) -> None:
        """Record a reset or a step."""
        trial, index = self.trial, event.env
        self._when = f"at step {trial.steps + (not event.is_reset):,}"
        self._see_reuse(event)
        before, vector = self._last[index][1], to_vector(trial.space, event.obs)
        self._last[index] = (event.obs, vector)
        try:
            self._see_obs(event.obs)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            trial.broken.add(f"{type(error).__name__}: {error}")
        if event.is_reset:
            trial.resets += 1
            trial.going = max(trial.going, self._lengths[index])
            self._lengths[index], self._returns[index], self._first[index] = 0, 0.0, vector
            return
        self._see_reward(event)
        self._lengths[index] += 1
        if event.has_ended:
            self._see_end(event, before, vector)

    def finish(self) -> Trial:
        """Return the record."""
        self.trial.going = max(self.trial.going, *self._lengths)
        return self.trial

    def _see_reuse(self, event: Event) -> None:
        """See whether this call has changed the observation before."""
        obs, vector = self._last[event.env]
        if obs is None or vector.size > _MOST_COMPARED:
            return
        if not np.array_equal(to_vector(self.trial.space, obs), vector, equal_nan=True):
            self.trial.reused.add(self._when)

    def _see_obs(self, obs: object) -> None:
        trial = self.trial
        for name, space, value in find_leaves(trial.space, obs):
            what = f"{name} {self._when}".strip()
            found = np.asarray(value)
            if found.shape != space.shape:
                trial.shapes.add(f"{found.shape} for {space.shape} {what}")
                continue
            if isinstance(value, np.ndarray) and found.dtype != space_dtype(space):
                trial.dtypes.add(f"{found.dtype} for {space_dtype(space)} {what}")
            if isinstance(space, Box):
                self._see_box(name, space, found, what)
            elif not space.contains(value):
                trial.unknown.add(f"{value!r:.40} is not in {space} {what}")

    def _see_box(self, name: str, space: Box, found: NDArray[np.generic], what: str) -> None:
        """See whether an array of the right shape is within its bounds, and take in its numbers."""
        trial, values = self.trial, found.astype(np.float64)
        if not np.isfinite(values).all():
            at = _first_place(~np.isfinite(values))
            trial.not_finite.add(f"{values[at]:g} in element {_tell_place(at)} {what}")
            return
        is_out = (values < space.low) | (values > space.high)
        if is_out.any():
            at = _first_place(is_out)
            side, bound = ("below", space.low[at]) if values[at] < space.low[at] else ("above", space.high[at])
            trial.outside.add(f"{values[at]:.6g} in element {_tell_place(at)}, {side} {bound:.6g}, {what}")
        flat = values.ravel()
        if name not in trial.moments:
            trial.moments[name] = Moments(flat.copy(), flat.copy(), np.zeros_like(flat))
        trial.moments[name].add(flat)

    def _see_reward(self, event: Event) -> None:
        number = np.asarray(event.reward)
        if number.shape != () or number.dtype.kind not in "biuf":
            self.trial.odd_rewards.add(f"{event.reward!r:.40} {self._when}")
            number = np.asarray(0.0)
        elif not np.isfinite(number):
            self.trial.rewards_not_finite.add(f"{float(number):g} {self._when}")
        self.trial.rewards.append(float(number))
        self._returns[event.env] += float(number)

    def _see_end(self, event: Event, before: Vector, final: Vector) -> None:
        trial, index = self.trial, event.env
        is_kept = final.size <= _MOST_NUMBERS and len(trial.episodes) < _MOST_KEPT
        vectors = (self._first[index], before, final) if is_kept else (np.zeros(0),) * 3
        flags = bool(event.terminated), bool(event.truncated)
        trial.episodes.append(Episode(self._lengths[index], self._returns[index], *flags, *vectors))
        self._lengths[index] = 0
        if isinstance(event.info, dict):
            for key, value in event.info.items():
                if isinstance(key, str) and np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf":
                    trial.infos[key] = trial.infos.get(key, 0) + 1


def _first_place(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])


def _tell_place(place: tuple[int, ...]) -> str:
    return str(place[0]) if len(place) == 1 else str(list(place))


def play(patient: Patient, steps: int, seed: int, budget: Budget) -> Trial:
    """Take random steps, as many as the time allows; return their record.

    Raises:
        EnvFailure: the environment failed.
    """
    recorder = Recorder(patient)
    past = [0, 0]
    for event in patient.reset(seed):
        recorder.see(event)
    while recorder.trial.steps < steps and (not recorder.trial.steps or not budget.is_spent):
        if recorder.trial.steps >= _READ_EVERY * len(recorder.trial.resident):
            recorder.trial.resident.append(resident_bytes())
        action = patient.action_space.sample()
        events = patient.step(action)
        for event in events:
            recorder.see(event)
        if past[0] < _MOST_PAST and any(event.has_ended for event in events):
            recorder.trial.past_ends = _try_past_end(patient, action, past)
    return recorder.finish()


def _try_past_end(patient: Patient, action: object, past: list[int]) -> tuple[int, int]:
    goes_on = patient.goes_on(deepcopy(action))
    if goes_on is not None:
        past[0] += 1
        past[1] += goes_on
    return past[0], past[1]
