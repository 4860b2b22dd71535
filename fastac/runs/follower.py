"""A host that trains along: it iterates when the first host does, and does what that one says in between."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path

from fastac.config import Config
from fastac.runs.checkpoint import prune_checkpoints
from fastac.runs.copies import Copy, write_copy
from fastac.runs.signals import Stop, stop_signals
from fastac.workers import Hosts, Training

log = logging.getLogger("fastac")


class Follower:
    """This host's part of a run whose first host is another one.

    Attributes:
        config: the resolved configuration.
        run_dir: the run's directory; a copy if the hosts do not share it.
    """

    def __init__(self, config: Config, run_dir: Path, training: Training, hosts: Hosts) -> None:
        """Take this host's part of the training, and close it in `run`."""
        self.config, self.run_dir, self._training, self._hosts = config, run_dir, training, hosts

    @property
    def stop_signal(self) -> int:
        """The number of the signal by which a user has ended the run, or 0."""
        return self._hosts.signal

    def run(self) -> None:
        """Train until the first host ends the run.

        Raises:
            EnvFailure: an environment failed.
            WorkerFailure: a worker or another host was lost.
            NonFiniteError: a loss or gradient is not finite.
        """
        with closing(self._training), stop_signals() as stop:
            self._hosts.wish = lambda env_steps: self._hear(stop)
            try:
                self._train()
            finally:
                self._hosts.abandon()

    def _train(self) -> None:
        if self._obey() == "end":
            return
        for _ in self._training.trainer.run():
            if self._hosts.is_paused and self._obey() == "end":
                return
        while self._obey() != "end":
            pass

    def _hear(self, stop: Stop) -> bool:
        """Tell the others of a signal of this host's user."""
        self._hosts.own_signal = 0 if stop.signal is None else int(stop.signal)
        return False

    def _obey(self) -> str:
        """Do what the first host says until it goes on or ends the run; return which."""
        while True:
            order = self._hosts.take_order()
            if order == "shards":
                self._hosts.collect(self._training.get_shards())
            elif order == "copy":
                self._take_copy()
            else:
                assert order in ("go", "end"), order
                if order == "end":
                    log.info("host 0 has ended the run after %d env steps", self._training.trainer.env_steps)
                    self._hosts.leave()
                return order

    def _take_copy(self) -> None:
        """Write the first host's checkpoint, if this host writes for its disk."""
        files: Copy = self._hosts.broadcast(None, 0)
        if self._hosts.writes_copies:
            write_copy(self.run_dir, files)
            prune_checkpoints(self.run_dir, self.config.run.keep_checkpoints)
