"""Steps environments alone, with random actions: compiled against Gymnasium's own batch, and the guide's grid world.

Slices of half a millisecond take turns, so that other work on the machine meets all of them; the rate is that of the
median slice. Actions are drawn before.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import gymnasium as gym
import numpy as np

from fastac.config import EnvConfig
from fastac.contract import StepRow, VecEnv
from fastac.envs import make_vec

GUIDE = Path(__file__).parents[1] / "fastac/guides/compiled.md"
SIZES = (64, 256, 1024, 4096)
IDS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1")
GRID = "GridWorld-v0"
_ROWS = 128  # of actions
_SLICE_S = 0.0004

Slice = Callable[[], float]  # steps for a moment, and returns seconds per step of all environments


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=500, help="of each row")
    slices = parser.parse_args().slices
    import_guide()
    print("| environment | envs | compiled, steps/s | own batch, steps/s | ratio |\n|---|---|---|---|---|")
    for num_envs in SIZES:
        print_row("CartPole-v1", num_envs, ("compiled", "native"), slices)
    for env_id in IDS[1:]:
        print_row(env_id, 1024, ("compiled",), slices)
    print_row(GRID, 4096, ("compiled",), slices)


def import_guide() -> None:
    """Register the grid world of the guide, as its page has it."""
    (block, *_) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S)
    path = Path(tempfile.mkdtemp(), "gridworld.py")
    path.write_text(block)
    spec = importlib.util.spec_from_file_location("gridworld", path)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def print_row(env_id: str, num_envs: int, vectorizations: tuple[str, ...], num_slices: int) -> None:
    """Time an environment in turns, once for each vectorization, and print their rates."""
    slices = [begin(env_id, num_envs, vectorization) for vectorization in vectorizations]
    costs_s: list[list[float]] = [[] for _ in slices]
    for _ in range(num_slices):
        for each, run in zip(costs_s, slices, strict=True):
            each.append(run())
    rates = [num_envs / median(each) for each in costs_s]
    others = [f"{rates[1]:,.0f}", f"{rates[0] / rates[1]:.1f}x"] if len(rates) > 1 else ["-", "-"]
    print(f"| {env_id} | {num_envs} | {rates[0]:,.0f} | {' | '.join(others)} |", flush=True)


def begin(env_id: str, num_envs: int, vectorization: str) -> Slice:
    """Build and reset environments; return what steps them for a moment."""
    envs = make_vec(EnvConfig(env_id, num_envs, vectorization), np.random.SeedSequence(0))
    rng, at = np.random.default_rng(0), 0
    space = envs.single_action_space
    actions = (
        rng.integers(0, space.n, (_ROWS, num_envs))
        if isinstance(space, gym.spaces.Discrete)
        else rng.uniform(-1.0, 1.0, (_ROWS, num_envs, *(space.shape or ()))).astype(np.float32)
    )
    row = make_row(envs)
    envs.reset(row.obs, row.start)

    def run() -> float:
        nonlocal at
        began_s, count = perf_counter(), 0
        while (spent_s := perf_counter() - began_s) < _SLICE_S:
            envs.step(actions[at], row)
            at, count = (at + 1) % _ROWS, count + 1
        return spent_s / count

    return run


def make_row(envs: VecEnv) -> StepRow:
    """Return a row to write into."""
    flags = [np.zeros(envs.num_envs, np.bool_) for _ in range(5)]
    obs = np.zeros((envs.num_envs, *(envs.single_observation_space.shape or ())), np.float32)
    return StepRow(obs, flags[0], np.zeros(envs.num_envs, np.float32), *flags[1:])


if __name__ == "__main__":
    main()
