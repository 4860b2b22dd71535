"""The environment under examination, single or batched, behind one way of stepping it.

What happens is told as events: a reset or a step of one environment. An environment that has ended is reset as the
trainer would do it, so that a batch in any autoreset mode and a single environment tell the same story.
"""

from __future__ import annotations

import random
import sys
import time
import warnings
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, cast

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import iterate

from fastac.config import EnvConfig
from fastac.contract import ActionArray, BoolArray, EnvFailure
from fastac.envs import Given, comes_batched, make_batch, make_single
from fastac.envs.cautions import ignores_seeds
from fastac.envs.failure import describe
from fastac.envs.flatten import call_masks
from fastac.envs.limits import find_time_limit
from fastac.envs.masks import MASK_KEY, MaskReader, ask_mask, find_mask_source, read_batch_info
from fastac.envs.mistakes import blame, check_reset
from fastac.envs.reading import find_batch_source
from fastac.envs.spaces import ArraySpace
from fastac.envs.state import BatchedEnv, SingleEnv
from fastac.tools.doctor.findings import Seen
from fastac.tools.doctor.masks import Masks

_BATCH = 4  # environments of a batch
_SEED = np.random.SeedSequence(0)
_WHEN = "when it was examined"

Action: TypeAlias = object


@dataclass(slots=True)
class Event:
    """A reset or a step of one environment.

    Attributes:
        env: its index.
        obs: the observation; after the end of an episode the final one.
        reward: as it was returned; None after a reset.
        terminated: likewise.
        truncated: likewise.
        info: likewise.
    """

    env: int
    obs: object
    reward: object = None
    terminated: object = False
    truncated: object = False
    info: object = None

    @property
    def is_reset(self) -> bool:
        """Whether an episode begins."""
        return self.reward is None

    @property
    def has_ended(self) -> bool:
        """Whether an episode has ended."""
        return bool(self.terminated or self.truncated)


@dataclass(slots=True)
class Clock:
    """Seconds of the calls of `step` and `reset`."""

    step_s: array[float] = field(default_factory=lambda: array("d"))
    reset_s: array[float] = field(default_factory=lambda: array("d"))


class Patient(Protocol):
    """An environment, or a batch of some."""

    num_envs: int
    clock: Clock
    observation_space: ArraySpace  # of one environment
    action_space: ArraySpace  # what `step` takes: of one environment, or of the batch
    max_episode_steps: int | None
    masks: Masks

    @property
    def env(self) -> SingleEnv | BatchedEnv:
        """The environment itself."""

    def reset(self, seed: int | None) -> list[Event]:
        """Begin an episode in every environment."""

    def step(self, action: Action) -> list[Event]:
        """Step every environment by a legal action; one that had ended is reset before or instead."""

    def goes_on(self, action: Action) -> bool | None:
        """Step once more after an end; return whether it says that nothing has ended. None: that cannot be tried."""

    def get_ended(self) -> list[bool]:
        """Return which environments the next step resets."""

    def set_ended(self, ended: Sequence[bool]) -> None:
        """Continue after the state of an environment was restored."""

    def close(self) -> None:
        """Close it.

        Raises:
            EnvFailure: it raised.
        """


class Single:
    """A single environment."""

    num_envs = 1

    def __init__(self, env: SingleEnv, name: str, mask_actions: bool = True) -> None:
        """Take an environment that was not reset yet, and whether to look for action masks."""
        self.env: SingleEnv = env
        self._name, self.clock = name, Clock()
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.max_episode_steps = find_time_limit(env)
        self.masks, self._mask_actions = Masks(env.action_space, 1), mask_actions
        self._ended = True

    def reset(self, seed: int | None) -> list[Event]:
        """See `Patient`.

        Raises:
            EnvFailure: it raised, or returned something else than an observation and an info.
        """
        began_s = time.perf_counter()
        try:
            returned = self.env.reset(seed=seed)
        except Exception as error:
            raise blame(error, "reset", self.env, self._name, _WHEN) from error
        self.clock.reset_s.append(time.perf_counter() - began_s)
        obs, info = check_reset(returned, self._name)
        self._ended = False
        if self.masks.choices and self._mask_actions and self.masks.source is None:
            self.masks.source = find_mask_source(self.env, info if isinstance(info, dict) else {})
        self._see_mask(obs, info)
        return [Event(0, obs, info=info)]

    def step(self, action: Action) -> list[Event]:
        """See `Patient`.

        Raises:
            EnvFailure: it raised, or returned something else than five values.
        """
        if self._ended:
            return self.reset(None)
        taken = deepcopy(self.masks.make_legal(action))  # an environment may change it
        began_s = time.perf_counter()
        try:
            obs, reward, terminated, truncated, info = self.env.step(cast(ActionArray, taken))
            self.clock.step_s.append(time.perf_counter() - began_s)
            self._ended = bool(terminated or truncated)
        except Exception as error:
            raise blame(error, "step", self.env, self._name, _WHEN) from error
        if reward is None:
            raise EnvFailure(f"{self._name}: step() returned the reward None, expected a number.")
        self._see_mask(obs, info)
        return [Event(0, obs, reward, terminated, truncated, info)]

    def _see_mask(self, obs: object, info: object) -> None:
        def read(reader: MaskReader) -> BoolArray:
            source = self.masks.source
            assert source is not None
            is_inside = source == "observation"
            found = _mask_of(obs) if is_inside else ask_mask(self.env, info if isinstance(info, dict) else {}, source)
            return reader.read(found)[None]

        self.masks.see(read, np.array([self._ended]))

    def draw(self) -> ActionArray:
        """Return a legal action for the environment's own `step`; resets it if that takes a mask."""
        if self.masks.source is not None:
            self.reset(None)
        return cast(ActionArray, self.masks.make_legal(self.env.action_space.sample()))

    def goes_on(self, action: Action) -> bool | None:
        """See `Patient`; an environment may refuse this step."""
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium's own environments warn
            _, _, terminated, truncated, _ = self.env.step(cast(ActionArray, deepcopy(action)))
            return not (terminated or truncated)
        return None

    def get_ended(self) -> list[bool]:
        """See `Patient`."""
        return [self._ended]

    def set_ended(self, ended: Sequence[bool]) -> None:
        """See `Patient`."""
        (self._ended,) = ended

    def close(self) -> None:
        """See `Patient`."""
        _close(self.env, self._name)


class Batch:
    """A vector environment, read in the autoreset mode that it declares.

    Attributes:
        mode: the declared mode; None: it declares none.
        rewarded: NEXT_STEP: steps that only reset, yet gave a reward or an end.
        without_final: SAME_STEP: ends without a final observation in the infos.
        same_final: SAME_STEP: ends whose final observation is the first one of the next episode.
        masked: DISABLED: resets of some environments that changed others.
        ends: episodes that ended.
    """

    def __init__(self, env: BatchedEnv, name: str, mask_actions: bool = True) -> None:
        """Take a batch that was not reset yet, and whether to look for action masks."""
        self.env: BatchedEnv = env
        self._name, self.clock, self.num_envs = name, Clock(), env.num_envs
        self.observation_space, self.action_space = env.single_observation_space, env.action_space
        self.max_episode_steps = find_time_limit(env)
        mode = env.metadata.get("autoreset_mode")
        self.mode = mode if isinstance(mode, AutoresetMode) else None
        self.masks, self._mask_actions = Masks(env.single_action_space, env.num_envs), mask_actions
        self._takes_seed = not ignores_seeds(env)
        self._ended = np.ones(env.num_envs, dtype=np.bool_)
        self._rows: list[object] = []
        self.rewarded, self.without_final, self.same_final, self.masked = Seen(), Seen(), Seen(), Seen()
        self.ends = 0

    def reset(self, seed: int | None) -> list[Event]:
        """See `Patient`.

        Raises:
            EnvFailure: it raised.
        """
        obs = self._reset(seed if self._takes_seed else None, None)
        self._ended[:] = False
        return [Event(index, row) for index, row in enumerate(obs)]

    def _reset(self, seed: int | None, options: dict[str, object] | None) -> list[object]:
        began_s = time.perf_counter()
        try:
            obs, infos = self.env.reset(seed=seed, options=options)
            self.clock.reset_s.append(time.perf_counter() - began_s)
            rows = list(iterate(self.env.observation_space, obs))
        except Exception as error:
            raise EnvFailure(f"{self._name} raised {describe(error)} in reset {_WHEN}.") from error
        if self.masks.choices and self._mask_actions and self.masks.source is None:
            self.masks.source = find_batch_source(self.env, infos)
        anew = self._ended if options is not None else np.ones_like(self._ended)
        self._see_masks(obs, infos, np.zeros_like(anew), anew.copy())
        return rows

    def _see_masks(self, obs: object, infos: Mapping[str, object], is_over: BoolArray, anew: BoolArray) -> None:
        def read(reader: MaskReader) -> BoolArray:
            if self.masks.source == "info":
                return read_batch_info(infos, self.num_envs, reader)[0]
            if self.masks.source == "observation":
                return reader.read(_mask_of(obs), self.num_envs)
            return call_masks(self.env, reader)

        self.masks.see(read, is_over, anew)

    def step(self, action: Action) -> list[Event]:
        """See `Patient`.

        Raises:
            EnvFailure: it raised, or returned arrays of other shapes.
        """
        events: list[Event] = []
        if self.mode is AutoresetMode.DISABLED and self._ended.any():
            events = self._reset_ended()
        taken = deepcopy(self.masks.make_legal(action))
        began_s = time.perf_counter()
        try:
            obs, reward, terminated, truncated, infos = self.env.step(cast(ActionArray, taken))
            self.clock.step_s.append(time.perf_counter() - began_s)
            rows = list(iterate(self.env.observation_space, obs))
            shapes = {np.shape(reward), np.shape(terminated), np.shape(truncated)}
        except Exception as error:
            raise EnvFailure(f"{self._name} raised {describe(error)} in step {_WHEN}.") from error
        if shapes != {(self.num_envs,)} or len(rows) != self.num_envs:
            raise EnvFailure(
                f"{self._name} returned rewards and flags of the shapes {sorted(shapes)}, expected {(self.num_envs,)}."
            )
        was_over, self._rows = self._ended, rows
        self._ended = np.logical_or(terminated, truncated)
        is_over = np.zeros_like(self._ended) if self.mode is AutoresetMode.SAME_STEP else self._ended
        self._see_masks(obs, infos, is_over, np.ones_like(self._ended))
        for index, row in enumerate(rows):
            event = Event(index, row, reward[index], terminated[index], truncated[index])
            events += self._read(event, bool(was_over[index]), infos)
        return events

    def _read(self, event: Event, was_over: bool, infos: Mapping[str, object]) -> list[Event]:
        """Return what a row of a step tells in the declared mode."""
        if self.mode is AutoresetMode.NEXT_STEP and was_over:
            if event.reward != 0.0 or event.has_ended:
                self.rewarded.add(f"reward {float(np.asarray(event.reward)):g}")
            self._ended[event.env] = False
            return [Event(event.env, event.obs)]
        self.ends += event.has_ended
        if self.mode is AutoresetMode.SAME_STEP and event.has_ended:
            began, event.obs = Event(event.env, event.obs), self._find_final(event, infos)
            return [event, began]
        return [event]

    def _find_final(self, event: Event, infos: Mapping[str, object]) -> object:
        finals, index = infos.get("final_obs"), event.env
        has_final = np.asarray(infos.get("_final_obs", np.ones(self.num_envs, np.bool_)))[index]
        if isinstance(finals, np.ndarray) and has_final and finals[index] is not None:
            if np.array_equal(np.asarray(finals[index]), np.asarray(event.obs)):
                self.same_final.add(f"env {index}")
            return finals[index]
        if isinstance(finals, Mapping | tuple) and has_final:
            return list(iterate(self.env.observation_space, finals))[index]
        self.without_final.add(f"env {index}")
        return event.obs

    def _reset_ended(self) -> list[Event]:
        """Reset the environments that have ended, and see whether the others stay as they were."""
        mask, before = self._ended.copy(), deepcopy(self._rows)
        rows = self._reset(None, {"reset_mask": mask.copy()})
        for index in np.flatnonzero(~mask):
            if repr(rows[index]) != repr(before[index]):
                self.masked.add(f"env {index}")
        return [Event(int(index), rows[index]) for index in np.flatnonzero(mask)]

    def goes_on(self, action: Action) -> bool | None:
        """See `Patient`; a batch resets by itself."""
        return None

    def get_ended(self) -> list[bool]:
        """See `Patient`."""
        return [bool(over) for over in self._ended]

    def set_ended(self, ended: Sequence[bool]) -> None:
        """See `Patient`."""
        self._ended[:] = ended

    def close(self) -> None:
        """See `Patient`."""
        _close(self.env, self._name)


def _mask_of(obs: object) -> object:
    return cast("Mapping[str, object]", obs)[MASK_KEY]


def _close(env: SingleEnv | BatchedEnv, name: str) -> None:
    try:
        env.close()
    except Exception as error:
        raise EnvFailure(f"{name} raised {describe(error)} in close {_WHEN}.") from error


def build_patient(config: EnvConfig, given: Given | None) -> Single | Batch:
    """Build the environment of a configuration, or a batch of four if it only comes in batches.

    Raises:
        ValueError: an unknown id, or a missing package.
        EnvFailure: it could not be built.
    """
    if comes_batched(config, given):
        return Batch(make_batch(config, _SEED, _BATCH, given), config.env_id, config.mask_actions)
    return Single(make_single(config, given=given), config.env_id, config.mask_actions)


def global_streams() -> dict[str, object]:
    """Return the states of the global random streams, by their names."""
    kind, keys, place, *rest = np.random.get_state(legacy=True)
    streams: dict[str, object] = {
        "Python's": random.getstate(),
        "NumPy's": (kind, np.asarray(keys).tobytes(), place, *rest),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        streams["torch's"] = torch.get_rng_state().numpy().tobytes()
    return streams
