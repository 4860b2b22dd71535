"""Observations to compare an exported policy on: those of the run's own environment, or random ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fastac.build import EnvFactory, build_evaluation_envs
from fastac.config import EnvConfig
from fastac.contract import EnvFailure, StepRow, WorkerFailure
from fastac.envs import observation_dtype
from fastac.envs.masks import MaskReader, count_choices
from fastac.runs.player import ModulePlayer
from fastac.tools.export.signature import flatten_rows
from fastac.tools.policy import TrainedPolicy

_ENVS = 8
_END_RATE = 0.05  # of random episodes


@dataclass(frozen=True, slots=True)
class Recording:
    """A number of steps of N environments.

    Attributes:
        rows: `[T, N, *row_shape]`, what the model reads.
        start: `[T, N]`, whether an episode begins.
        source: where they come from, in words.
    """

    rows: NDArray[np.generic]
    start: NDArray[np.bool_]
    source: str

    @property
    def steps(self) -> int:
        """Number of observations."""
        return self.start.size


def record_steps(policy: TrainedPolicy, config: EnvConfig, given: EnvFactory | None, steps: int) -> Recording:
    """Play the environment of a run with sampled actions; where it cannot be, draw observations from its space."""
    try:
        return _play(policy, config, given, steps)
    except (EnvFailure, ImportError, ValueError, WorkerFailure):
        return draw_steps(policy, steps)


def _play(policy: TrainedPolicy, config: EnvConfig, given: EnvFactory | None, steps: int) -> Recording:
    envs = build_evaluation_envs(config, _ENVS, np.random.SeedSequence(0), given)
    try:
        space, num = envs.single_observation_space, envs.num_envs
        if space != policy.row_space:
            raise ValueError("the environment has other observations now.")
        obs, start = np.zeros((num, *(space.shape or ())), observation_dtype(space)), np.ones(num, np.bool_)
        flags = [np.zeros(num, np.bool_) for _ in range(4)]
        row = StepRow(obs, start, np.zeros(num, np.float32), *flags)
        player, noise = ModulePlayer(policy.model, num, policy.device), torch.Generator().manual_seed(0)
        envs.reset(obs, start)
        rows, starts = [], []
        for _ in range(-(-steps // num)):
            rows.append(obs.copy())
            starts.append(start.copy())
            envs.step(player.act(torch.from_numpy(obs), torch.from_numpy(start), noise), row)
        return Recording(np.stack(rows), np.stack(starts), f"steps of {config.env_id}")
    finally:
        envs.close()


def draw_steps(policy: TrainedPolicy, steps: int) -> Recording:
    """Draw random observations of the space, with random masks and starts."""
    rng, space, size = np.random.default_rng(0), policy.observation_space, policy.model.mask_size
    space.seed(0)
    masks = [_draw_mask(policy, rng) if size else np.zeros(0, np.bool_) for _ in range(steps)]
    rows = [flatten_rows(policy, space.sample(), mask) for mask in masks]
    stacked = np.stack(rows).astype(observation_dtype(policy.row_space))
    start = rng.random(steps) < _END_RATE
    shape = (-(-steps // _ENVS), _ENVS)
    whole = np.resize(stacked, (shape[0] * shape[1], *stacked.shape[1:]))
    return Recording(
        whole.reshape(*shape, *stacked.shape[1:]), np.resize(start, shape), "random observations of the space"
    )


def _draw_mask(policy: TrainedPolicy, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return a mask `[M]` that allows at least one value of every component."""
    reader = MaskReader(count_choices(policy.action_space))
    mask = rng.random(reader.size) < 0.5
    return reader.complete(mask, is_over=True)
