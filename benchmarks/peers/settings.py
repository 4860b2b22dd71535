"""What all contestants of one workload have in common; measures nothing and imports no contestant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

ENV_ID = "CartPole-v1"
# Too small to move the policy: it stays the untrained one, and with it the share of resets, however
# long is measured. An update costs the same at any rate.
FROZEN = 1e-12
GAMMA, GAE_LAMBDA = 0.99, 0.95
ENT_COEF, VF_COEF, MAX_GRAD_NORM, ADAM_EPS = 0.01, 0.5, 0.5, 1e-5
PPO_EPOCHS, PPO_MINIBATCHES, PPO_CLIP = 4, 4, 0.2
ATARI_PPO_CLIP = 0.1

# CartPole without velocities, by a trunk of one hidden layer and a recurrent core.
MASKED_ID = "fastac.envs.masked:fastac/MaskedCartPole-v1"
RECURRENT_SIZE = 64

# Atari by the protocol of Mnih et al. 2015, with FIRE pressed at a reset; each contestant's environments are set
# to these numbers. Sticky actions are off and the action set is the game's own, as published scores have them.
ATARI_ID = "ALE/Pong-v5"
NUM_ATARI_ACTIONS = 6  # Pong's
SCREEN_SIZE, FRAME_STACK, FRAME_SKIP, NOOP_MAX, MAX_FRAMES = 84, 4, 4, 30, 108_000

MUJOCO_ID = "HalfCheetah-v5"

# Does one unit of the workload and returns how many agent steps that was.
Work = Callable[[], int]
# Tells whatever else belongs in a row.
Facts = Callable[[], dict[str, float]]
# What of an iteration is the work: all of it, or only collecting or only updating.
Part = Literal["all", "collect", "update"]


@dataclass(frozen=True)
class Task:
    """What a contestant yields; call it to work.

    Attributes:
        work: does one unit.
        clock: seconds that only count up while what is measured goes on.
        facts: whatever else belongs in the row, asked for after the last round: `parameters` of the network,
            `frames_per_step` where steps are of an emulator, `..._bytes` that it says it takes.
    """

    work: Work
    clock: Callable[[], float] = perf_counter
    facts: Facts = dict

    def __call__(self) -> int:
        return self.work()


class Net(NamedTuple):
    hidden_sizes: tuple[int, ...]
    activation: Literal["relu", "tanh"]
    shared: bool  # one trunk for actor and critic, or one network each


NETS = {
    "lecture": Net((128, 128), "relu", shared=True),
    "separate": Net((64, 64), "tanh", shared=False),  # what the peers default to
}


RECURRENT_NET = Net((64,), "tanh", shared=True)


class Cnn(NamedTuple):
    """One trunk for actor and critic on stacks of frames, ReLU after every layer, scaled by 1/255."""

    convs: tuple[tuple[int, int, int], ...]  # channels, kernel, stride
    hidden_size: int


CNNS = {
    "nature": Cnn(((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512),  # Mnih et al. 2015
    "a3c": Cnn(((16, 8, 4), (32, 4, 2)), 256),  # Mnih et al. 2016
}


class GaeInputs(NamedTuple):
    """Random rewards, values and ends of episodes, of which one row in twenty has either kind."""

    reward: NDArray[np.float32]  # [T, N]
    value: NDArray[np.float32]  # [T+1, N]
    terminated: NDArray[np.bool_]  # [T, N]
    truncated: NDArray[np.bool_]  # [T, N]

    @property
    def done(self) -> NDArray[np.bool_]:
        return self.terminated | self.truncated


def frames() -> dict[str, float]:
    """The fact that goes with steps of an emulator."""
    return {"frames_per_step": float(FRAME_SKIP)}


def gae_inputs(num_steps: int, num_envs: int) -> GaeInputs:
    random = np.random.default_rng(0)
    shape = (num_steps, num_envs)
    return GaeInputs(
        random.standard_normal(shape, np.float32),
        random.standard_normal((num_steps + 1, num_envs), np.float32),
        random.random(shape) < 0.05,
        random.random(shape) < 0.05,
    )


def random_actions(num_steps: int, num_envs: int, num_actions: int = 2) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, num_actions, size=(num_steps, num_envs))  # [T, N]
