"""Finds the fastest settings for a configuration on this machine, and stores them.

Speed depends on how the environments are batched, how many workers share them, and whether learning reuses the
forward passes of acting. None of these changes the algorithm. The number of environments does, as every update then
learns from more rows, so larger numbers are measured for information only. A vectorization that the configuration
names is kept.

The search is not exhaustive: it varies one setting at a time, starting from the best so far, and skips settings that
cannot differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TypeAlias, cast

import numpy as np

from fastac.build import assemble, resolve_shards, torch_threads
from fastac.config import Config, ConfigValue, JsonValue, Vectorization
from fastac.contract import EnvFailure, WorkerFailure
from fastac.cpu import count_cores, count_physical_cores
from fastac.envs import offered_vectorizations
from fastac.runs.files import RecordError, read_json, replace_json
from fastac.runs.provenance import versions
from fastac.system import cpu_model

Measure: TypeAlias = Callable[[Config], float]  # steps/s of a configuration

TUNED = ("workers", "vectorization", "reuse_forward")  # stored. More workers than shards make more shards: other data

_MARGIN = 1.03  # minimum speed-up to prefer a setting: less is noise
_GROWTH = 4  # factor between numbers of environments
_LEAST_GAIN = 1.1  # minimum speed-up by more environments; else the search for their number ends
_MOST_ROWS = 2**20  # of a rollout
_WARM_UP = 0.15  # share of a measurement's time, at least one iteration


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run a configuration; the fields are the configuration's."""

    num_envs: int
    workers: int
    vectorization: Vectorization
    reuse_forward: bool

    @property
    def flags(self) -> str:
        """The command-line flags, without the number of environments."""
        reuse = "" if self.reuse_forward else "no-"
        return f"--workers {self.workers} --vectorization {self.vectorization} --{reuse}reuse-forward"


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measured setting.

    Attributes:
        setting: the measured setting.
        sps: steps/s; 0 if the setting does not work here.
        took_s: seconds of the trial.
        failure: why it does not work, in a sentence; empty if it does.
    """

    setting: Setting
    sps: float
    took_s: float
    failure: str = ""


def measure_sps(config: Config, seconds: float) -> float:
    """Train for `seconds`, with a negligible learning rate, and return the steps/s.

    The policy thus stays untrained, and the same in all measurements. At least two iterations are done; the first one
    does not count.

    Raises:
        ValueError: see `assemble`.
        EnvFailure: an environment failed.
        WorkerFailure: a worker failed.
    """
    config = resolve_shards(config.replace(learning_rate=1e-12, total_env_steps=10**15))  # as a run does
    seed, threads = np.random.SeedSequence(config.run.seed), config.run.torch_threads
    with torch_threads(threads), closing(assemble(config, seed)) as training:
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
        seconds: duration of a measurement.
        own: trials with the configuration's own number of environments; the first is the simplest setting.
        larger: trials with more environments.
    """

    def __init__(self, config: Config, measure: Measure, seconds: float, cores: int | None = None) -> None:
        """Take the configuration to tune.

        Args:
            config: of the searched fields only its number of environments matters, and its vectorization unless auto.
            measure: usually `measure_sps`.
            seconds: duration of a measurement; numbers of environments for which a single iteration would take longer
                are skipped.
            cores: the maximum number of workers; by default this machine's physical cores.

        Raises:
            ValueError: the number of workers is part of the algorithm.
        """
        if config.algo.has_async_workers:
            raise ValueError(
                "algo is 'a3c', expected one whose workers are in step: how many of them share its environments is "
                "part of A3C, not of how fast it runs; --workers auto, a worker per core, is fastest."
            )
        self._config, self._measure, self.seconds = config, measure, seconds
        self._cores = 1 if config.run.device != "cpu" else cores or count_physical_cores()
        self._offered = offered_vectorizations(config.env)
        self.own: list[Measurement] = []
        self.larger: list[Measurement] = []

    @property
    def best(self) -> Measurement:
        """The fastest trial with the configuration's own number of environments; the simplest of nearly equal ones."""
        return _best(self.own)

    @property
    def fastest(self) -> Measurement:
        """The fastest of all trials; of nearly equal ones that with the fewest environments."""
        return _best(self.own + self.larger)

    def run(self) -> Iterator[Measurement]:
        """Measure with the configuration's own number of environments; yield each trial when it is done.

        Raises:
            ValueError: the configuration does not work at all.
            EnvFailure: an environment failed in the simplest setting.
        """
        plainest, *others = (
            Setting(self._config.env.num_envs, 1, vectorization, reuse_forward=True) for vectorization in self._offered
        )
        yield self._try(plainest, self.own)
        for other in filter(self._is_worth_trying, others):
            yield self._try(other, self.own)
        shared = self._best_shared
        before_sps = shared.sps
        for workers in self._worker_counts():
            setting = replace(shared.setting, workers=workers)
            if not self._fits(setting):
                continue
            trial = self._try(setting, self.own)
            yield trial
            if trial.sps < before_sps:  # with more workers the cost of communication only grows
                break
            before_sps = trial.sps
        if self._can_reuse:
            yield self._try(replace(self.best.setting, reuse_forward=False), self.own)

    def grow(self) -> Iterator[Measurement]:
        """Measure with more and more environments, until the gain is small; call it after `run`. Yield each trial."""
        setting, sps = self.best.setting, self.best.sps
        shared = self._best_shared.setting.vectorization
        while True:
            setting = replace(setting, num_envs=setting.num_envs * _GROWTH)
            rows = setting.num_envs * self._config.algo.num_steps
            if rows > _MOST_ROWS or rows / sps > self.seconds:
                return
            candidates = [setting]
            for vectorization in (shared, self._offered[0]):  # more environments can keep more workers busy
                candidates.append(replace(setting, workers=self._cores, vectorization=vectorization))
            trials = []
            for candidate in filter(self._fits, dict.fromkeys(candidates)):
                trials.append(self._try(candidate, self.larger))
                yield trials[-1]
            if not trials or _best(trials).sps < _LEAST_GAIN * sps:
                return
            setting, sps = _best(trials).setting, _best(trials).sps

    @property
    def _best_shared(self) -> Measurement:
        """The fastest trial so far whose environments can be shared by workers; the first trial if there is none."""
        return _best([trial for trial in self.own if trial.setting.vectorization != "process"] or self.own)

    def _is_worth_trying(self, setting: Setting) -> bool:
        """Return whether a vectorization can be faster than the first: processes need cores and environments."""
        is_parallel = setting.num_envs > 1 and count_cores() > 1
        return (setting.vectorization != "process" or is_parallel) and self._fits(setting)

    @property
    def _can_reuse(self) -> bool:
        """Whether an update can learn from the forward passes of acting: with one minibatch, on the CPU."""
        return self._config.algo.num_minibatches == 1 and self._config.run.device == "cpu"

    def _worker_counts(self) -> list[int]:
        """Return the powers of two above 1 up to the number of cores, and that number itself."""
        powers = {2**power for power in range(1, self._cores.bit_length()) if 2**power <= self._cores}
        return sorted(powers | ({self._cores} - {1}))

    def _apply(self, setting: Setting) -> Config:
        return self._config.replace(**asdict(setting))

    def _fits(self, setting: Setting) -> bool:
        """Return whether the configuration accepts a setting: even shares, and a vectorization the env supports."""
        try:
            self._apply(setting)
        except ValueError:
            return False
        return True

    def _try(self, setting: Setting, trials: list[Measurement]) -> Measurement:
        """Measure a setting; only a failure of the first one is raised."""
        config = self._apply(setting)
        began_s = perf_counter()
        sps, failure = 0.0, ""
        try:
            sps = self._measure(config)
        except (ValueError, EnvFailure, WorkerFailure) as error:
            if not self.own:
                raise
            failure = str(error)
        trials.append(Measurement(setting, sps, perf_counter() - began_s, failure))
        return trials[-1]


def _best(trials: list[Measurement]) -> Measurement:
    best = trials[0]
    for trial in trials[1:]:
        if trial.sps > _MARGIN * best.sps:
            best = trial
    return best


def load_tuned(config: Config) -> Setting | None:
    """Return the setting that `save_tuned` stored for a configuration on this machine, or None.

    A damaged file counts as missing: it will be overwritten.
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


def save_tuned(config: Config, best: Measurement) -> Path:
    """Store the best setting for a configuration on this machine; return the path.

    Raises:
        RecordError: the location is not writable, or there is no home directory.
    """
    path = cache_path(config)
    if path is None:
        raise RecordError("there is no home directory; set XDG_CACHE_HOME to a directory.")
    setting = {name: getattr(best.setting, name) for name in TUNED}
    replace_json(path, {"machine_and_run": _key(config), "setting": setting, "sps": best.sps})
    return path


def cache_path(config: Config) -> Path | None:
    """Return the file for a configuration on this machine, or None if there is no home directory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # the XDG specification says to ignore relative paths
        try:
            cache = Path.home() / ".cache"
        except RuntimeError:  # a container's user without an entry in the user database
            return None
    key = json.dumps(_key(config), sort_keys=True).encode()
    name = re.sub(r"[^\w.-]+", "_", config.env.env_id)  # ids contain "/" and ":"
    return cache / "fastac" / "tuned" / f"{name}-{config.algo.algo}-{hashlib.sha256(key).hexdigest()[:16]}.json"


def _key(config: Config) -> dict[str, JsonValue]:
    """Return all values that the best setting depends on."""
    env, algo, model = asdict(config.env), asdict(config.algo), asdict(config.model)
    return {
        "env": {name: env[name] for name in env if name not in TUNED},
        "algo": {name: algo[name] for name in ("algo", "collect", "num_steps", "num_epochs", "num_minibatches")},
        "model": {name: model[name] for name in model if name != "log_std_init"},
        "device": config.run.device,
        "vectorization": config.env.vectorization,
        "envpool": versions().get("envpool"),
        "cpu": cpu_model(),
        "cores": count_cores(),
        "fastac": versions().get("fastac"),
    }
