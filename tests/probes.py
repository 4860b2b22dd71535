"""Tiny environments whose values are known, to hold learners to; importing this module registers them.

In the one-step probes the episode ends at once, so a value is a mean reward. Each is one id:
`probes:fastac/ConstantReward-v0` and so on, see the last lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, SupportsFloat, TypeAlias, cast

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space
from numpy.typing import NDArray

from fastac.contract import StateTree

Obs: TypeAlias = NDArray[np.float32]
DictObs: TypeAlias = Mapping[str, object]
Action: TypeAlias = np.int64 | NDArray[np.generic]
Info: TypeAlias = dict[str, object]
Ending: TypeAlias = Literal["terminated", "truncated", "both"]


class Probe(gym.Env[Obs, Action]):
    """An environment with one number to see, and one action unless a subclass has more."""

    observation_space: Space[Obs] = Box(-1.0, 1.0, (1,), np.float32)
    action_space: Space[Action] = Discrete(1)
    _seen = 0.0  # what the last observation showed

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> tuple[Obs, Info]:
        """Begin an episode with what `first` says."""
        super().reset(seed=seed)
        return self._show(self.first()), {}

    def step(self, action: Action) -> tuple[Obs, SupportsFloat, bool, bool, Info]:
        """End at once, with what `reward` says."""
        reward = self.reward(action)
        return self._show(0.0), reward, True, False, {}

    def first(self) -> float:
        """Return what the first observation shows."""
        return 0.0

    def reward(self, action: Action) -> float:
        """Return what `action` earns at the current observation."""
        return 1.0

    def _draw_sign(self) -> float:
        return float(self.np_random.integers(2)) * 2.0 - 1.0

    def _show(self, number: float) -> Obs:
        self._seen = number
        return np.array([number], dtype=np.float32)


class ConstantReward(Probe):
    """One step, reward 1: V = 1. Tests the critic's loss."""


class ObsReward(Probe):
    """One step, reward = observation, -1 or 1: V(obs) = obs. Tests that the critic sees."""

    def first(self) -> float:
        """Show a random sign."""
        return self._draw_sign()

    def reward(self, action: Action) -> float:
        """Pay what was seen."""
        return self._seen


class DelayedReward(Probe):
    """Two steps, observations 0 then 1, reward 1 at the end: V(0) = gamma, V(1) = 1. Tests bootstrapping."""

    def step(self, action: Action) -> tuple[Obs, SupportsFloat, bool, bool, Info]:
        """Go from 0 to 1, and from 1 to the end."""
        if self._seen == 0.0:
            return self._show(1.0), 0.0, False, False, {}
        return self._show(0.0), 1.0, True, False, {}


class ActionReward(Probe):
    """One step, reward 1 for action 1 and -1 for action 0. Tests the policy's loss."""

    action_space: Space[Action] = Discrete(2)

    def reward(self, action: Action) -> float:
        """Pay for action 1."""
        return 1.0 if action == 1 else -1.0


class ObsActionReward(Probe):
    """One step, reward 1 where the action's sign is the observation's, else -1. Tests that the policy sees."""

    action_space: Space[Action] = Discrete(2)

    def first(self) -> float:
        """Show a random sign."""
        return self._draw_sign()

    def reward(self, action: Action) -> float:
        """Pay for the sign that was seen."""
        return 1.0 if (action == 1) == (self._seen > 0.0) else -1.0


class ContinuousReward(Probe):
    """One step, reward -(a - 0.5)^2: the best mean is 0.5. Tests Gaussian policies."""

    action_space: Space[Action] = Box(-1.0, 1.0, (1,), np.float32)

    def reward(self, action: Action) -> float:
        """Pay for closeness to 0.5."""
        return -((float(np.asarray(action)[0]) - 0.5) ** 2)


class MultiDiscreteReward(Probe):
    """One step, half a reward for each of the two parts that is right (1 of 2, and 2 of 3)."""

    action_space: Space[Action] = MultiDiscrete([2, 3])
    _RIGHT = np.array([1, 2])

    def reward(self, action: Action) -> float:
        """Pay for each right part."""
        return float(np.mean(np.asarray(action) == self._RIGHT))


class MultiBinaryReward(Probe):
    """One step, a third of a reward for each of the three bits that is right (1, 0, 1)."""

    action_space: Space[Action] = MultiBinary(3)
    _RIGHT = np.array([1, 0, 1])

    def reward(self, action: Action) -> float:
        """Pay for each right bit."""
        return float(np.mean(np.asarray(action) == self._RIGHT))


class DictReward(gym.Env[DictObs, Action]):
    """One step, half a reward for each of the two parts of the observation that the action repeats.

    The parts are a word of three, and a sign in a nested dict. Tests that all of a dict is seen.
    """

    observation_space: Space[DictObs] = Dict(
        word=Discrete(3, start=-1), target=Dict(sign=Box(-1.0, 1.0, (1, 1), np.float32))
    )
    action_space: Space[Action] = MultiDiscrete([3, 2])
    _word, _sign = 0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> tuple[DictObs, Info]:
        """Begin an episode with a random word and sign."""
        super().reset(seed=seed)
        self._word, self._sign = int(self.np_random.integers(3)), float(self.np_random.integers(2)) * 2.0 - 1.0
        return self._show(), {}

    def step(self, action: Action) -> tuple[DictObs, SupportsFloat, bool, bool, Info]:
        """Pay for each part that is right, and end."""
        right = np.asarray(action) == [self._word, self._sign > 0.0]
        return self._show(), float(np.mean(right)), True, False, {}

    def get_state(self) -> StateTree:
        """Return what was shown."""
        return {"word": self._word, "sign": self._sign}

    def set_state(self, state: StateTree) -> None:
        """Take it back."""
        self._word, self._sign = cast("int", state["word"]), cast("float", state["sign"])

    def _show(self) -> DictObs:
        return {"word": np.int64(self._word - 1), "target": {"sign": np.array([[self._sign]], dtype=np.float32)}}


class ToyChain(Probe):
    """A deterministic chain: episodes of given lengths and endings, one after the other, and round again.

    Episode k shows its position 0, 1, 2, ... plus 100 k, and step t of it pays 10 k + t + 1 with action 0
    and 0.1 more with action 1. So every return is known.
    """

    observation_space: Space[Obs] = Box(-np.inf, np.inf, (1,), np.float32)
    action_space: Space[Action] = Discrete(2)

    def __init__(
        self, lengths: tuple[int, ...] = (3, 1, 1, 4), endings: tuple[Ending, ...] = ("terminated", "truncated", "both")
    ) -> None:
        """Take the cycles of lengths (in steps) and of endings."""
        self._lengths, self._endings = lengths, endings
        self._episode = -1
        self._position = 0

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> tuple[Obs, Info]:
        """Begin the next episode of the cycle, or the first one if seeded."""
        self._episode = 0 if seed is not None else self._episode + 1
        self._position = 0
        return super().reset(seed=seed)

    def first(self) -> float:
        """Show position 0 of the episode."""
        return 100.0 * self._episode

    def step(self, action: Action) -> tuple[Obs, SupportsFloat, bool, bool, Info]:
        """Go one position further."""
        self._position += 1
        reward = 10.0 * self._episode + self._position + 0.1 * float(np.asarray(action))
        ends = self._position == self._lengths[self._episode % len(self._lengths)]
        ending = self._endings[self._episode % len(self._endings)]
        terminated, truncated = ends and ending != "truncated", ends and ending != "terminated"
        return self._show(100.0 * self._episode + self._position), reward, terminated, truncated, {}

    def get_state(self) -> StateTree:
        """Return where in which episode it is; shows how an environment of one's own can be resumed."""
        return {"episode": self._episode, "position": self._position}

    def set_state(self, state: StateTree) -> None:
        """Go there."""
        self._episode, self._position = cast("int", state["episode"]), cast("int", state["position"])


class Memory(Probe):
    """A cue of -1 or 1 is shown once, then 0; reward 1 if the last of the steps repeats its sign, else -1."""

    action_space: Space[Action] = Discrete(2)

    def __init__(self, length: int = 4) -> None:
        """Take the number of steps."""
        self._length = length
        self._elapsed = 0
        self._cue = 0.0

    def first(self) -> float:
        """Draw and show the cue."""
        self._elapsed = 0
        self._cue = self._draw_sign()
        return self._cue

    def step(self, action: Action) -> tuple[Obs, SupportsFloat, bool, bool, Info]:
        """Wait, and pay at the last step."""
        self._elapsed += 1
        if self._elapsed < self._length:
            return self._show(0.0), 0.0, False, False, {}
        return self._show(0.0), 1.0 if (action == 1) == (self._cue > 0.0) else -1.0, True, False, {}


class ShortLong(Probe):
    """Episodes of 1 step or of 50, equally likely, reward 1 a step: the mean return is 25.5.

    Whoever counts the first episodes to end, of several environments, sees more of the short ones.
    """

    _LONG = 50

    def first(self) -> float:
        """Draw the length; the observation does not tell."""
        self._left = self._LONG if self.np_random.integers(2) else 1
        return 0.0

    def step(self, action: Action) -> tuple[Obs, SupportsFloat, bool, bool, Info]:
        """Pay 1."""
        self._left -= 1
        return self._show(0.0), 1.0, self._left == 0, False, {}


for _kind in (
    ConstantReward,
    ObsReward,
    DelayedReward,
    ActionReward,
    ObsActionReward,
    ContinuousReward,
    MultiDiscreteReward,
    MultiBinaryReward,
    DictReward,
    ToyChain,
    Memory,
    ShortLong,
):
    gym.register(id=f"fastac/{_kind.__name__}-v0", entry_point=f"{__name__}:{_kind.__name__}")
