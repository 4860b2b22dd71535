"""Writers of each iteration's and each evaluation's results: JSON lines and TensorBoard."""

from __future__ import annotations

import itertools
import json
import math
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from fastac.config import Config, JsonValue
from fastac.contract import Report
from fastac.runs.files import check_appendable, reporting
from fastac.runs.hparams import FINAL_TAGS, settings_summary
from fastac.runs.process_meter import ProcessMeter
from fastac.runs.tracker import ReturnTracker

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

INFO = "info/"  # prefix of the keys for values from the episodes' `info`
Row: TypeAlias = Mapping[str, float | int | None]

_PERIOD_S = 1.0
_encode = json.JSONEncoder(allow_nan=False).encode  # json.dumps with options builds an encoder per call


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One evaluation, as recorded.

    Attributes:
        env_steps: training steps before it.
        mean_return: mean raw return of its episodes.
        std: standard deviation of the returns.
        mean_length: mean episode length in env steps.
        wall_s: training seconds before it.
        episodes: number of episodes.
        success_rate: None if its episodes did not report `info["is_success"]`.
    """

    env_steps: int
    mean_return: float
    std: float
    mean_length: float
    wall_s: float
    episodes: int
    success_rate: float | None = None


class Writer(Protocol):
    """Takes rows of progress and evaluations; every method may raise RecordError."""

    def write(self, row: Row) -> None:
        """Record one iteration, a row from `progress_row`."""

    def write_evaluation(self, row: EvaluationRow) -> None:
        """Record one evaluation."""

    def write_summary(self, summary: Mapping[str, JsonValue]) -> None:
        """Record the final results of a run, the content of `summary.json`."""

    def flush(self) -> None:
        """Write buffered rows to the operating system; call it before a checkpoint, so a resumed record has no gap."""

    def close(self) -> None:
        """Flush and close; safe to call twice."""


def progress_row(
    report: Report, tracker: ReturnTracker, action_std: float | None = None
) -> dict[str, float | int | None]:
    """Return one iteration as a flat mapping; takes about 4 us.

    Args:
        report: the iteration.
        tracker: already updated with `report`.
        action_std: see `ActorCritic.action_std`.
    """
    row: dict[str, float | int | None] = {
        "iteration": report.iteration,
        "env_steps": report.env_steps,
        "frames": report.frames,
        "updates": report.updates,
        "episodes": report.episodes,
        "train_wall_s": report.train_wall_s,
        "sps": tracker.sps,
        "sps_window": tracker.sps_window,
        "mean_return": tracker.mean_return,
        "mean_length": tracker.mean_length,
        **report.losses,
    }
    if action_std is not None:
        row["action_std"] = action_std
    for key, value in tracker.extras.items():
        row["success_rate" if key == "is_success" else INFO + key] = value
    return row


class ProgressWriter:
    """Appends each row to `progress.jsonl` and each evaluation to `evaluations.jsonl` in the same folder.

    Numbers that are not finite become null. A kill loses at most the last second of rows.
    """

    def __init__(
        self, path: Path, resume_at: tuple[int, int] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Open the files; they are empty for a new run, and truncated to the checkpoint for a resumed run.

        Args:
            path: the file of rows; its directory exists.
            resume_at: the checkpoint's iteration and env steps, None for a new run. With asynchronous workers both
                may be larger than in the last row before the checkpoint.
            clock: returns seconds; determines when to flush.

        Raises:
            RecordError: the files cannot be written.
        """
        self._path = path
        self._clock = clock
        self._flushed_at = clock()
        evaluations = path.with_name("evaluations.jsonl")
        iteration, env_steps = (-1, -1) if resume_at is None else resume_at
        with reporting(path):
            _cut(path, "iteration", iteration)
        with reporting(evaluations):
            self._last_evaluation = _cut(evaluations, "env_steps", env_steps)
        with reporting(path):
            self._rows = path.open("a", encoding="utf-8")
            self._evaluations = evaluations.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        """Append a row; it reaches the file within about a second."""
        with reporting(self._path):
            self._rows.write(_to_line(row))
            if self._clock() - self._flushed_at >= _PERIOD_S:
                self.flush()

    def write_evaluation(self, row: EvaluationRow) -> None:
        """Append an evaluation; replace the last one if it has the same `env_steps`. Flush at once.

        A run that was killed after its last evaluation repeats the evaluation when resumed, and must have only one row
        for it.
        """
        told = {name: value for name, value in asdict(row).items() if name != "success_rate" or value is not None}
        with reporting(self._path):
            last, start = self._last_evaluation
            if last == row.env_steps:
                self._evaluations.truncate(start)
            self._last_evaluation = row.env_steps, self._evaluations.seek(0, os.SEEK_END)
            self._evaluations.write(_to_line(told))
            self.flush()

    def write_summary(self, summary: Mapping[str, JsonValue]) -> None:
        """Do nothing: `summary.json` holds it."""

    def flush(self) -> None:
        """Write buffered rows to the operating system."""
        with reporting(self._path):
            self._rows.flush()
            self._evaluations.flush()
        self._flushed_at = self._clock()

    def close(self) -> None:
        """Flush and close."""
        with reporting(self._path):
            try:
                self._rows.close()
            finally:
                self._evaluations.close()


# Maps row keys to stable-baselines3's tags, which differ for PPO.
_TAGS = {
    "mean_return": "rollout/ep_rew_mean",
    "mean_length": "rollout/ep_len_mean",
    "success_rate": "rollout/success_rate",
    "sps_window": "time/fps",
    "sps": "time/sps",
    "env_steps": "time/total_timesteps",
    "policy_loss": "train/policy_loss",
    "value_loss": "train/value_loss",
    "entropy_loss": "train/entropy_loss",
    "explained_variance": "train/explained_variance",
    "learning_rate": "train/learning_rate",
    "action_std": "train/std",
    "grad_norm": "train/grad_norm",
    "updates": "train/n_updates",
}
_PPO_TAGS = _TAGS | {
    "policy_loss": "train/policy_gradient_loss",
    "loss": "train/loss",
    "approx_kl": "train/approx_kl",
    "clip_fraction": "train/clip_fraction",
    "clip_range": "train/clip_range",
    "epochs": "train/epochs",
}


class ScalarWriter(ABC):
    """Names results as stable-baselines3 does, for a logger that takes scalars by tag and env step.

    A set of scalars costs about 0.1 ms, and an iteration may take only 3 ms, so at most one row per second is written;
    an evaluation and `close` write the latest row.
    """

    def __init__(self, config: Config, clock: Callable[[], float]) -> None:
        """Take the run's configuration, and what returns seconds and limits the rate of rows."""
        self._tags = _PPO_TAGS if config.algo.algo == "ppo" else _TAGS
        self._clock = clock
        self._next_at = -math.inf
        self._pending: Row | None = None
        self._closed = False
        self._meter = ProcessMeter()

    def write(self, row: Row) -> None:
        """Write the row if none was written within the last second, else keep it as pending."""
        self._pending = row
        now = self._clock()
        if now >= self._next_at:
            self._next_at = now + _PERIOD_S
            self.flush()

    def write_evaluation(self, row: EvaluationRow) -> None:
        """Write the pending row, then the evaluation."""
        self.flush()
        scalars = {
            "mean_reward": row.mean_return,
            "mean_ep_length": row.mean_length,
            "success_rate": row.success_rate,
        }
        self._put(row.env_steps, {f"eval/{name}": value for name, value in scalars.items()})

    def write_summary(self, summary: Mapping[str, JsonValue]) -> None:
        """Write the metrics by which runs are compared, as in the HPARAMS tab."""
        self.flush()
        found = {tag: summary.get(key) for key, tag in FINAL_TAGS.items()}
        env_steps = summary["env_steps"]
        assert isinstance(env_steps, int)
        self._put(env_steps, {tag: x for tag, x in found.items() if isinstance(x, int | float)})

    def flush(self) -> None:
        """Write the pending row, with the figures of the process."""
        if self._pending is not None:
            row, self._pending = self._pending, None
            entropy = row.get("entropy")
            named = {**row, "entropy_loss": None if entropy is None else -entropy}
            scalars = {tag: named.get(key) for key, tag in self._tags.items()} | self._meter.read()
            scalars |= {f"rollout/{key}": value for key, value in row.items() if key.startswith(INFO)}
            self._put(int(row["env_steps"] or 0), scalars)

    def close(self) -> None:
        """Write the pending row and close the logger."""
        if not self._closed:
            self._closed = True
            try:
                self.flush()
            finally:
                self._close()

    def _put(self, env_steps: int, scalars: Row) -> None:
        self._write_scalars(env_steps, {tag: value for tag, value in scalars.items() if value is not None})

    @abstractmethod
    def _write_scalars(self, env_steps: int, scalars: Mapping[str, float]) -> None:
        """Give scalars by tag to the logger."""

    @abstractmethod
    def _close(self) -> None:
        """Close the logger."""


class TensorBoardWriter(ScalarWriter):
    """Writes scalars to an event file, and the data of the HPARAMS tab; a set of scalars takes about 600 bytes.

    TensorBoard's `EventFileWriter` is avoided because it starts a thread (unsafe to fork with, and slow to report a
    full disk), and torch's `SummaryWriter` because its import takes 2 s.
    """

    _file_numbers = itertools.count()

    def __init__(
        self,
        log_dir: Path,
        config: Config,
        resume_env_steps: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a new event file.

        Args:
            log_dir: directory of the event files; created if missing.
            config: the run's configuration.
            resume_env_steps: the checkpoint's env steps; TensorBoard hides later points of older files.
            clock: returns seconds; limits the rate of rows.

        Raises:
            RecordError: the file cannot be written.
        """
        # Import here: it takes 0.2 s, which runs without TensorBoard should not pay.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        super().__init__(config, clock)
        self._event, self._summary = Event, Summary
        # TensorBoard reads files in the order of their names.
        unique = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(self._file_numbers):06d}"
        self._path = log_dir / f"events.out.tfevents.{unique}"
        with reporting(self._path):
            log_dir.mkdir(parents=True, exist_ok=True)
            _tell_who_listens(log_dir)
            self._records = RecordWriter(self._path.open("wb"))
            self._record(Event(file_version="brain.Event:2"))
            if resume_env_steps is None:
                self._record(Event(summary=settings_summary(config)))
            else:  # an older file already has the settings
                self._record(Event(step=resume_env_steps + 1, session_log=SessionLog(status=SessionLog.START)))

    def _write_scalars(self, env_steps: int, scalars: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        with reporting(self._path):
            self._record(self._event(step=env_steps, summary=self._summary(value=values)))
            self._records.flush()

    def _close(self) -> None:
        with reporting(self._path):
            self._records.close()

    def _record(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def _tell_who_listens(log_dir: Path) -> None:
    """Open and close a file with TensorBoard's own writer if another program has patched it to detect new files.

    Weights & Biases does so (`sync_tensorboard=True`): it then reads all files of that folder.
    """
    from tensorboard.summary.writer import event_file_writer

    if event_file_writer.EventFileWriter.__module__ != event_file_writer.__name__:
        event_file_writer.EventFileWriter(str(log_dir)).close()


def _to_line(row: Row) -> str:
    try:
        return _encode(row) + "\n"
    except ValueError:  # rare, so only then search for the values that are not finite
        finite = {key: value if value is None or math.isfinite(value) else None for key, value in row.items()}
        return _encode(finite) + "\n"


def _cut(path: Path, counter: str, last: int) -> tuple[int, int]:
    """Truncate a file of JSON lines after the last complete line whose `counter` is at most `last`.

    Returns:
        That line's counter and its byte offset; -1 and 0 if there is none.
    """
    check_appendable(path)
    end, found = 0, (-1, 0)
    path.touch()
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
                beyond = row[counter] > last or not line.endswith(b"\n")
            except (ValueError, KeyError, TypeError, RecursionError):
                break  # a partial line, written when the run was killed
            if beyond:
                break
            found = int(row[counter]), end
            end += len(line)
    os.truncate(path, end)
    return found
