"""fastac eval, record, export, plot and list."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastac.cli.flags import read_options, read_run_options
from fastac.config import ActionChoice
from fastac.garbage import loading
from fastac.presets import PRESETS
from fastac.text import fit

if TYPE_CHECKING:
    from fastac.presets.preset import Preset


@dataclass(frozen=True)
class EvalOptions:
    """Play episodes with a run's best policy, and print the mean of the raw returns."""

    run_dir: Path
    """The run's directory."""
    episodes: int = 100
    """Number of episodes to play."""
    seed: int = 0
    """Seed of the environments and of sampled actions."""
    actions: ActionChoice | None = None
    """Actions: the most likely ones (greedy), or sampled as in training (sampled). Default: the run's eval-actions."""
    checkpoint: Literal["best", "last"] = "best"
    """Policy to play: that of the best evaluation (best), or that of the end of training (last)."""
    max_steps: int | None = None
    """Number of steps after which an episode is cut. Default: as in the run's own evaluations."""
    json: bool = False
    """Print the result as one JSON line."""


@dataclass(frozen=True)
class RecordOptions:
    """Record an episode of a run's best policy as a GIF or MP4."""

    run_dir: Path
    """The run's directory."""
    output: Path | None = None
    """The .gif or .mp4 file. Default: episode.gif in the run's directory."""
    seed: int = 0
    """Seed of the environment."""
    checkpoint: Literal["best", "last"] = "best"
    """Policy to play: that of the best evaluation (best), or that of the end of training (last)."""


@dataclass(frozen=True)
class ExportOptions:
    """Write a run's best policy as a file for programs without fastac, after comparing the two."""

    run_dir: Path
    """The run's directory."""
    format: Literal["onnx", "torchscript", "npz"] = "onnx"
    """Format: onnx, torchscript (for torch, also from C++) or npz (arrays, for NumPy alone)."""
    output: Path | None = None
    """The file: .onnx, .pt or .npz. Default: policy in the run's directory. A .json beside it tells what is in it."""
    checkpoint: Literal["best", "last"] = "best"
    """Policy to write: that of the best evaluation (best), or that of the end of training (last)."""


@dataclass(frozen=True)
class PlotOptions:
    """Draw learning curves of runs as a PNG: mean and spread over seeds."""

    run_dirs: tuple[Path, ...] = ()
    """The runs' directories."""
    output: Path = field(default_factory=lambda: Path("learning-curves.png"))
    """The PNG file to write."""
    x: Literal["env_steps", "seconds"] = "env_steps"
    """Quantity on the x-axis."""


@dataclass(frozen=True)
class ListOptions:
    """List the presets and the returns that they reach."""


def evaluate(words: Sequence[str]) -> int:
    """Run `fastac eval`."""
    options = read_run_options(EvalOptions, words, "eval")
    with loading():
        from fastac import api

        run = api.load(options.run_dir, checkpoint=options.checkpoint)
    actions = options.actions or run.config.run.eval_actions
    result = api.evaluate(run, options.episodes, options.seed, actions=actions, max_steps=options.max_steps)
    if options.json:
        names = ("mean_return", "std_return", "mean_length", "episodes", "cut", "success_rate")
        print(json.dumps({name: getattr(result, name) for name in names}))
        return 0
    more = "" if result.success_rate is None else f", {result.success_rate:.0%} of them successes"
    more += f", {result.cut} of them cut before they ended" if result.cut else ""
    text = (
        f"mean return {result.mean_return:.2f} +- {result.std_return:.2f}, mean length {result.mean_length:.1f}, "
        f"{result.episodes} {actions} episodes{more}"
    )
    print(fit(text, sys.stdout))
    return 0


def record(words: Sequence[str]) -> int:
    """Run `fastac record`."""
    options = read_run_options(RecordOptions, words, "record")
    with loading():
        from fastac import api
        from fastac.tools.record import record as film

    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # frames are captured, no window is shown

    output = options.output or options.run_dir / "episode.gif"
    run = api.load(options.run_dir, checkpoint=options.checkpoint)
    greedy = run.config.run.eval_actions == "greedy"
    episode = film(run.policy, run.config.env, output, options.seed, greedy=greedy)
    print(fit(f"{output}: one episode, return {episode.return_:.1f}, {episode.length} steps", sys.stdout))
    return 0


def export(words: Sequence[str]) -> int:
    """Run `fastac export`."""
    options = read_run_options(ExportOptions, words, "export")
    with loading():
        from fastac import api
        from fastac.tools.export import export as write

    run = api.load(options.run_dir, checkpoint=options.checkpoint)
    for name, text in write(run, options.output, format=options.format).tell():
        print(fit(f"{name:<10}{text}", sys.stdout, hang=10))
    return 0


def plot(words: Sequence[str]) -> int:
    """Run `fastac plot`."""
    options = read_options(PlotOptions, words, "fastac plot", ["run_dirs"])
    from fastac.tools.plot import plot as draw

    draw(options.run_dirs, options.output, options.x)
    print(options.output)
    return 0


def list_presets(words: Sequence[str]) -> int:
    """Run `fastac list`."""
    read_options(ListOptions, words, "fastac list")
    print(_tell_presets_by_environment() if sys.stdout.isatty() else _tell_presets())
    return 0


def _tell_presets() -> str:
    """Return one line per preset, for programs that search for one."""
    head = f"{'environment':<45}{'preset':<16}{'reaches':>8}  what it is"
    return "\n".join([head, *(f"{preset.env_id:<45}{_tell_preset(preset)}" for preset in PRESETS)])


def _tell_presets_by_environment() -> str:
    """Return presets grouped by environment, which leaves room for their descriptions."""
    env_ids = dict.fromkeys(preset.env_id for preset in PRESETS)  # in order
    lines = [f"{'  preset':<18}{'reaches':>8}  what it is"]
    for env_id in env_ids:
        lines += ["", env_id]
        lines += [
            fit(f"  {_tell_preset(preset)}", sys.stdout, hang=26) for preset in PRESETS if preset.env_id == env_id
        ]
    return "\n".join(lines)


def _tell_preset(preset: Preset) -> str:
    reaches = "-" if preset.reaches is None else f"{preset.reaches:g}"
    return f"{preset.name:<16}{reaches:>8}  {preset.what}"
