"""Tracking services: Weights & Biases and MLflow, which must neither end nor slow a run.

A service is opened and written to by a thread of its own. If it fails, the run warns once and goes on without it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Protocol, cast

from fastac.config import Config, JsonValue
from fastac.install import INSTALL, Extra
from fastac.runs.files import explain, read_json
from fastac.runs.run_dir import RunDirectory
from fastac.runs.writers import ScalarWriter

log = logging.getLogger("fastac")

_OPEN_S = 10.0  # seconds that a run at Weights & Biases may take to begin; the end of the program waits as long
_CLOSE_S = 20.0  # seconds that the end of a run waits for a service
_MOST_WAITING = 10_000  # sets of scalars; beyond, a service has not answered for hours
_PARAMS = 100  # of one request to MLflow


class Service(Protocol):
    """One run at a tracking service; all methods may block, and raise anything.

    Attributes:
        run_id: the service's own id of the run.
    """

    run_id: str

    def log(self, env_steps: int, scalars: Mapping[str, float]) -> None:
        """Add scalars by tag."""

    def finish(self, is_complete: bool) -> None:
        """Send the rest, and mark the run as complete or interrupted."""


class Wandb:
    """A run at Weights & Biases, or the one that the program has begun with `wandb.init`, which then stays open.

    The environment's variables hold, such as WANDB_PROJECT, WANDB_NAME, WANDB_MODE=offline and WANDB_DIR.
    """

    def __init__(self, config: Config, directory: Path, run_id: str | None) -> None:
        """Begin a run, or continue the one with an id.

        Raises:
            ConnectionError: nobody has logged in.
        """
        import wandb

        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise ConnectionError("there is no login: call wandb login, or set WANDB_MODE=offline")
        self._is_ours = wandb.run is None
        self._run = wandb.run or wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fastac"),
            name=os.environ.get("WANDB_NAME", directory.name),
            dir=os.environ.get("WANDB_DIR", str(directory)),
            config=config.to_flat(),
            id=run_id,
            resume=None if run_id is None else "allow",
            settings=wandb.Settings(
                console="off",  # it would catch what the progress bar draws
                init_timeout=_OPEN_S,
            ),
        )
        self.run_id: str = self._run.id

    def log(self, env_steps: int, scalars: Mapping[str, float]) -> None:
        """Add scalars, with env steps as the step."""
        self._run.log(dict(scalars), step=env_steps)

    def finish(self, is_complete: bool) -> None:
        """Upload the rest."""
        if self._is_ours:
            self._run.finish(exit_code=0 if is_complete else 1)


class Mlflow:
    """A run in MLflow.

    The environment's variables hold, such as MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME.
    """

    def __init__(self, config: Config, directory: Path, run_id: str | None) -> None:
        """Begin a run, or continue the one with an id; its parameters are those that it began with."""
        import mlflow
        from mlflow.entities import Metric, Param

        self._client, self._metric = mlflow.MlflowClient(), Metric
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
            self.run_id: str = run_id
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fastac")
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        self.run_id = self._client.create_run(experiment, run_name=directory.name).info.run_id
        params = [Param(key, str(value)) for key, value in config.to_flat().items()]
        for begin in range(0, len(params), _PARAMS):
            self._client.log_batch(self.run_id, params=params[begin : begin + _PARAMS])

    def log(self, env_steps: int, scalars: Mapping[str, float]) -> None:
        """Add scalars, with env steps as the step; characters that MLflow refuses in a name become underscores."""
        now_ms = int(1000 * time.time())
        names = {tag: "".join(c if c.isalnum() or c in "_-. /" else "_" for c in tag) for tag in scalars}
        metrics = [self._metric(names[tag], value, now_ms, env_steps) for tag, value in scalars.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def finish(self, is_complete: bool) -> None:
        """Set the run's status."""
        self._client.set_terminated(self.run_id, status="FINISHED" if is_complete else "KILLED")


SERVICES: dict[str, Callable[[Config, Path, str | None], Service]] = {"wandb": Wandb, "mlflow": Mlflow}


def check_installed(config: Config) -> None:
    """Import the packages of the configured services.

    Raises:
        ValueError: one is not installed; the message says how to install it.
    """
    for name in SERVICES:
        if name not in config.run.log:
            continue
        try:  # a folder of that name, as wandb leaves one, can be imported, too, but has no version
            is_there = hasattr(import_module(name), "__version__")
        except ImportError:
            is_there = False
        if not is_there:
            install = INSTALL[cast(Extra, name)]
            raise ValueError(f"log is {config.run.log!r}, which needs {name}, which is not installed: {install}.")


class ServiceWriter(ScalarWriter):
    """Hands scalars to the thread that writes them to a service.

    `<service>.json` in the run's directory has the service's id of the run, and of each scalar the last step that was
    sent. A resumed run continues there: what a service has got stays, and is not sent again.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        directory: RunDirectory,
        is_resumed: bool,
        clock: Callable[[], float] = time.monotonic,
        close_s: float = _CLOSE_S,
    ) -> None:
        """Begin to open the service.

        Args:
            name: a key of `SERVICES`.
            config: the run's configuration.
            directory: the run's directory.
            is_resumed: whether the run continues, there as here.
            clock: returns seconds; limits the rate of rows.
            close_s: seconds that `close` waits at most.
        """
        super().__init__(config, clock)
        self._name, self._config, self._directory, self._close_s = name, config, directory, close_s
        self._path = directory.service_path(name)
        self._run_id: str | None = None
        self._sent: dict[str, int] = {}  # by tag: the last step
        if is_resumed:
            self._read()
        self._is_complete = self._is_out = False
        self._waiting: SimpleQueue[tuple[int, Mapping[str, float]] | None] = SimpleQueue()
        self._thread = Thread(target=self._serve, name=f"fastac-{name}", daemon=True)
        self._thread.start()

    def write_summary(self, summary: Mapping[str, JsonValue]) -> None:
        """Send the metrics by which runs are compared; without a summary, the service shows an interrupted run."""
        super().write_summary(summary)
        self._is_complete = summary.get("stopped_by") is None

    def _write_scalars(self, env_steps: int, scalars: Mapping[str, float]) -> None:
        if self._waiting.qsize() >= _MOST_WAITING:
            self._leave_out("it is too slow")
        if not self._is_out:
            self._waiting.put((env_steps, {tag: value for tag, value in scalars.items() if math.isfinite(value)}))

    def _close(self) -> None:
        self._waiting.put(None)
        self._thread.join(self._close_s)
        if self._thread.is_alive():
            self._leave_out(f"it has not answered for {self._close_s:g} s")

    def _serve(self) -> None:
        """Run in the thread: open the service, write to it, finish."""
        try:
            service = SERVICES[self._name](self._config, self._directory.path, self._run_id)
            self._run_id = service.run_id
            self._save()
            while not self._is_out and (item := self._waiting.get()) is not None:
                env_steps, scalars = item
                new = {tag: value for tag, value in scalars.items() if self._sent.get(tag, -1) < env_steps}
                if new:
                    self._sent.update(dict.fromkeys(new, env_steps))
                    self._save()  # before sending: a kill in between loses a point, and doubles none
                    service.log(env_steps, new)
            service.finish(self._is_complete)
        except Exception as error:  # third-party code may raise any
            self._leave_out(str(error) if isinstance(error, ConnectionError) else explain(error))

    def _leave_out(self, why: str) -> None:
        if not self._is_out:
            self._is_out = True
            log.warning("%s is left out, and the run goes on without it (%s).", self._name, why.rstrip("."))

    def _read(self) -> None:
        with suppress(ValueError, LookupError, TypeError):  # the run began without it, or the file is damaged
            content = read_json(self._path)
            sent = cast("dict[str, int]", content["sent"])
            self._run_id, self._sent = str(content["run_id"]), {tag: int(step) for tag, step in sent.items()}

    def _save(self) -> None:
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps({"run_id": self._run_id, "sent": self._sent}))
        temporary.replace(self._path)
