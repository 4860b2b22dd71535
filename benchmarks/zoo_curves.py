"""Learning curves of stable-baselines3's published Atari runs, from their monitor files.

    python -m benchmarks.zoo_curves MONITORS --output benchmarks/results/atari/zoo.json

The files are in github.com/DLR-RM/rl-trained-agents: `ppo/<Game>NoFrameskip-v4_1/<i>.monitor.csv`, one for each of the
8 environments of a run of 10M steps. MONITORS is a folder with `<game>-<i>.csv` for some of them, such as
`beam-rider-0.csv`. A row `r,l,t` is a whole game of training: raw return, length in frames, seconds. Frames over 4 are
steps of one environment, and 8 times these are steps of the run. The frames of no-ops at resets are among them, which
makes a point 1 % late.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

_SPACING = 250_000
_STEPS_PER_FRAME = 8 / 4  # of the run, per frame of one environment
SOURCE = (
    "github.com/DLR-RM/rl-trained-agents, ppo/<Game>NoFrameskip-v4_1/<i>.monitor.csv for i = 0, 2, 4, 6, as stored in "
    f"2021: mean raw return of the training games that ended within {_SPACING // 2:,} steps of each point"
)


def read_monitor(lines: Iterable[str]) -> list[tuple[float, float]]:
    """Read a monitor file: steps of the run at each game's end, and its return."""
    games, frames = [], 0
    for line in lines:
        if line.strip() and not line.startswith(("#", "r,")):
            game_return, length = line.split(",")[:2]
            frames += int(length)
            games.append((frames * _STEPS_PER_FRAME, float(game_return)))
    return games


def make_curve(monitors: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[int, float]]:
    """Return steps and mean returns, as far as all environments go; a point without a game is left out."""
    last = int(min(games[-1][0] for games in monitors))
    curve = []
    for end in range(_SPACING, last + 1, _SPACING):
        found = [value for games in monitors for at, value in games if end - _SPACING < at <= end]
        if found:
            curve.append((end - _SPACING // 2, round(mean(found), 1)))
    return curve


def main(argv: Sequence[str] | None = None) -> None:
    """Write a curve per game."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("monitors", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    files = sorted(options.monitors.glob("*.csv"))
    if not files:
        parser.error(f"{options.monitors} has no file <game>-<i>.csv: give the folder of the monitor files")
    games = dict.fromkeys(path.stem.rpartition("-")[0] for path in files)
    curves = {
        game: make_curve(
            [read_monitor(path.read_text().splitlines()) for path in files if path.stem.rpartition("-")[0] == game]
        )
        for game in games
    }
    rows = ",\n".join(f"  {json.dumps(game)}: {json.dumps(curve)}" for game, curve in curves.items())
    options.output.write_text(f'{{\n "source": {json.dumps(SOURCE)},\n "curves": {{\n{rows}\n }}\n}}\n')


if __name__ == "__main__":
    main()
