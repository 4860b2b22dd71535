"""What presets reach on MuJoCo's robots, beside what others have published.

    python -m benchmarks.robots
    python -m benchmarks.robots Hopper-v5:ppo --seeds 5

Each seed trains a preset to the end of its budget, on one core, as many side by side as there are cores. The result is
the last evaluation of the last policy (greedy actions, episodes as the preset plays them), not that of the best one on
the way. Results are kept by preset in a file, with a picture beside it; `--table` prints that file's table.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, pstdev

import fastac
from benchmarks.seed_results import parse, run, save
from benchmarks.tables import format_table
from fastac.presets import PRESETS, Preset
from fastac.presets.mujoco import ROBOTS

RESULTS = Path("benchmarks/results/robots.json")

# Tianshou's MuJoCo benchmark, ten seeds, the best mean within 1M steps: examples/mujoco/README.md (Weng et al. 2022,
# JMLR 23); those of PPO could not be looked up again. Its robots are v3, which differ little: Ant-v5 charges for
# contact forces and shows them (PPO's preset leaves them out).
PUBLISHED: Mapping[str, float] = {
    "HalfCheetah-v5:ppo": 5783.9,
    "Hopper-v5:ppo": 2609.3,
    "Walker2d-v5:ppo": 3588.5,
    "Ant-v5:ppo": 3258.4,
    "HalfCheetah-v5:a2c": 1829.9,
    "Hopper-v5:a2c": 1253.2,
    "Ant-v5:a2c": 3485.4,
}
# CleanRL's PPO, docs/rl-algorithms/ppo.md, ppo_continuous_action.py after 1M steps, three seeds.
CLEANRL_PPO: Mapping[str, float] = {"HalfCheetah-v5": 1442.6, "Hopper-v5": 2382.9, "Walker2d-v5": 2287.9}

_COLORS = {"ppo": "#D55E00", "a2c": "#0072B2"}  # Okabe and Ito's, which colour-blind readers can tell apart


@dataclass(frozen=True, slots=True)
class Seed:
    """One seed.

    Attributes:
        seed: which.
        end: mean return of the last policy.
        train_s: seconds of training.
        steps: env steps at each evaluation.
        returns: mean return of each evaluation.
    """

    seed: int
    end: float
    train_s: float
    steps: tuple[int, ...]
    returns: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Robot:
    """One preset over seeds: its budget, the machine that trained it, and what each seed came to."""

    env_steps: int
    machine: str
    seeds: tuple[Seed, ...]


def measure(preset: Preset, seeds: int, first_seed: int, machine: str) -> Robot:
    """Train a preset with some seeds, side by side."""
    with tempfile.TemporaryDirectory() as folder:
        runs = fastac.train_seeds(
            preset.env_id, preset=preset.name, seeds=seeds, seed=first_seed, run_dir=folder, tensorboard=False
        )
        found = tuple(_read(run.seed, Path(folder, f"seed{run.seed}")) for run in runs.runs)
    return Robot(preset.make().run.total_env_steps, machine, found)


def _read(seed: int, run_dir: Path) -> Seed:
    """Read a run; it ends with an evaluation of its last policy."""
    rows = [json.loads(line) for line in (run_dir / "evaluations.jsonl").read_text().splitlines()]
    steps, returns = ([row[name] for row in rows] for name in ("env_steps", "mean_return"))
    rounded = tuple(round(value, 1) for value in returns)
    return Seed(seed, rounded[-1], round(rows[-1]["wall_s"], 1), tuple(steps), rounded)


def format_robots(found: Mapping[str, Robot]) -> str:
    """Return a row per preset."""
    rows = []
    for name, robot in found.items():
        env_id, algo = name.split(":")
        ends, number = [seed.end for seed in robot.seeds], len(robot.seeds)
        published = PUBLISHED[name]
        cleanrl = CLEANRL_PPO.get(env_id) if algo == "ppo" else None
        rows.append(
            (
                f"{env_id}, {algo}",
                f"{published:,.0f}",
                "-" if cleanrl is None else f"{cleanrl:,.0f}",
                f"{mean(ends):,.0f} +- {pstdev(ends):,.0f}",
                f"{min(ends):,.0f}",
                f"{sum(end < published / 2 for end in ends)} of {number}",
                f"{robot.env_steps:,}",
                f"{median(seed.train_s for seed in robot.seeds) / 60:.1f}",
            )
        )
    head = ("preset", "Tianshou", "CleanRL", "here, mean +- std", "worst", "below half", "env steps", "minutes")
    return format_table(head, rows)


def draw(found: Mapping[str, Robot], picture: Path) -> None:
    """Draw the evaluations of every seed, a panel per robot; dashed lines are Tianshou's means."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    robots = list(dict.fromkeys(name.split(":")[0] for name in found))
    figure = Figure(figsize=(3.6 * len(robots), 3.6), layout="constrained")
    panels = figure.subplots(1, len(robots), squeeze=False)[0]
    for name, robot in found.items():
        env_id, algo = name.split(":")
        axes, color = panels[robots.index(env_id)], _COLORS[algo]
        for seed in robot.seeds:
            axes.plot(seed.steps, seed.returns, color=color, alpha=0.6, linewidth=1.2)
        axes.axhline(PUBLISHED[name], color=color, linestyle="--", linewidth=1.0)
    for env_id, axes in zip(robots, panels, strict=True):
        axes.set_title(env_id)
        axes.set_xlabel("environment steps")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6")
    panels[0].set_ylabel("mean return of an evaluation")
    for algo, color in _COLORS.items():
        panels[0].plot([], [], color=color, label=f"{algo.upper()}, a line per seed")
    panels[0].plot([], [], color="#555555", linestyle="--", label="Tianshou's mean at 1M steps")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(picture, dpi=120)


def load(path: Path) -> dict[str, Robot]:
    """Return what a file holds, in the order of the published table; nothing if it is not there."""
    if not path.exists():
        return {}
    data = json.loads(path.read_text())
    return {
        name: Robot(**{**data[name], "seeds": tuple(_to_seed(**seed) for seed in data[name]["seeds"])})
        for name in PUBLISHED
        if name in data
    }


def _to_seed(seed: int, end: float, train_s: float, steps: list[int], returns: list[float]) -> Seed:
    return Seed(seed, end, train_s, tuple(steps), tuple(returns))


def choose(names: Sequence[str]) -> dict[str, Preset]:
    """Return presets by `ENV:NAME`; without names all that have a published figure.

    Raises:
        ValueError: there is no such preset, or nothing is published for it.
    """
    known = {f"{one.env_id}:{one.name}": one for one in PRESETS if one.env_id in ROBOTS}
    for name in names:
        if name not in PUBLISHED:
            raise ValueError(f"{name!r} is not one of {', '.join(PUBLISHED)}")
    return {name: known[name] for name in names or PUBLISHED}


def _keep(path: Path, found: Mapping[str, Robot]) -> None:
    """Write the file, in the order of the published table, and its picture."""
    ordered = {name: found[name] for name in PUBLISHED if name in found}
    save(path, ordered)
    draw(ordered, path.with_suffix(".png"))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the presets, keep what they came to, and print the table."""
    run(parse(argv, __doc__, choose, RESULTS, seeds=5), load, measure, format_robots, _keep)


if __name__ == "__main__":
    main()
