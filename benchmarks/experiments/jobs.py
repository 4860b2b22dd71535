"""The trials of an experiment and their files; a finished trial is never repeated."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

from benchmarks.experiments.definition import Arm, Curve, Experiment, Measure, Measurement, Number
from fastac.config import Config, JsonValue
from fastac.cpu import count_cores
from fastac.install import Extra
from fastac.runs.files import read_json, replace_json
from fastac.runs.provenance import git_commit, versions
from fastac.system import cpu_model

# Importable names of the packages that experiments use, by the fastac extra that installs them.
EXTRAS: dict[Extra, tuple[str, ...]] = {
    "experiments": ("Box2D", "matplotlib", "scipy", "stable_baselines3"),
    "mujoco": ("mujoco",),
}


@dataclass(frozen=True, slots=True)
class Job:
    """An arm with a seed, which becomes one trial."""

    arm: Arm
    seed: int

    def __str__(self) -> str:
        """Return the job's name."""
        return f"{self.arm.group} / {self.arm.name} / seed {self.seed}"

    @property
    def config(self) -> Config:
        """The arm's configuration, with the seed."""
        return self.arm.config.replace(seed=self.seed)

    def path(self, out: Path) -> Path:
        """Return the path of the trial's file."""
        return out / "trials" / f"{_slug(self.arm.group)}-{_slug(self.arm.name)}-seed{self.seed}.json"

    @property
    def settings(self) -> dict[str, JsonValue]:
        """The settings that a file must have to belong to this job, in JSON types."""
        return _flatten_measure(_describe(self.arm.measure)) | flatten(self.config)


@dataclass(frozen=True, slots=True)
class Saved:
    """The content of a trial's file.

    Attributes:
        measurement: the measurement.
        machine: the machine it ran on: `cpu`, `cores`, `versions` and `commit`.
    """

    measurement: Measurement
    machine: Mapping[str, JsonValue]


def list_jobs(experiment: Experiment, seeds: int) -> list[Job]:
    """Return all jobs, ordered by seed: if the machine slows down over time, all arms are affected equally.

    Raises:
        ValueError: `seeds` is below 1, or two arms would have the same file.
    """
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}, expected at least 1.")
    jobs = [Job(arm, seed) for seed in range(seeds) for arm in experiment.arms]
    owners: dict[Path, Job] = {}
    for job in jobs:
        other = owners.setdefault(job.path(Path()), job)
        if other is not job:
            raise ValueError(f"the arms of {other} and {job} would have the same file: give one another name.")
    return jobs


def save_measurement(
    job: Job, out: Path, measurement: Measurement, wall_s: float, machine: Mapping[str, JsonValue]
) -> None:
    """Write a trial's file atomically.

    Raises:
        RecordError: the disk is full, or the location is not writable.
    """
    curves: dict[str, JsonValue] = {
        name: {"x": list(curve.x), "y": list(curve.y)} for name, curve in measurement.curves.items()
    }
    content: dict[str, JsonValue] = {
        "group": job.arm.group,
        "arm": job.arm.name,
        "measure": _describe(job.arm.measure),
        "config": job.config.to_dict(),
        "machine": dict(machine),
        "wall_s": wall_s,
        "values": dict(measurement.values),
        "curves": curves,
    }
    replace_json(job.path(out), content)


def load_measurement(job: Job, out: Path) -> Saved | None:
    """Read a trial's file; return None if there is none.

    Raises:
        ValueError: the file is damaged, or has other settings.
    """
    path = job.path(out)
    if not os.path.exists(path):  # Path.exists raises for an inaccessible folder; writing gives a better error
        return None
    content = read_json(path)
    try:
        found = _flatten_measure(cast("dict[str, JsonValue]", content["measure"]))
        for section in cast("dict[str, dict[str, JsonValue]]", content["config"]).values():
            found |= section
        curves = {
            name: Curve(tuple(curve["x"]), tuple(curve["y"]))
            for name, curve in cast("dict[str, dict[str, list[float]]]", content["curves"]).items()
        }
        measurement = Measurement(curves, cast("dict[str, Number]", content["values"]))
        saved = Saved(measurement, cast("dict[str, JsonValue]", content["machine"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no trial of this fastac ({error!r}): choose another --out.") from error
    expected = job.settings
    other = [name for name in expected | found if found.get(name) != expected.get(name)]
    if other:
        differences = ", ".join(f"{name} {found.get(name)!r}, now {expected.get(name)!r}" for name in other)
        raise ValueError(f"{path} is a trial with other settings ({differences}): choose another --out.")
    return saved


def check_out(experiment: Experiment, out: Path) -> None:
    """Refuse a directory with trials of another experiment, whose report this one would replace.

    Raises:
        ValueError: the directory has such trials.
    """
    known = {Job(arm, 0).path(out).name.rpartition("-seed")[0] for arm in experiment.arms}
    for path in sorted((out / "trials").glob("[!.]*.json")):
        if path.name.rpartition("-seed")[0] not in known:
            raise ValueError(f"{path} is no trial of {experiment.name}: choose another --out.")


def check_measurement(measurement: Measurement) -> None:
    """Refuse a measurement that is not usable for statistics and pictures.

    Raises:
        ValueError: a number is not finite, or a curve is malformed.
    """
    for name, value in measurement.values.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"the value {name} is {value!r}, expected a finite number, or None.")
    for name, curve in measurement.curves.items():
        if not curve.x or len(curve.x) != len(curve.y):
            raise ValueError(
                f"the curve {name} has {len(curve.x)} x and {len(curve.y)} y, expected as many, at least 1."
            )
        if not all(map(math.isfinite, curve.x + curve.y)):
            raise ValueError(f"the curve {name} has numbers that are NaN or infinite, expected finite ones.")
        if any(b < a for a, b in zip(curve.x, curve.x[1:], strict=False)):
            raise ValueError(f"the curve {name} goes back in x, expected x to rise.")


def flatten(config: Config) -> dict[str, JsonValue]:
    """Return a configuration's settings by their flat names, in JSON types."""
    flat: dict[str, JsonValue] = {}
    for section in cast("dict[str, dict[str, JsonValue]]", config.to_dict()).values():
        flat |= {name: list(value) if isinstance(value, tuple) else value for name, value in section.items()}
    return flat


def describe_machine(experiment: Experiment) -> dict[str, JsonValue]:
    """Return the machine of the trials: `cpu`, `cores`, `versions` and `commit`."""
    software: dict[str, JsonValue] = dict(versions())
    for name in (name for extra in experiment.extras for name in EXTRAS[extra]):
        with suppress(PackageNotFoundError):  # if the distribution has another name
            software[name] = version(name)
    return {"cpu": cpu_model(), "cores": count_cores(), "versions": software, "commit": git_commit()}


def _describe(measure: Measure) -> dict[str, JsonValue]:
    """Return a measure's name and code hash and, for a `partial`, its arguments."""
    if isinstance(measure, partial):
        assert not measure.args, "name the arguments"
        return _describe(measure.func) | {name: repr(value) for name, value in measure.keywords.items()}
    # Hash the whole module, including functions that the measure calls. The commit identifies the rest of fastac.
    code = sha256(inspect.getsource(inspect.getmodule(measure) or measure).encode()).hexdigest()
    return {"name": f"{measure.__module__}.{measure.__qualname__}", "code": code[:12]}


def _flatten_measure(described: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {f"measure's {name}": value for name, value in described.items()}


def _slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name.lower()).strip("-")
