"""Experiments that measure nothing but their seed, in no time."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

from benchmarks.experiments.definition import Arm, Column, Curve, CurvePlot, Experiment, Measurement, Number, ValuePlot
from fastac.config import Config


def measure(config: Config, offset: float = 0.0) -> Measurement:
    """Return numbers that follow from the seed; seeds from 2 on never solve it."""
    seed = config.run.seed
    x = tuple(float(100 * step) for step in range(1, 12 + seed))
    y = tuple(offset + 10.0 * seed + step**0.5 for step in range(1, 12 + seed))
    solved: Number = 100.0 + seed if seed < 2 else None
    return Measurement({"return": Curve(x, y)}, {"final": offset + 10.0 * seed, "solved": solved, "never": None})


def fail_with_seed_1(config: Config) -> Measurement:
    if config.run.seed == 1:
        raise RuntimeError("the toy broke")
    return measure(config)


def die(config: Config) -> Measurement:
    os.kill(os.getpid(), signal.SIGKILL)
    return measure(config)


def measure_nan(config: Config) -> Measurement:
    return Measurement({}, {"final": float("nan")})


def wait_after_seed_0(config: Config, folder: Path) -> Measurement:
    """Wait, unless it is seed 0, until there is a file `go`; leave a mark of each time that it was called."""
    with (folder / f"called-{config.run.seed}").open("a") as mark:  # two may do so at once
        mark.write("x")
    while config.run.seed > 0 and not (folder / "go").exists():
        time.sleep(0.02)
    return measure(config)


def log_times(config: Config, folder: Path) -> Measurement:
    began = time.monotonic()
    time.sleep(0.2)
    (folder / f"{config.run.workers}-{config.env.num_envs}-{config.run.seed}").write_text(f"{began} {time.monotonic()}")
    return measure(config)


def meet(config: Config, folder: Path) -> Measurement:
    """Wait until the other arm's trial runs too."""
    (folder / f"here-{config.env.num_envs}").touch()
    deadline = time.monotonic() + 60.0
    while len(list(folder.glob("here-*"))) < 2:
        assert time.monotonic() < deadline, "the other trial has not come"
        time.sleep(0.01)
    return measure(config)


def toy(*measures, name="toy", extras=("experiments",), x_setting=None, **changes) -> Experiment:
    """Return an experiment with an arm per measure in one group, and one arm in another."""
    measures = measures or (measure, partial(measure, offset=5.0))
    base = Config().replace(**changes)
    arms = [Arm("first", f"arm {i}", base.replace(num_envs=16 * 2**i), each) for i, each in enumerate(measures)]
    arms.append(Arm("second", "arm 0", base.replace(num_envs=8), measures[0]))
    return Experiment(
        name,
        "Does the toy work?",
        tuple(arms),
        (
            CurvePlot("return", "learning", "environment steps", "return"),
            ValuePlot({"final": "at the end", "solved": "to the goal"}, "values", "return", x_setting, "environments"),
        ),
        (
            Column("final", "return", "of the last episode"),
            Column("solved", "steps to the goal", "of training", 0),
            Column("never", "never", "nothing"),
        ),
        extras,
    )
