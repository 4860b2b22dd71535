"""The one configuration that the timed benchmarks share, and its parts; measures nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastac.build import Parts, build, build_envs
from fastac.config import Config
from fastac.contract import VecEnv
from fastac.learner import Learner
from fastac.rollout import Collector, Rollout

NUM_ENVS = (64, 256, 1024, 4096)

# Does the workload once and returns how many steps that was.
Work = Callable[[], int]


class Measure(Protocol):
    """The fixture `measure`: times a workload under a name."""

    def __call__(self, workload: str, work: Work) -> None: ...


def lecture_net(num_envs: int) -> Config:
    """A2C on CartPole-v1 with the lecture's network: one trunk, 128-128 ReLU."""
    return Config().replace(
        env_id="CartPole-v1",
        algo="a2c",
        num_envs=num_envs,
        num_steps=16,
        hidden_sizes=(128, 128),
        activation="relu",
        shared_trunk=True,
        # Too small to move the policy: it stays the untrained one, and with it the share of resets,
        # however long is measured. An update costs the same at any rate.
        learning_rate=1e-12,
        total_env_steps=10**12,
    )


def cartpoles(config: Config) -> VecEnv:
    return build_envs(config.env, np.random.SeedSequence(0))


def whole_run(config: Config) -> Parts:
    return build(config, cartpoles(config))


def split(parts: Parts) -> tuple[Collector, Learner]:
    """Return the trainer's own two halves: assembled anew here, they could differ from what trains."""
    return parts.trainer._collector, parts.trainer._learner


def random_actions(num_steps: int, num_envs: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 2, size=(num_steps, num_envs))  # [T, N]


def count_valid(rollout: Rollout) -> int:
    return int(np.count_nonzero(rollout.valid.numpy()))
