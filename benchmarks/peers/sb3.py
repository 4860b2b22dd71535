"""stable-baselines3: A2C, PPO, their rollout buffer's GAE, and its vector environment.

An iteration is its own `collect_rollouts` and `train`, as in `learn`, less what `learn` logs, and less the
Monitor around every environment, which costs it 7 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import gymnasium as gym
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from benchmarks.peers import settings as s
from benchmarks.peers.nets import ACTIVATIONS, count_parameters, hidden_layers
from benchmarks.peers.settings import Net, Part, Task


class Trunk(BaseFeaturesExtractor):
    """The shared layers: stable-baselines3 shares nothing but the features extractor."""

    def __init__(self, observation_space: gym.spaces.Box, net: Net) -> None:
        super().__init__(observation_space, net.hidden_sizes[-1])
        self.layers = hidden_layers(observation_space.shape[0], net)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.layers(observations)


@contextmanager
def a2c(num_envs: int, net: str, num_steps: int = 16, part: Part = "all", lr: float = s.FROZEN) -> Iterator[Task]:
    with _envs(num_envs) as envs:
        model = A2C(**_common(envs, net, num_steps, lr), use_rms_prop=False)
        yield _task(model, part)


@contextmanager
def ppo(num_envs: int, net: str, num_steps: int = 16, lr: float = s.FROZEN) -> Iterator[Task]:
    with _envs(num_envs) as envs:
        batch_size = num_envs * num_steps // s.PPO_MINIBATCHES
        model = PPO(
            **_common(envs, net, num_steps, lr), batch_size=batch_size, n_epochs=s.PPO_EPOCHS, clip_range=s.PPO_CLIP
        )
        yield _task(model, "all")


@contextmanager
def _envs(num_envs: int) -> Iterator[VecEnv]:
    envs = DummyVecEnv([partial(gym.make, s.ENV_ID)] * num_envs)
    yield envs
    envs.close()


def _common(envs: VecEnv, net: str, num_steps: int, lr: float) -> dict[str, object]:
    shape = s.NETS[net]
    policy: dict[str, object] = {"optimizer_kwargs": {"eps": s.ADAM_EPS}}
    if shape.shared:
        policy |= {"features_extractor_class": Trunk, "features_extractor_kwargs": {"net": shape}, "net_arch": []}
    else:
        policy |= {"net_arch": list(shape.hidden_sizes), "activation_fn": ACTIVATIONS[shape.activation]}
    return {
        "policy": "MlpPolicy",
        "env": envs,
        "learning_rate": lr,
        "n_steps": num_steps,
        "gamma": s.GAMMA,
        "gae_lambda": s.GAE_LAMBDA,
        "ent_coef": s.ENT_COEF,
        "vf_coef": s.VF_COEF,
        "max_grad_norm": s.MAX_GRAD_NORM,
        "policy_kwargs": policy,
        "seed": 0,
        "device": "cpu",
    }


def _task(model: OnPolicyAlgorithm, part: Part) -> Task:
    _, callback = model._setup_learn(total_timesteps=10**12)
    steps = model.n_steps * model.n_envs  # every step is a transition: DummyVecEnv resets in the same one

    def collect() -> int:
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        return steps

    def update() -> int:
        model.train()
        return steps

    def iterate() -> int:
        collect()
        return update()

    collect()
    work = {"collect": collect, "update": update, "all": iterate}[part]
    return Task(work, facts=lambda: count_parameters(model.policy.parameters()))


@contextmanager
def env(num_envs: int, num_steps: int = 16) -> Iterator[Task]:
    with _envs(num_envs) as envs:
        actions = s.random_actions(num_steps, num_envs)
        envs.reset()

        def work() -> int:
            for action in actions:
                envs.step(action)
            return num_steps * num_envs

        yield Task(work)


@contextmanager
def gae(num_steps: int, num_envs: int) -> Iterator[Task]:
    space = gym.spaces.Box(-1.0, 1.0, (1,))
    buffer = RolloutBuffer(num_steps, space, space, "cpu", gamma=s.GAMMA, gae_lambda=s.GAE_LAMBDA, n_envs=num_envs)
    inputs = s.gae_inputs(num_steps, num_envs)
    buffer.rewards[...], buffer.values[...] = inputs.reward, inputs.value[:-1]
    buffer.episode_starts[1:] = inputs.done[:-1]  # of row t: the episode ended in row t - 1
    last_values, dones = torch.from_numpy(inputs.value[-1]), inputs.done[-1]

    def work() -> int:
        buffer.compute_returns_and_advantage(last_values, dones)
        return num_steps * num_envs

    yield Task(work)
