"""Trains agents on Atari games, one run after the other, and keeps what a reader needs to check them.

    python -m benchmarks.atari pong --seeds 0 1 2
    python -m benchmarks.atari breakout --minutes 60

Every run is `fastac train ALE/<Game>-v5` with a preset, in a process of its own, until a return (Pong:
18.25) or for so many minutes; other flags go to it as they are, and then the runs need a name of their own. Its best
checkpoint then plays 100 full games that no other evaluation has played, by the actions that the preset evaluates
with. Minutes begin with the process, so imports, evaluations and checkpoints are in them; those to a target end
when the evaluation that reached it is on disk. Training minutes are the run's own clock without all that.

A folder per run, `<game>-<algo>-seed<k>`, holds the run's summary, configuration and evaluations as they are, its
progress thinned to 400 rows and six digits, and in `results.json` the result with machine, commit and commands.
Beside the folders are a table and a picture of all runs of the game; for most games with the mean return that the
PPO of stable-baselines3's zoo had in training at the same steps (`zoo_curves`). Runs that have a folder are not run
again; where checkpoints are, to record a game from, is in their summary.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from statistics import median
from time import perf_counter, strftime, time
from typing import Any

from benchmarks.machine import describe_machine, format_machine
from benchmarks.tables import format_table

_ROOT = Path(__file__).parents[1]
_OUTPUT = Path("benchmarks/results/atari")
_ZOO = _ROOT / _OUTPUT / "zoo.json"
_RUNS = Path("runs/atari")
_ROWS, _DIGITS = 400, 6
_GAMES = 100
_IDS = {
    "pong": "ALE/Pong-v5",
    "breakout": "ALE/Breakout-v5",
    "beam-rider": "ALE/BeamRider-v5",
    "space-invaders": "ALE/SpaceInvaders-v5",
    "qbert": "ALE/Qbert-v5",
    "seaquest": "ALE/Seaquest-v5",
}
_TARGETS = {"pong": 18.25}  # over 100 games, so that others give 18 too
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


class RunError(RuntimeError):
    """A command failed; it has said on stderr why."""


@dataclass(frozen=True, slots=True)
class Result:
    """One run.

    Attributes:
        name: of the settings: the algorithm's, or the one that was given.
        seed: of the run.
        target: the mean return that it ran until, if any.
        reached: whether an evaluation of the run did, None without a target.
        minutes: from the process's start to that evaluation, or to the end.
        train_minutes: of training alone.
        env_steps: likewise to that evaluation, or to the end.
        frames: of the emulator.
        sps: environment steps per second of training.
        protocol: ALE's settings by name.
        actions: greedy or sampled.
        mean_return: raw, over the games at the end.
        std_return: over those games.
        mean_length: of those games, in environment steps.
        games: how many.
    """

    name: str
    seed: int
    target: float | None
    reached: bool | None
    minutes: float
    train_minutes: float
    env_steps: int
    frames: int
    sps: float
    protocol: str
    actions: str
    mean_return: float
    std_return: float
    mean_length: float
    games: int


def train_command(game: str, flags: Sequence[str], target: float | None, minutes: float | None) -> list[str]:
    """The words of a run without its seed and its directory."""
    words = ["fastac", "train", _IDS[game], *flags]
    if target is not None:
        words += ["--until-return", f"{target:g}"]
    if minutes is not None:
        words += ["--budget-minutes", f"{minutes:g}"]
    return words


def run_seed(words: Sequence[str], name: str, seed: int, run_dir: Path, folder: Path) -> Result:
    """Train, play the games, and keep what is to be kept in `folder`, all of it or nothing.

    Raises:
        RunError: a command failed.
    """
    machine = describe_machine(torch_threads=1)  # now, as the run's own load would be named otherwise
    train = [*words, "--seed", str(seed), "--run-dir", str(run_dir), "--json"]
    began, began_at = perf_counter(), time()
    summary = _call(train)
    total_s = perf_counter() - began
    # An evaluation reaches this file at once, and training stops at the one that reaches the target.
    evaluated_s = Path(run_dir, "evaluations.jsonl").stat().st_mtime - began_at
    play = ["fastac", "eval", str(run_dir), "--episodes", str(_GAMES), "--seed", str(seed), "--json"]
    result = judge(
        name, summary, json.loads(Path(run_dir, "config.json").read_text()), _call(play), evaluated_s, total_s
    )
    keep(
        run_dir,
        folder,
        {"result": asdict(result), "commands": [shlex.join(train), shlex.join(play)], "machine": machine},
    )
    return result


def _call(words: Sequence[str]) -> dict[str, Any]:
    """Run a command of fastac's; return the JSON that it prints last."""
    done = subprocess.run([sys.executable, "-m", *words], stdout=subprocess.PIPE, text=True, cwd=_ROOT)
    if done.returncode != 0:
        raise RunError(f"exit code {done.returncode}: {shlex.join(words)}")
    return json.loads(done.stdout.splitlines()[-1])


def judge(
    name: str,
    summary: dict[str, Any],
    config: dict[str, Any],
    games: dict[str, float],
    evaluated_s: float,
    total_s: float,
) -> Result:
    """Read one run; what a run that reached its target did afterwards does not count."""
    reached = summary["solved"]
    env_steps = summary["solved_env_steps" if reached else "env_steps"]
    return Result(
        name,
        summary["seed"],
        summary["until_return"],
        reached,
        minutes=round((evaluated_s if reached else total_s) / 60, 3),
        train_minutes=round(summary["solved_wall_s" if reached else "train_wall_s"] / 60, 3),
        env_steps=env_steps,
        frames=env_steps * config["env"]["frame_skip"],
        sps=round(summary["sps"], 1),
        protocol=config["env"]["atari_protocol"],
        actions=config["run"]["eval_actions"],
        mean_return=round(games["mean_return"], 3),
        std_return=round(games["std_return"], 3),
        mean_length=round(games["mean_length"], 1),
        games=_GAMES,
    )


def keep(run_dir: Path, folder: Path, results: dict[str, Any]) -> None:
    """Copy a run's records; the folder has its name only once it is whole."""
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name in ("summary.json", "config.json", "evaluations.jsonl"):
        shutil.copyfile(run_dir / name, unfinished / name)
    rows = thin(_read_rows(run_dir / "progress.jsonl"))
    (unfinished / "progress.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (unfinished / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    unfinished.rename(folder)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def thin(rows: Sequence[dict[str, Any]], most: int = _ROWS) -> list[dict[str, Any]]:
    """Keep so many rows, evenly spaced, the first and the last among them; whole numbers stay as they are."""
    count = min(most, len(rows))
    kept = [rows[round(i * (len(rows) - 1) / max(1, count - 1))] for i in range(count)]
    return [{key: float(f"{v:.{_DIGITS}g}") if isinstance(v, float) else v for key, v in row.items()} for row in kept]


def read_results(output: Path, game: str) -> dict[Path, Result]:
    """All kept runs of a game by their folders, in the order of name and seed."""
    found = {
        folder: Result(**json.loads((folder / "results.json").read_text())["result"])
        for folder in output.glob(f"{game}-*-seed*")
    }
    return dict(sorted(found.items(), key=lambda item: (item[1].name, item[1].seed)))


def read_zoo(game: str) -> list[tuple[float, float]]:
    """Steps and mean returns of the zoo's PPO; empty if its curve of this game is not kept."""
    return [(steps, mean) for steps, mean in json.loads(_ZOO.read_text())["curves"].get(game, [])]


def interpolate(curve: Sequence[tuple[float, float]], env_steps: float) -> float | None:
    """A curve's value at so many steps, None outside of it."""
    for (before, low), (after, high) in pairwise(curve):
        if before <= env_steps <= after:
            return low + (high - low) * (env_steps - before) / (after - before)
    return None


def format_results(game: str, results: Iterable[Result]) -> str:
    """A row per run, and one per name with the median and the worst of its runs."""
    results, zoo = list(results), read_zoo(game)
    rows = [_cells(f"{r.name}, seed {r.seed}", r) for r in results]
    for name in dict.fromkeys(r.name for r in results):
        mine = [r for r in results if r.name == name]
        if len(mine) > 1:
            rows.append(_spread(name, mine))
    header = [
        _IDS[game], "protocol", "until", "minutes", "training minutes", "env steps", "frames", "steps/s", "actions",
        f"mean of {_GAMES} games", "std",
    ]  # fmt: skip
    if zoo:
        header.append("zoo's PPO in training then")
        found = [interpolate(zoo, r.env_steps) for r in results]
        for row, mean in zip_longest(rows, found):  # rows of medians come last
            row.append("" if mean is None else f"{mean:,.0f}")
    return format_table(header, rows)


def _cells(title: str, result: Result) -> list[str]:
    until = "-" if result.target is None else f"{result.target:g}{'' if result.reached else ', NOT REACHED'}"
    return [
        title,
        result.protocol,
        until,
        f"{result.minutes:.1f}",
        f"{result.train_minutes:.1f}",
        f"{result.env_steps:,}",
        f"{result.frames:,}",
        f"{result.sps:,.0f}",
        result.actions,
        f"{result.mean_return:.2f}",
        f"{result.std_return:.2f}",
    ]


def _spread(name: str, results: Sequence[Result]) -> list[str]:
    def cell(costs: Sequence[float], form: str, worst: float) -> str:
        return f"{median(costs):{form}} / {worst:{form}}"

    minutes, train_minutes = [r.minutes for r in results], [r.train_minutes for r in results]
    steps, frames = [r.env_steps for r in results], [r.frames for r in results]
    sps, returns = [r.sps for r in results], [r.mean_return for r in results]
    reached = [r.reached for r in results if r.reached is not None]
    return [
        f"{name}, {len(results)} seeds, median / worst",
        "",
        f"{sum(reached)} of {len(reached)}" if reached else "-",
        cell(minutes, ".1f", max(minutes)),
        cell(train_minutes, ".1f", max(train_minutes)),
        cell(steps, ",.0f", max(steps)),
        cell(frames, ",.0f", max(frames)),
        cell(sps, ",.0f", min(sps)),
        "",
        cell(returns, ".2f", min(returns)),
        "",
    ]


def draw(game: str, results: dict[Path, Result], picture: Path) -> None:
    """Learning curves over steps and over wall-clock: a line per run, dots for its evaluations."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    names = list(dict.fromkeys(r.name for r in results.values()))
    figure = Figure(figsize=(13.0, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for folder, result in results.items():
        color = _COLORS[names.index(result.name) % len(_COLORS)]
        rows = [row for row in _read_rows(folder / "progress.jsonl") if row["mean_return"] is not None]
        evaluations = _read_rows(folder / "evaluations.jsonl")
        for axes, row_key, evaluation_key, unit in (
            (panels[0], "env_steps", "env_steps", 1.0),
            (panels[1], "train_wall_s", "wall_s", 60.0),
        ):
            axes.plot([r[row_key] / unit for r in rows], [r["mean_return"] for r in rows], color=color, alpha=0.7)
            dots = [r[evaluation_key] / unit for r in evaluations], [r["mean_return"] for r in evaluations]
            axes.plot(*dots, "o", color=color, markersize=4.5, alpha=0.8)
    longest = max(r.env_steps for r in results.values())
    zoo = [point for point in read_zoo(game) if point[0] <= 1.2 * longest]  # a little more, to see where it goes
    if zoo:
        panels[0].plot(*zip(*zoo, strict=True), color="#777777", linestyle=":", label="PPO of stable-baselines3's zoo")
    for target in {r.target for r in results.values() if r.target is not None}:
        for axes in panels:
            axes.axhline(target, color="#333333", linewidth=1.0, linestyle="--")
    for index, name in enumerate(names):
        seeds = sum(r.name == name for r in results.values())
        label = f"{name.upper()}, {seeds} seed{'s' * (seeds > 1)}: last 100 training games"
        panels[0].plot([], [], color=_COLORS[index % len(_COLORS)], label=label)
    panels[0].plot([], [], "o", color="#777777", markersize=4.5, label="evaluations, full games")
    panels[0].set(xlabel="environment steps", ylabel="raw return of a game")
    panels[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[1].set(xlabel="wall-clock of training without evaluations, minutes")
    figure.suptitle(_IDS[game], fontweight="bold")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6")
        axes.set_axisbelow(True)
    figure.savefig(picture, dpi=150)


def write(output: Path, game: str) -> str:
    """Write the table and the picture of all kept runs of a game; return the table."""
    results = read_results(output, game)
    table = format_results(game, results.values())
    first = json.loads((next(iter(results)) / "results.json").read_text())
    words = "Commands, machine and commit of each run are in its `results.json`; the first ran on:"
    (output / f"{game}.md").write_text(f"{table}\n\n{words}\n\n{format_machine(first['machine'])}\n")
    draw(game, results, output / f"{game}.png")
    return table


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.atari", description=(__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("game", choices=list(_IDS))
    parser.add_argument("--algo", default="ppo")
    parser.add_argument("--preset", help="where not the algorithm's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="K")
    parser.add_argument("--until", type=float, help="mean return to stop at; Pong's default without --minutes is 18.25")
    parser.add_argument("--minutes", type=float, help="wall-clock to stop after")
    parser.add_argument("--name", help="of the settings, for the folders; default: the preset's or the algorithm's")
    parser.add_argument("--output", type=Path, default=_OUTPUT)
    options, more = parser.parse_known_args(argv)
    if more and options.name is None:
        parser.error(f"with flags of their own ({shlex.join(more)}) runs need a name of their own: give --name")
    if options.until is None and options.minutes is None:
        options.until = _TARGETS.get(options.game)
        if options.until is None:
            parser.error(f"{options.game} has no return to stop at: give --minutes or --until")
    return options, more


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was not yet, write the table and the picture; exit 1 if a run failed or did not reach its target."""
    options, more = _parse(argv)
    game, name, output = options.game, options.name or options.preset or options.algo, options.output
    settings = ["--preset", options.preset] if options.preset else ["--algo", options.algo]
    words = train_command(game, [*settings, *more], options.until, options.minutes)
    failed = False
    for seed in options.seeds:
        folder = output / f"{game}-{name}-seed{seed}"
        if folder.exists():
            print(f"seed {seed}: {folder} is there already", flush=True)
            continue
        try:
            result = run_seed(words, name, seed, _RUNS / f"{folder.name}-{strftime('%m%d-%H%M%S')}", folder)
        except RunError as error:
            failed = True
            print(f"seed {seed}: {error}", file=sys.stderr, flush=True)
            continue
        failed = failed or result.reached is False
        took = f"{result.minutes:.1f} minutes, {result.env_steps:,} steps"
        print(f"seed {seed}: mean of {_GAMES} games {result.mean_return:.2f} after {took}", flush=True)
    if read_results(output, game):
        print(f"\n{write(output, game)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
