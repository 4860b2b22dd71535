"""Steps per second of A2C on CartPole from 1,024 to 65,536 environments: W14 alone, as a table and a picture.

python -m benchmarks.scale
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.contest import Pool, Standing, compare
from benchmarks.machine import describe_machine, format_machine
from benchmarks.session import FULL, format_standings
from benchmarks.workloads import SCALE_ENVS, scale, scale_row

PICTURE = Path("benchmarks/results/scale.png")
_COLORS = ("#0072B2", "#D55E00")  # Okabe and Ito's, which colour-blind readers can tell apart


def draw(rows: Mapping[str, Standing], machine: str, picture: Path) -> None:
    """Draw a line per number of workers, with all rounds as dots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    for workers, color in zip((1, 2), _COLORS, strict=True):
        found = [rows[scale_row(n, workers)] for n in SCALE_ENVS]
        label = f"{workers} worker{'s' * (workers > 1)}"
        axes.plot(SCALE_ENVS, [row.rate / 1e6 for row in found], "-o", color=color, label=label)
        for n, row in zip(SCALE_ENVS, found, strict=True):
            axes.plot([n] * len(row.rates), [rate / 1e6 for rate in row.rates], ".", color=color, alpha=0.35)
    axes.set_xscale("log", base=2)
    axes.set_xticks(SCALE_ENVS, [f"{n:,}" for n in SCALE_ENVS])
    axes.minorticks_off()
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("environments")
    axes.set_ylabel("million steps per second")
    axes.set_title(f"A2C on CartPole-v1, 16 steps per rollout\n{machine}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(picture, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args(argv)
    machine, workload, pool = format_machine(describe_machine(torch_threads=1)), scale(), Pool()
    try:
        standings = compare(pool, workload.contestants, FULL.rounds, FULL.round_s * workload.pace)
    finally:
        pool.end()
    print(f"{machine}\n\n{format_standings(workload.name, standings)}")
    draw({row.contestant.name: row for row in standings}, machine.split(",")[0], options.picture)


if __name__ == "__main__":
    main()
