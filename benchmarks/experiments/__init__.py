"""The lecture's experiments: each compares a few arms over many seeds, and yields a table and a picture."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.util import find_spec

from benchmarks.experiments.definition import Experiment
from benchmarks.experiments.jobs import EXTRAS
from benchmarks.experiments.report import write_report
from benchmarks.experiments.runner import run_experiment
from fastac.install import INSTALL

__all__ = ["find_experiment", "list_experiments", "run_experiment", "write_report"]


def list_experiments() -> tuple[Experiment, ...]:
    """Return all experiments."""
    from benchmarks.experiments.definitions import EXPERIMENTS  # import here, so that tests can replace it

    return EXPERIMENTS


def find_experiment(name: str) -> Experiment:
    """Return the experiment of the given name.

    Raises:
        ValueError: there is no such experiment, or it needs a package that is not installed.
    """
    experiments = {experiment.name: experiment for experiment in list_experiments()}
    if name not in experiments:
        near = get_close_matches(name, experiments, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(experiments)}."
        raise ValueError(f"{name!r} is not an experiment: {hint}")
    for extra in experiments[name].extras:
        for package in EXTRAS[extra]:
            if find_spec(package) is None:
                raise ValueError(f"{name} needs {package}, which is not installed: {INSTALL[extra]}.")
    return experiments[name]
