"""Tianshou: its collector and A2C as its on-policy trainer runs them, and its GAE.

It lies apart from the other packages (see `requirements-tianshou.txt`), whose pinned versions it
would not accept: `benchmarks.contestant` puts that folder on the path.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import envpool
import gymnasium as gym
import numpy as np
import torch
from tianshou.algorithm import A2C
from tianshou.algorithm.algorithm_base import _gae
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, VectorReplayBuffer
from tianshou.env import BaseVectorEnv, DummyVectorEnv
from tianshou.utils.net.common import Net
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic
from tianshou.utils.torch_utils import policy_within_training_step

from benchmarks.peers import settings as s
from benchmarks.peers.nets import ACTIVATIONS, count_parameters
from benchmarks.peers.settings import Part, Task


@contextmanager
def a2c(
    num_envs: int, net: str, num_steps: int = 16, vec: str = "dummy", part: Part = "all", lr: float = s.FROZEN
) -> Iterator[Task]:
    torch.manual_seed(0)
    batch = num_envs * num_steps
    envs = _envs(num_envs, vec)
    algorithm = _algorithm(net, batch, lr)
    buffer = VectorReplayBuffer(batch, num_envs)
    collector = Collector(algorithm, envs, buffer)
    collector.reset()

    def collect() -> int:
        collector.reset_buffer(keep_statistics=True)
        collector.collect(n_step=batch)
        return batch

    def update() -> int:
        algorithm.update(buffer, batch_size=None, repeat=1)
        return batch

    def iterate() -> int:
        collect()
        return update()

    with policy_within_training_step(algorithm.policy):
        collect()
        work = {"collect": collect, "update": update, "all": iterate}[part]
        yield Task(work, facts=lambda: count_parameters(algorithm.parameters()))
    envs.close()


def _envs(num_envs: int, vec: str) -> BaseVectorEnv | gym.vector.VectorEnv:
    if vec == "envpool":
        return envpool.make_gymnasium(s.ENV_ID, num_envs=num_envs, seed=0, num_threads=1)
    return DummyVectorEnv([partial(gym.make, s.ENV_ID)] * num_envs)


def _algorithm(net: str, batch: int, lr: float) -> A2C:
    shape = s.NETS[net]
    make = partial(Net, state_shape=4, hidden_sizes=shape.hidden_sizes, activation=ACTIVATIONS[shape.activation])
    trunk = make()
    actor = DiscreteActor(preprocess_net=trunk, action_shape=2, softmax_output=False)
    critic = DiscreteCritic(preprocess_net=trunk if shape.shared else make())
    env = gym.make(s.ENV_ID)
    policy = DiscreteActorPolicy(actor=actor, action_space=env.action_space, observation_space=env.observation_space)
    return A2C(
        policy=policy,
        critic=critic,
        optim=AdamOptimizerFactory(lr=lr, eps=s.ADAM_EPS),
        gamma=s.GAMMA,
        gae_lambda=s.GAE_LAMBDA,
        ent_coef=s.ENT_COEF,
        vf_coef=s.VF_COEF,
        max_grad_norm=s.MAX_GRAD_NORM,
        max_batchsize=batch,  # values in one forward: its 256 is slower
    )


@contextmanager
def gae(num_steps: int, num_envs: int, form: str) -> Iterator[Task]:
    """`whole` is what its A2C calls; `kernel` the compiled part of it, which finds the masks made already."""
    inputs = s.gae_inputs(num_steps, num_envs)
    # As its buffer holds them: environments one after the other, float64 rewards.
    rows = _Rows(inputs)
    value, next_value = inputs.value[:-1].T.ravel(), inputs.value[1:].T.ravel()
    batch = Batch(rew=inputs.reward.T.ravel().astype("f8"), terminated=rows.terminated, truncated=rows.truncated)
    indices = np.arange(num_steps * num_envs)
    masked, end = next_value * ~rows.terminated, inputs.done.T.ravel()
    end[rows.unfinished_index()] = True

    def whole() -> int:
        A2C.compute_episodic_return(batch, rows, indices, next_value, value, s.GAMMA, s.GAE_LAMBDA)
        return len(indices)

    def kernel() -> int:
        advantage = _gae(value, masked, batch.rew, end, s.GAMMA, s.GAE_LAMBDA)
        _ = advantage + value  # the return
        return len(indices)

    yield Task({"whole": whole, "kernel": kernel}[form])


class _Rows:
    """What its GAE asks of a full buffer."""

    def __init__(self, inputs: s.GaeInputs) -> None:
        self.terminated, self.truncated = inputs.terminated.T.ravel(), inputs.truncated.T.ravel()
        self._last = np.arange(1, inputs.reward.shape[1] + 1) * inputs.reward.shape[0] - 1

    def unfinished_index(self) -> np.ndarray:
        return self._last[~(self.terminated | self.truncated)[self._last]]
