"""Decides whether single environments are worth processes of their own, by stepping one of them for a moment."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

from fastac.config import EnvConfig
from fastac.contract import ActionArray, ObsArray
from fastac.envs.failure import check_obs
from fastac.envs.mistakes import blame, check_reset
from fastac.envs.spaces import make_drawer
from fastac.envs.state import SingleEnv

# A step in another process costs a wake-up and two copies, about 100 us on a busy machine. If a step of one
# environment costs less than this, stepping them one after the other in this process is as fast.
PROCESS_WORTH_US = 300.0
_TRIAL_STEPS = 50
_TRIAL_S = 0.05
_WHEN_TRIED = "when it was tried"


@dataclass(frozen=True, slots=True)
class Choice:
    """How single environments are batched.

    Attributes:
        processes: number of processes; 0: this process.
        description: the choice and its reason.
        is_tried: whether the trial environment cannot be reused: it was stepped, or the others are in processes.
    """

    processes: int
    description: str
    is_tried: bool


def choose_processes(config: EnvConfig, trial: SingleEnv, num_envs: int, processes: int, why_sync: str) -> Choice:
    """Return in how many processes environments like `trial` are stepped; it may be stepped to find out."""
    if config.vectorization == "process":
        return Choice(processes, f"process (as asked, {processes} workers)", True)
    if config.vectorization == "sync":
        return Choice(0, f"sync ({why_sync})", False)
    if processes == 1:
        return Choice(0, f"sync (one {'env' if num_envs == 1 else 'core'})", False)
    cost_us = measure_step_us(config.env_id, trial)
    why = f"one step of {config.env_id} takes {cost_us:.0f} us"
    if cost_us > PROCESS_WORTH_US:
        return Choice(processes, f"process ({why}, {processes} workers)", True)
    return Choice(0, f"sync ({why})", True)


def measure_step_us(env_id: str, trial: SingleEnv) -> float:
    """Return the median cost of a random step in us; the median ignores the lazy imports of the first step.

    Raises:
        EnvFailure: the environment raised, or returned an invalid observation.
    """
    costs_s: list[float] = []
    trial.action_space.seed(0)
    draw_action = make_drawer(trial.observation_space, trial.action_space)
    obs = _try_reset(env_id, trial, seed=0)
    began_s = time.perf_counter()
    while len(costs_s) < _TRIAL_STEPS and time.perf_counter() - began_s < _TRIAL_S:
        cost_s, is_over, obs = _try_step(env_id, trial, draw_action(obs))
        costs_s.append(cost_s)
        if is_over:
            obs = _try_reset(env_id, trial)
    return median(costs_s) * 1e6


def _try_reset(env_id: str, trial: SingleEnv, seed: int | None = None) -> ObsArray:
    try:
        returned = trial.reset(seed=seed)
    except Exception as error:
        raise blame(error, "reset", trial, env_id, _WHEN_TRIED) from error
    obs, _ = check_reset(returned, env_id)
    return _check_tried(env_id, trial, obs)


def _try_step(env_id: str, trial: SingleEnv, action: ActionArray) -> tuple[float, bool, ObsArray]:
    """Return the seconds of a step, whether the episode is over, and the observation."""
    began_s = time.perf_counter()
    try:
        obs, _, terminated, truncated, _ = trial.step(action)
        cost_s = time.perf_counter() - began_s
        is_over = bool(terminated or truncated)
    except Exception as error:
        raise blame(error, "step", trial, env_id, _WHEN_TRIED) from error
    return cost_s, is_over, _check_tried(env_id, trial, obs)


def _check_tried(env_id: str, trial: SingleEnv, obs: ObsArray) -> ObsArray:
    space = trial.observation_space
    return check_obs(obs, space.shape or (), space, env_id)
