"""What action masks are worth, and fastac's beside sb3-contrib's MaskablePPO.

    python -m benchmarks.masks
    python -m benchmarks.masks --seeds 5 --total-env-steps 3e5

Two games with many illegal actions (`masked_games.py`) are learned by PPO with masks, without, and by MaskablePPO with
the same settings and network: steps until the first evaluation at the game's target, and the mean of the last two
evaluations (greedy, 100 episodes). Then the steps per second of both libraries in turns, on one core and on all (ours
with a worker per core, theirs with a torch thread per core), and the illegal actions among those that were taken with
masks. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch

import fastac
from benchmarks.machine import describe_machine, format_machine
from benchmarks.masked_games import MOST_STEPS, ConnectFour, Hearts
from benchmarks.tables import format_table
from fastac.cpu import count_cores
from fastac.trials import Trial, run_trials

Learner: TypeAlias = Literal["masked", "unmasked", "MaskablePPO"]
# By game: the return at which it counts as learned.
GAMES: dict[str, float] = {ConnectFour.__name__: 0.9, Hearts.__name__: 0.42}
EVERY = 20_000  # env steps between evaluations
EPISODES = 100
NUM_ENVS, NUM_STEPS = 16, 64
ROUNDS, ROUND_STEPS = 3, 163_840  # long, since a run prepares its calls in the first iteration
_CLASSES = {"ConnectFour": ConnectFour, "Hearts": Hearts}

Curve: TypeAlias = list[tuple[int, float]]  # env steps, mean return


@dataclass(frozen=True, slots=True)
class Learned:
    """One seed: `first` is the env steps of the first evaluation at the target, or None; `last` the final return."""

    first: int | None
    last: float


def settings(learner: Learner) -> dict[str, object]:
    """Return fastac's settings, which are also those of MaskablePPO below."""
    return {
        "algo": "ppo",
        "num_envs": NUM_ENVS,
        "num_steps": NUM_STEPS,
        "num_epochs": 4,
        "num_minibatches": 4,
        "learning_rate": 1e-3,
        "hidden_sizes": (128, 128),
        "ent_coef": 0.01,
        "normalize_obs": False,
        "normalize_reward": False,
        "mask_actions": learner == "masked",
        "vectorization": "sync",
        "workers": 1,
        "eval_max_steps": MOST_STEPS,
        "tensorboard": False,
    }


def learn(game: str, learner: Learner, seed: int, total: int) -> Curve:
    """Train one seed and return its evaluations."""
    if learner == "MaskablePPO":
        return _learn_peer(game, seed, total)
    with tempfile.TemporaryDirectory() as folder:
        how = {**settings(learner), "eval_every": EVERY, "eval_episodes": EPISODES, "total_env_steps": total}
        run_dir = Path(folder) / "run"
        fastac.train(f"benchmarks.masked_games:{game}", seed=seed, run_dir=run_dir, **how)
        return [(row["env_steps"], row["mean_return"]) for row in _read_rows(run_dir / "evaluations.jsonl")]


def _read_rows(path: Path) -> list[dict[str, float]]:
    import json

    return [json.loads(line) for line in path.read_text().splitlines()]


def _make_peer(game: str, seed: int):
    from sb3_contrib import MaskablePPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv

    envs = make_vec_env(_CLASSES[game], NUM_ENVS, seed=seed, vec_env_cls=DummyVecEnv)
    return MaskablePPO(
        "MlpPolicy",
        envs,
        learning_rate=1e-3,
        n_steps=NUM_STEPS,
        batch_size=NUM_ENVS * NUM_STEPS // 4,
        n_epochs=4,
        ent_coef=0.01,
        policy_kwargs={"net_arch": [128, 128]},
        seed=seed,
        device="cpu",
    )


def _learn_peer(game: str, seed: int, total: int) -> Curve:
    from sb3_contrib.common.maskable.evaluation import evaluate_policy
    from stable_baselines3.common.env_util import make_vec_env

    model, evaluated = _make_peer(game, seed), make_vec_env(_CLASSES[game], 8, seed=1000 + seed)
    curve: Curve = []
    while model.num_timesteps < total:
        model.learn(EVERY, reset_num_timesteps=False)
        curve.append((model.num_timesteps, float(evaluate_policy(model, evaluated, EPISODES)[0])))
    return curve


def judge(curve: Curve, target: float) -> Learned:
    """Read one seed's evaluations."""
    first = next((steps for steps, value in curve if value >= target), None)
    return Learned(first, mean(value for _, value in curve[-2:]))


def compare_curves(seeds: int, total: int) -> str:
    """Train all learners over seeds, side by side on the cores; return the table."""
    cases = [(game, learner, seed) for game in GAMES for learner in get_args(Learner) for seed in range(seeds)]
    found: dict[tuple[str, Learner, int], Learned] = {}

    def keep(index: int, curve: Curve, wall_s: float) -> None:
        found[cases[index]] = judge(curve, GAMES[cases[index][0]])

    run_trials([Trial(" ".join(map(str, case)), partial(learn, *case, total)) for case in cases], keep)
    rows = []
    for game in GAMES:
        for learner in get_args(Learner):
            those = [found[game, learner, seed] for seed in range(seeds)]
            firsts = [total if one.first is None else one.first for one in those]
            reached = sum(one.first is not None for one in those)
            last = [one.last for one in those]
            rows.append(
                (
                    game,
                    learner,
                    f"{reached} of {seeds}",
                    f"{median(firsts):,.0f} ({min(firsts):,} to {max(firsts):,})",
                    f"{mean(last):.2f} ({min(last):.2f} to {max(last):.2f})",
                )
            )
    return format_table(("game", "learner", "reached", "env steps to the target", "last return"), rows)


def time_rounds(game: str, cores: int) -> tuple[list[float], list[float]]:
    """Return fastac's and MaskablePPO's steps per second in turns, training alone."""
    ours, theirs = [], []
    torch.set_num_threads(cores)
    peer = _make_peer(game, 0)
    peer.learn(NUM_ENVS * NUM_STEPS)
    for number in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            how = {**settings("masked"), "eval": False, "total_env_steps": ROUND_STEPS, "workers": cores}
            run = fastac.train(f"benchmarks.masked_games:{game}", seed=number, run_dir=Path(folder) / "run", **how)
            ours.append(float(str(run.summary["sps"])))
        assert torch.get_num_threads() == cores
        began = time.perf_counter()
        peer.learn(ROUND_STEPS, reset_num_timesteps=False)
        theirs.append(ROUND_STEPS / (time.perf_counter() - began))
    return ours, theirs


def compare_speed() -> str:
    """Return the table of steps per second."""
    rows = []
    for game in GAMES:
        for cores in sorted({1, count_cores()}):
            ours, theirs = time_rounds(game, cores)
            ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
            spread = f"{median(ratios):.1f}x ({min(ratios):.1f} to {max(ratios):.1f})"
            rows.append((game, str(cores), f"{median(ours):,.0f}", f"{median(theirs):,.0f}", spread))
    torch.set_num_threads(1)
    return format_table(("game", "cores", "fastac steps/s", "MaskablePPO steps/s", "ratio"), rows)


def count_illegal(steps: int) -> tuple[int, int]:
    """Train with masks for some steps; return the number of actions and of illegal ones."""
    Counting.taken = Counting.illegal = 0
    with tempfile.TemporaryDirectory() as folder:
        how = {**settings("masked"), "eval": False, "total_env_steps": steps, "run_dir": Path(folder) / "run"}
        fastac.train(Counting, **how)
    return Counting.taken, Counting.illegal


class Counting(Hearts):
    """Counts the actions and the illegal ones."""

    taken = illegal = 0

    def step(self, action: np.int64) -> tuple:
        Counting.taken += 1
        Counting.illegal += int(action) not in self._hand
        return super().step(action)


def main(words: Sequence[str] | None = None) -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="0: no curves")
    parser.add_argument("--total-env-steps", type=float, default=2e5)
    parser.add_argument("--count", type=float, default=1e6, help="actions among which illegal ones are counted")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    print(format_machine(describe_machine()))
    print(compare_speed(), flush=True)
    taken, illegal = count_illegal(int(given.count))
    print(f"{illegal} illegal actions of {taken:,} taken with masks", flush=True)
    if given.seeds:
        print(compare_curves(given.seeds, int(given.total_env_steps)))


if __name__ == "__main__":
    main()
