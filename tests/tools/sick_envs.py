"""Environments with one fault each, for the doctor to find; `Healthy` has none."""

from __future__ import annotations

import random
from typing import ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit

LIMIT = 30


class Healthy(gym.Env):
    """A walk on a line, from near the middle to either end; its state can be saved."""

    observation_space = Box(-2.0, 2.0, (2,), np.float32)
    action_space = Discrete(2)
    max_episode_steps = LIMIT

    def __init__(self, level: int = 1, render_mode: str | None = None) -> None:
        self.level, self.render_mode = level, render_mode
        self.place, self.steps = 0.0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> tuple:
        super().reset(seed=seed)
        self.place, self.steps = self.draw(), 0
        return self.show(), {}

    def draw(self) -> float:
        return float(self.np_random.uniform(-0.1, 0.1))

    def show(self) -> np.ndarray:
        return np.array([self.place, self.steps / LIMIT], np.float32)

    def step(self, action: int) -> tuple:
        self.steps += 1
        self.place += 0.15 if action else -0.15
        terminated = self.is_over()
        return self.show(), self.pay(), terminated, not terminated and self.steps >= LIMIT, {}

    def is_over(self) -> bool:
        return abs(self.place) > 1.0

    def pay(self) -> float:
        return 1.0 - abs(self.place)

    def get_state(self) -> dict[str, float]:
        return {"place": self.place, "steps": float(self.steps)}

    def set_state(self, state: dict[str, float]) -> None:
        self.place, self.steps = float(state["place"]), int(state["steps"])


class NoMaskLater(Healthy):
    """Its reset tells a mask, and its steps do not."""

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> tuple:
        return super().reset(seed=seed)[0], {"action_mask": np.ones(2, np.int8)}


class NanReward(Healthy):
    def pay(self) -> float:
        return float("nan") if self.steps == 7 else 1.0


class InfiniteObs(Healthy):
    def show(self) -> np.ndarray:
        return np.array([self.place, np.inf if self.steps == 7 else 0.0], np.float32)


class Outside(Healthy):
    observation_space = Box(-0.5, 0.5, (2,), np.float32)


class OutsideDiscrete(Healthy):
    observation_space = Discrete(8)

    def show(self) -> int:
        return self.steps % 9


class WrongDtype(Healthy):
    def show(self) -> np.ndarray:
        return super().show().astype(np.float64)


class WrongShape(Healthy):
    def show(self) -> np.ndarray:
        return super().show()[None]


class RewardOfArray(Healthy):
    def pay(self) -> np.ndarray:
        return np.ones(1)


class HugeReward(Healthy):
    def pay(self) -> float:
        return 1e6 * super().pay()


class TinyReward(Healthy):
    def pay(self) -> float:
        return 1e-6 * super().pay()


class NoReward(Healthy):
    def pay(self) -> float:
        return 0.0


class LargeObs(Healthy):
    observation_space = Box(-np.inf, np.inf, (2,), np.float32)

    def show(self) -> np.ndarray:
        return 1e3 * super().show()


class SeedIgnored(Healthy):
    def __init__(self) -> None:
        super().__init__()
        self.own = np.random.default_rng(0)

    def draw(self) -> float:
        return float(self.own.uniform(-0.1, 0.1))


class GlobalNumpy(Healthy):
    def draw(self) -> float:
        return float(np.random.uniform(-0.1, 0.1))


class GlobalPython(Healthy):
    def draw(self) -> float:
        return random.uniform(-0.1, 0.1)


class Entropy(Healthy):
    """Another episode with every instance."""

    def __init__(self) -> None:
        super().__init__()
        self.gravity = np.random.default_rng().uniform()

    def show(self) -> np.ndarray:
        return np.array([self.place, self.gravity], np.float32)


class NoRandomness(Healthy):
    def draw(self) -> float:
        return 0.0


class Reused(Healthy):
    """Returns the same array each time."""

    def __init__(self) -> None:
        super().__init__()
        self.array = np.zeros(2, np.float32)

    def show(self) -> np.ndarray:
        self.array[:] = super().show()
        return self.array


class Leaks(Healthy):
    kept: ClassVar[list[np.ndarray]] = []

    def show(self) -> np.ndarray:
        self.kept.append(np.zeros(50))
        return super().show()


class LimitAsEnd(Healthy):
    """A time limit that is declared, and reported as a termination."""

    def is_over(self) -> bool:
        return self.steps >= LIMIT


class HiddenLimitAsEnd(LimitAsEnd):
    max_episode_steps = None


class PastLimit(Healthy):
    max_episode_steps = 5


class BothFlags(Healthy):
    def step(self, action: int) -> tuple:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated or truncated, terminated or truncated, info


class Endless(Healthy):
    max_episode_steps = None

    def step(self, action: int) -> tuple:
        obs, reward, *_, info = super().step(action)
        self.place, self.steps = float(np.clip(self.place, -1.0, 1.0)), self.steps % LIMIT
        return obs, reward, False, False, info


class NeverBegins(Healthy):
    """The flag of the end survives `reset`."""

    over = False

    def is_over(self) -> bool:
        self.over = self.over or super().is_over()
        return self.over


class ResetsItself(Healthy):
    """Returns the first observation of the next episode in place of the final one."""

    def step(self, action: int) -> tuple:
        obs, reward, terminated, truncated, info = super().step(action)
        if terminated or truncated:
            obs, _ = self.reset()
        return obs, reward, terminated, truncated, info


class GoesOn(Healthy):
    """A step after the end begins again."""

    def step(self, action: int) -> tuple:
        if abs(self.place) > 1.0 or self.steps >= LIMIT:
            self.reset()
        return super().step(action)


class BadState(Healthy):
    def get_state(self) -> dict[str, float]:
        return {"place": self.place, "steps": 0.0}


class RaisingState(Healthy):
    def get_state(self) -> dict[str, float]:
        raise KeyError("place")


class NoState(Healthy):
    get_state = None


class Afraid(Healthy):
    """Does not take the borders of its action space."""

    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def step(self, action: np.ndarray) -> tuple:
        if abs(float(action[0])) == 1.0:
            raise ZeroDivisionError("1 - a**2")
        return super().step(int(action[0] > 0.0))


class Falls(Healthy):
    """Raises in the middle of an episode."""

    def step(self, action: int) -> tuple:
        if self.steps == 8:
            raise RuntimeError("the simulator fell over")
        return super().step(action)


class OldReset(Healthy):
    """Takes no seed and no options."""

    def reset(self) -> tuple:
        return super().reset()


class OldStep(Healthy):
    def step(self, action: int) -> tuple:
        obs, reward, terminated, *_ = super().step(action)
        return obs, reward, terminated, {}


class Draws(Healthy):
    metadata: ClassVar = {"render_modes": ["human"], "render_fps": 30}

    def __init__(self) -> None:
        super().__init__(render_mode="human")

    def render(self) -> None:
        return None


class Clock:
    """A clock that only slow environments advance."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


CLOCK = Clock()


class Slow(Healthy):
    def step(self, action: int) -> tuple:
        CLOCK.now += 0.01
        return super().step(action)


class SlowReset(Healthy):
    def draw(self) -> float:
        CLOCK.now += 0.05
        return super().draw()


class CannotClose(Healthy):
    def close(self) -> None:
        raise OSError("no such window")


class Blind(Healthy):
    def show(self) -> np.ndarray:
        return np.zeros(2, np.float32)


class Texts(Healthy):
    observation_space = gym.spaces.Text(5)

    def show(self) -> str:
        return "left"


class Warns(Healthy):
    def pay(self) -> float:
        return float(np.nan_to_num(np.float64(self.place) / np.float64(0.0), posinf=1.0, neginf=-1.0))


class Telling(Healthy):
    def step(self, action: int) -> tuple:
        *rest, _ = super().step(action)
        return *rest, {"is_success": self.place > 1.0, "distance": abs(self.place), "name": "left"}


def make_limited() -> gym.Env:
    """A healthy one whose limit is Gymnasium's wrapper."""
    return TimeLimit(Healthy(), 20)


# --- batches ----------------------------------------------------------------------------------------


def make_with(file: object, level: int = 1) -> gym.Env:
    """Take something that is open."""
    return Healthy(level)


def make_healthy_batch(num_envs: int, mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> VectorEnv:
    return SyncVectorEnv([Healthy] * num_envs, autoreset_mode=mode)


class Declares(gym.vector.VectorWrapper):
    """Declares another autoreset mode than it has."""

    def __init__(self, env: VectorEnv, mode: AutoresetMode | None) -> None:
        super().__init__(env)
        self.metadata = {**env.metadata, "autoreset_mode": mode}


def make_same_as_next(num_envs: int) -> VectorEnv:
    return Declares(make_healthy_batch(num_envs, AutoresetMode.SAME_STEP), AutoresetMode.NEXT_STEP)


def make_next_as_same(num_envs: int) -> VectorEnv:
    return Declares(make_healthy_batch(num_envs), AutoresetMode.SAME_STEP)


def make_undeclared(num_envs: int) -> VectorEnv:
    return Declares(make_healthy_batch(num_envs), None)


class FirstAsFinal(gym.vector.VectorWrapper):
    """Gives the first observation of the next episode as the final one."""

    def step(self, actions: np.ndarray) -> tuple:
        obs, reward, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            for index in np.flatnonzero(infos["_final_obs"]):
                infos["final_obs"][index] = obs[index].copy()
        return obs, reward, terminated, truncated, infos


def make_first_as_final(num_envs: int) -> VectorEnv:
    return FirstAsFinal(make_healthy_batch(num_envs, AutoresetMode.SAME_STEP))


class IgnoresMask(gym.vector.VectorWrapper):
    """Resets all environments, whatever the mask says."""

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> tuple:
        return self.env.reset(seed=seed)


def make_without_mask(num_envs: int) -> VectorEnv:
    return IgnoresMask(make_healthy_batch(num_envs, AutoresetMode.DISABLED))
