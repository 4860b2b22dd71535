"""Finds the fastest way to run a configuration on this machine, and keeps what it found.

Speed depends on how the environments are batched, how many workers share them, and whether learning
starts from the forwards that acted. None of these changes the algorithm. The number of environments
does, as every update then learns from more rows, so larger numbers are measured only to be told.

Not the whole product of settings is measured: one is varied at a time, from the best so far, and none
that cannot differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TypeAlias, cast

import numpy as np

from fastac.build import assemble, single_thread
from fastac.config import Config, ConfigValue, JsonValue, Vectorization
from fastac.contract import EnvFailure, WorkerFailure
from fastac.cpu import count_cores, count_physical_cores
from fastac.envs import has_native
from fastac.runs.files import RecordError, read_json, replace_json
from fastac.runs.provenance import versions

Measure: TypeAlias = Callable[[Config], float]  # steps/s of a configuration

TUNED = ("workers", "vectorization", "reuse_forward")  # what is kept, and changes no algorithm

_MARGIN = 1.03  # a setting must be so much faster to be taken: less is noise
_GROWTH = 4  # between numbers of environments
_LEAST_GAIN = 1.1  # of so many environments more, or the search for their number ends
_MOST_ROWS = 2**20  # of a rollout
_WARM_UP = 0.15  # of the time of a measurement, at least one iteration


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run a configuration; the fields are the configuration's."""

    num_envs: int
    workers: int
    vectorization: Vectorization
    reuse_forward: bool

    @property
    def flags(self) -> str:
        """The command line's flags, the number of environments excepted."""
        reuse = "" if self.reuse_forward else "no-"
        return f"--workers {self.workers} --vectorization {self.vectorization} --{reuse}reuse-forward"


@dataclass(frozen=True, slots=True)
class Trial:
    """A measured setting.

    Attributes:
        setting: what was measured.
        sps: steps/s; 0 where the setting does not work here.
        took_s: how long it took to find out.
        failure: why it does not work, in a sentence; empty if it does.
    """

    setting: Setting
    sps: float
    took_s: float
    failure: str = ""


def measure_sps(config: Config, seconds: float) -> float:
    """Train for so many seconds, at a rate that leaves the policy untrained, and return the steps/s.

    An untrained policy stays the same in all measurements. At least two iterations are done, of which
    the first is not counted.

    Raises:
        ValueError: as `assemble`.
        EnvFailure: an environment failed.
        WorkerFailure: a worker failed.
    """
    config = config.replace(learning_rate=1e-12, total_env_steps=10**15)
    with single_thread(), closing(assemble(config, np.random.SeedSequence(config.run.seed))) as training:
        stream = training.trainer.run()
        first = next(stream)
        while first.train_wall_s < _WARM_UP * seconds:
            first = next(stream)
        for report in stream:
            took_s = report.train_wall_s - first.train_wall_s
            if took_s >= seconds:
                return (report.env_steps - first.env_steps) / took_s
    raise AssertionError("the budget of environment steps was spent")


class Search:
    """Measures settings one after the other.

    Attributes:
        seconds: that a measurement takes.
        own: with the configuration's own number of environments; the first is the plainest.
        larger: with more of them.
    """

    def __init__(self, config: Config, measure: Measure, seconds: float, cores: int | None = None) -> None:
        """Take what to tune.

        Args:
            config: its fields that are searched count only for the number of environments.
            measure: usually `measure_sps`.
            seconds: that a measurement takes; numbers of environments of which a single iteration would
                take longer are left out.
            cores: the most workers; by default this machine's physical cores.

        Raises:
            ValueError: an algorithm that is another one with another number of workers.
        """
        if config.algo.has_async_workers:
            raise ValueError(
                "algo is 'a3c', expected one whose workers are in step: how many of them share its environments is "
                "part of A3C, not of how fast it runs; --workers auto, a worker per core, is fastest."
            )
        self._config, self._measure, self.seconds = config, measure, seconds
        self._cores = 1 if config.run.device != "cpu" else cores or count_physical_cores()
        self._is_native = has_native(config.env)
        self.own: list[Trial] = []
        self.larger: list[Trial] = []

    @property
    def best(self) -> Trial:
        """The fastest with the configuration's own number of environments; of nearly equal ones the plainest."""
        return _best(self.own)

    @property
    def fastest(self) -> Trial:
        """The fastest of all; of nearly equal ones the one with the fewest environments."""
        return _best(self.own + self.larger)

    def run(self) -> Iterator[Trial]:
        """Measure with the configuration's own number of environments; yield each trial when it is done.

        Raises:
            ValueError: the configuration does not work at all.
            EnvFailure: an environment failed in the plainest setting.
        """
        num_envs = self._config.env.num_envs
        plainest = Setting(num_envs, 1, "native" if self._is_native else "sync", reuse_forward=True)
        yield self._try(plainest, self.own)
        other = replace(plainest, vectorization="sync" if self._is_native else "process")
        if (self._is_native or (num_envs > 1 and count_cores() > 1)) and self._fits(other):
            yield self._try(other, self.own)
        before_sps = self.own[0].sps
        for workers in self._worker_counts():
            setting = replace(plainest, workers=workers)
            if not self._fits(setting):
                continue
            trial = self._try(setting, self.own)
            yield trial
            if trial.sps < before_sps:  # what more of them have to exchange only grows
                break
            before_sps = trial.sps
        if self._can_reuse:
            yield self._try(replace(self.best.setting, reuse_forward=False), self.own)

    def grow(self) -> Iterator[Trial]:
        """After `run`, measure with more and more environments, until that gains no more; yield each trial."""
        setting, sps = self.best.setting, self.best.sps
        plain: Vectorization = "native" if self._is_native else "sync"
        while True:
            setting = replace(setting, num_envs=setting.num_envs * _GROWTH)
            rows = setting.num_envs * self._config.algo.num_steps
            if rows > _MOST_ROWS or rows / sps > self.seconds:
                return
            settings = [setting]
            if setting.workers < self._cores:  # more environments keep more workers busy
                settings.append(replace(setting, workers=self._cores, vectorization=plain))
            trials = []
            for candidate in filter(self._fits, settings):
                trials.append(self._try(candidate, self.larger))
                yield trials[-1]
            if not trials or _best(trials).sps < _LEAST_GAIN * sps:
                return
            setting, sps = _best(trials).setting, _best(trials).sps

    @property
    def _can_reuse(self) -> bool:
        """Whether an update may learn from the forwards that acted: if it is of the whole rollout, on the CPU."""
        return self._config.algo.num_minibatches == 1 and self._config.run.device == "cpu"

    def _worker_counts(self) -> list[int]:
        """Return the powers of two beyond 1, up to as many as there are cores, and these."""
        powers = {2**power for power in range(1, self._cores.bit_length()) if 2**power <= self._cores}
        return sorted(powers | ({self._cores} - {1}))

    def _apply(self, setting: Setting) -> Config:
        return self._config.replace(**asdict(setting))

    def _fits(self, setting: Setting) -> bool:
        """Return whether the configuration takes a setting: shares that divide, and a batching that the env has."""
        try:
            self._apply(setting)
        except ValueError:
            return False
        return True

    def _try(self, setting: Setting, trials: list[Trial]) -> Trial:
        """Measure a setting; only the first one must work."""
        config = self._apply(setting)
        began_s = perf_counter()
        sps, failure = 0.0, ""
        try:
            sps = self._measure(config)
        except (ValueError, EnvFailure, WorkerFailure) as error:
            if not self.own:
                raise
            failure = str(error)
        trials.append(Trial(setting, sps, perf_counter() - began_s, failure))
        return trials[-1]


def _best(trials: list[Trial]) -> Trial:
    best = trials[0]
    for trial in trials[1:]:
        if trial.sps > _MARGIN * best.sps:
            best = trial
    return best


def load_tuned(config: Config) -> Setting | None:
    """Return what `save_tuned` kept for a configuration on this machine, or None.

    A file that is damaged is as none: it will be written again.
    """
    path = cache_path(config)
    try:
        saved = read_json(path)["setting"] if path is not None else None
        if not isinstance(saved, dict):
            return None
        tuned = config.replace(**{name: cast("ConfigValue", saved[name]) for name in TUNED})
    except (ValueError, KeyError):
        return None
    workers = tuned.run.workers
    if workers == "auto":
        return None
    return Setting(tuned.env.num_envs, workers, tuned.env.vectorization, tuned.run.reuse_forward)


def save_tuned(config: Config, best: Trial) -> Path:
    """Keep the best setting for a configuration on this machine; return where.

    Raises:
        RecordError: the place cannot be written, or there is none.
    """
    path = cache_path(config)
    if path is None:
        raise RecordError("there is no home directory; set XDG_CACHE_HOME to a directory.")
    setting = {name: getattr(best.setting, name) for name in TUNED}
    replace_json(path, {"machine_and_run": _key(config), "setting": setting, "sps": best.sps})
    return path


def cache_path(config: Config) -> Path | None:
    """Return the file for a configuration on this machine, or None where there is no home directory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # what is relative is to be ignored, says the XDG specification
        try:
            cache = Path.home() / ".cache"
        except RuntimeError:  # a container's user that the system does not know
            return None
    key = json.dumps(_key(config), sort_keys=True).encode()
    name = re.sub(r"[^\w.-]+", "_", config.env.env_id)  # ids hold "/" and ":"
    return cache / "fastac" / "tuned" / f"{name}-{config.algo.algo}-{hashlib.sha256(key).hexdigest()[:16]}.json"


def _key(config: Config) -> dict[str, JsonValue]:
    """Return all that the best setting depends on."""
    env, algo, model = asdict(config.env), asdict(config.algo), asdict(config.model)
    return {
        "env": {name: env[name] for name in env if name not in TUNED},
        "algo": {name: algo[name] for name in ("algo", "collect", "num_steps", "num_epochs", "num_minibatches")},
        "model": {name: model[name] for name in model if name != "log_std_init"},
        "device": config.run.device,
        "cpu": cpu_model(),
        "cores": count_cores(),
        "fastac": versions().get("fastac"),
    }


def cpu_model() -> str:
    """Return the processor's name, as well as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
