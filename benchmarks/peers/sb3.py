"""stable-baselines3: A2C, PPO, sb3-contrib's recurrent PPO, their rollout buffer's GAE, and its vector environment.

An iteration is its own `collect_rollouts` and `train`, as in `learn`, less what `learn` logs, and less the
Monitor around every environment, which costs it 7 %. On Atari all is as its own `make_atari_env` has it, the
Monitor too, whose share of a step is nothing there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import set_forkserver_preload

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from benchmarks.peers import settings as s
from benchmarks.peers.nets import ACTIVATIONS, conv_layers, count_parameters, hidden_layers
from benchmarks.peers.settings import Cnn, Facts, Net, Part, Task, Work


class Trunk(BaseFeaturesExtractor):
    """The shared layers: stable-baselines3 shares nothing but the features extractor."""

    def __init__(self, observation_space: gym.spaces.Box, net: Net) -> None:
        super().__init__(observation_space, net.hidden_sizes[-1])
        self.layers = hidden_layers(observation_space.shape[0], net)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.layers(observations)


class ConvTrunk(BaseFeaturesExtractor):
    """A network other than its own Nature CNN, from stacks that it has scaled."""

    def __init__(self, observation_space: gym.spaces.Box, cnn: Cnn) -> None:
        super().__init__(observation_space, cnn.hidden_size)
        self.layers = conv_layers(cnn)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.layers(observations)


@contextmanager
def a2c(num_envs: int, net: str, num_steps: int = 16, part: Part = "all", lr: float = s.FROZEN) -> Iterator[Task]:
    with _envs(num_envs) as envs:
        model = A2C(**_common(envs, num_steps, lr), **_mlp(net), use_rms_prop=False)
        yield _task(model, part)


@contextmanager
def ppo(num_envs: int, net: str, num_steps: int = 16, lr: float = s.FROZEN) -> Iterator[Task]:
    with _envs(num_envs) as envs:
        batch_size = num_envs * num_steps // s.PPO_MINIBATCHES
        model = PPO(
            **_common(envs, num_steps, lr),
            **_mlp(net),
            batch_size=batch_size,
            n_epochs=s.PPO_EPOCHS,
            clip_range=s.PPO_CLIP,
        )
        yield _task(model, "all")


@contextmanager
def recurrent_ppo(num_envs: int, num_steps: int = 128) -> Iterator[Task]:
    """sb3-contrib's, with one LSTM for actor and critic; its minibatches cut a rollout where they please."""
    from sb3_contrib import RecurrentPPO  # only this needs it

    envs = DummyVecEnv([partial(gym.make, s.MASKED_ID)] * num_envs)
    policy = {
        "features_extractor_class": Trunk,
        "features_extractor_kwargs": {"net": s.RECURRENT_NET},
        "net_arch": [],
        "lstm_hidden_size": s.RECURRENT_SIZE,
        "shared_lstm": True,
        "enable_critic_lstm": False,
        "optimizer_kwargs": {"eps": s.ADAM_EPS},
    }
    model = RecurrentPPO(
        **_common(envs, num_steps, s.FROZEN),
        policy="MlpLstmPolicy",
        policy_kwargs=policy,
        batch_size=num_envs * num_steps // s.PPO_MINIBATCHES,
        n_epochs=s.PPO_EPOCHS,
        clip_range=s.PPO_CLIP,
    )
    yield _task(model, "all")
    envs.close()


@contextmanager
def atari_a2c(num_envs: int, encoder: str, num_steps: int = 5, processes: bool = False) -> Iterator[Task]:
    """By its default optimiser, torch's RMSprop."""
    with _atari_envs(num_envs, processes) as envs:
        yield _task(A2C(**_common(envs, num_steps, s.FROZEN), **_cnn(encoder)), "all", s.frames)


@contextmanager
def atari_ppo(num_envs: int, encoder: str, num_steps: int = 128) -> Iterator[Task]:
    with _atari_envs(num_envs) as envs:
        model = PPO(
            **_common(envs, num_steps, s.FROZEN),
            **_cnn(encoder),
            batch_size=num_envs * num_steps // s.PPO_MINIBATCHES,
            n_epochs=s.PPO_EPOCHS,
            clip_range=s.ATARI_PPO_CLIP,
        )
        yield _task(model, "all", s.frames)


@contextmanager
def mujoco_a2c(num_envs: int, num_steps: int, processes: bool = False) -> Iterator[Task]:
    """By its default optimiser, torch's RMSprop; observations and rewards normalised.

    Without Gymnasium's checks of every step, as in fastac.
    """
    make = partial(gym.make, s.MUJOCO_ID, disable_env_checker=True)
    envs = VecNormalize((SubprocVecEnv if processes else DummyVecEnv)([make] * num_envs))
    yield _task(A2C(**_common(envs, num_steps, s.FROZEN), **_mlp("separate"), rms_prop_eps=s.ADAM_EPS), "all")
    envs.close()


@contextmanager
def _envs(num_envs: int) -> Iterator[VecEnv]:
    envs = DummyVecEnv([partial(gym.make, s.ENV_ID)] * num_envs)
    yield envs
    envs.close()


@contextmanager
def _atari_envs(num_envs: int, processes: bool = False) -> Iterator[VecEnv]:
    """Its wrappers around an id whose emulator skips nothing and repeats no action, so that only they do.

    One environment after the other, as its `make_atari_env` has them, or each in a process of its own.
    """
    import ale_py  # registers the ids

    set_forkserver_preload(["stable_baselines3", "ale_py", "cv2"])  # once, not by every process

    gym.register_envs(ale_py)
    envs = make_atari_env(
        s.ATARI_ID,
        n_envs=num_envs,
        seed=0,
        env_kwargs={
            "frameskip": 1,
            "repeat_action_probability": 0.0,
            "full_action_space": False,
            "max_num_frames_per_episode": s.MAX_FRAMES,
        },
        wrapper_kwargs={"noop_max": s.NOOP_MAX, "frame_skip": s.FRAME_SKIP, "screen_size": s.SCREEN_SIZE},
        vec_env_cls=SubprocVecEnv if processes else DummyVecEnv,
    )
    yield VecFrameStack(envs, s.FRAME_STACK)
    envs.close()


def _mlp(net: str) -> dict[str, object]:
    shape = s.NETS[net]
    policy: dict[str, object] = {"optimizer_kwargs": {"eps": s.ADAM_EPS}}
    if shape.shared:
        policy |= {"features_extractor_class": Trunk, "features_extractor_kwargs": {"net": shape}, "net_arch": []}
    else:
        policy |= {"net_arch": list(shape.hidden_sizes), "activation_fn": ACTIVATIONS[shape.activation]}
    return {"policy": "MlpPolicy", "policy_kwargs": policy}


def _cnn(encoder: str) -> dict[str, object]:
    if encoder == "nature":  # its own
        return {"policy": "CnnPolicy"}
    cnn = s.CNNS[encoder]
    policy = {"features_extractor_class": ConvTrunk, "features_extractor_kwargs": {"cnn": cnn}, "net_arch": []}
    return {"policy": "CnnPolicy", "policy_kwargs": policy}


def _common(envs: VecEnv, num_steps: int, lr: float) -> dict[str, object]:
    return {
        "env": envs,
        "learning_rate": lr,
        "n_steps": num_steps,
        "gamma": s.GAMMA,
        "gae_lambda": s.GAE_LAMBDA,
        "ent_coef": s.ENT_COEF,
        "vf_coef": s.VF_COEF,
        "max_grad_norm": s.MAX_GRAD_NORM,
        "seed": 0,
        "device": "cpu",
    }


def _task(model: OnPolicyAlgorithm, part: Part, facts: Facts = dict) -> Task:
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
    return Task(work, facts=lambda: {**count_parameters(model.policy.parameters()), **facts()})


@contextmanager
def env(num_envs: int, num_steps: int = 16) -> Iterator[Task]:
    with _envs(num_envs) as envs:
        envs.reset()
        yield Task(_stepping(envs, s.random_actions(num_steps, num_envs)))


@contextmanager
def atari_env(num_envs: int, num_steps: int = 16) -> Iterator[Task]:
    with _atari_envs(num_envs) as envs:
        envs.reset()
        yield Task(_stepping(envs, s.random_actions(num_steps, num_envs, s.NUM_ATARI_ACTIONS)), facts=s.frames)


def _stepping(envs: VecEnv, actions: NDArray[np.int64]) -> Work:
    def work() -> int:
        for action in actions:
            envs.step(action)
        return actions.size

    return work


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
