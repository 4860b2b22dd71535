"""Evaluations for tests."""

import time
from contextlib import closing

import gymnasium
import numpy as np
import torch
from core_support import CPU, PROBES, KnownPolicy

from fastac.runs.evaluate import MOST_STEPS
from fastac.runs.evaluate import evaluate as play_games
from fastac.runs.evaluator import Request, Stage
from fastac.runs.player import make_player

SMALL = {"num_envs": 4, "num_steps": 8, "hidden_sizes": (8,), "eval_every": 0, "eval_episodes": 8, "tensorboard": False}
SHORT_LONG = PROBES + "ShortLong-v0"


def evaluate(policy, envs, episodes, device=CPU, noise=None, **more):
    return play_games(make_player(policy, envs.num_envs, device), envs, episodes, noise, **more)


def play(config, policy, env_steps):
    """Play the evaluation that a run's last one is."""
    episodes = config.run.eval_episodes
    with closing(Stage(config, policy, None)) as stage:
        return stage.play(Request(env_steps, episodes, episodes, None, MOST_STEPS))


class Idle(KnownPolicy):
    """Always takes action 0."""

    def greedy(self, obs, state, start):
        return torch.zeros(len(obs), dtype=torch.int64), state


class Slow(gymnasium.Env):
    """Takes its time for each of two steps."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self._left = 2
        return np.zeros(1, np.float32), {}

    def step(self, action):
        time.sleep(0.6)
        self._left -= 1
        return np.zeros(1, np.float32), 1.0, self._left == 0, False, {}


def make_slow(num_envs):
    return gymnasium.vector.SyncVectorEnv([Slow] * num_envs)
