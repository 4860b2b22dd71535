"""Saves all state that a run continues from, as checkpoints."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter

from fastac.build import save_spaces
from fastac.config import Config
from fastac.contract import Report, StateTree, read_branch
from fastac.rollout import Rollout
from fastac.runs.checkpoint import best_mark, mark_best, prune_checkpoints, save_checkpoint
from fastac.runs.copies import read_copy
from fastac.runs.files import RecordError, one_sentence
from fastac.runs.recorder import Recorder
from fastac.runs.run_dir import RunDirectory
from fastac.runs.state import Progress, env_steps_of, last_report
from fastac.runs.tracker import ReturnTracker
from fastac.torchrun import is_launched
from fastac.workers import Hosts, Training

log = logging.getLogger("fastac")


class Saver:
    """Saves the present state of a run.

    Attributes:
        progress: the state to save in addition to the training's own state.
        saved_at: env steps of the latest checkpoint, -1 before the first.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        training: Training,
        recorder: Recorder,
        progress: Progress,
        saved_at: int,
        began: float,
        hosts: Hosts | None = None,
    ) -> None:
        """Take the objects to save.

        `began`: the value of `perf_counter` when the run began or was resumed.
        `hosts`: the run's hosts, some of which may need copies.
        """
        self._config, self._directory, self._training, self._recorder = config, directory, training, recorder
        self.progress, self.saved_at, self._began = progress, saved_at, began
        self._hosts, self._saved_s = hosts, perf_counter()
        self._left: StateTree | None = None  # state at the time the loop was left, if the workers ended with it

    @property
    def total_wall_s(self) -> float:
        """Seconds since the run began, excluding the time when it was not running."""
        return self.progress.total_wall_s + perf_counter() - self._began

    @property
    def is_due(self) -> bool:
        """Whether `checkpoint_minutes` have passed since the latest checkpoint, where torchrun starts runs again."""
        if not is_launched():
            return False
        return perf_counter() - self._saved_s >= 60.0 * self._config.run.checkpoint_minutes

    @property
    def is_left(self) -> bool:
        """Whether training cannot continue because its workers ended with the loop."""
        return self._left is not None

    def leave_at(self, state: StateTree) -> None:
        """Save `state` instead of the present one from now on: the workers have ended."""
        self._left = state

    def get_state(self) -> StateTree:
        """Return all state that the run continues from."""
        if self._left:
            return {**self._left, "progress": self._get_progress()}
        return {
            "run_id": self._directory.run_id,
            "training": self._training.get_state(),
            "spaces": save_spaces(self._training.envs),
            "tracker": self._recorder.tracker.get_state(),
            "progress": self._get_progress(),
        }

    def _get_progress(self) -> StateTree:
        return asdict(replace(self.progress, total_wall_s=self.total_wall_s))

    def save(self, best_mean_return: float | None = None) -> None:
        """Save the present state; if it is the best, `best_mean_return` is its mean return.

        Raises:
            RecordError: the disk is full; earlier checkpoints stay.
            WorkerFailure: a worker was lost, and with it a part of the state.
        """
        self._recorder.flush()
        state = self.get_state()
        env_steps = env_steps_of(state)
        path = save_checkpoint(self._directory.path, env_steps, state, self._config, best_mean_return)
        self._copy(path)
        prune_checkpoints(self._directory.path, self._config.run.keep_checkpoints)
        self.saved_at, self._saved_s = env_steps, perf_counter()

    def _copy(self, path: Path) -> None:
        """Send a checkpoint to hosts that do not share this one's disk."""
        if self._hosts is not None and self._hosts.have_copies and self._hosts.is_paused:
            self._hosts.give_order("copy")
            self._hosts.broadcast(read_copy(self._directory.path, path), 0)

    def mark_best(self, env_steps: int, mean_return: float) -> None:
        """Mark the checkpoint saved at `env_steps` as the best."""
        path = self._directory.path
        marked = path / "checkpoints" / f"step-{env_steps:012d}"
        mark_best(path, marked, mean_return)
        self._copy(marked)
        prune_checkpoints(path, self._config.run.keep_checkpoints)  # the previous best

    def load_best_model(self) -> StateTree:
        """Return the weights of the best policy."""
        state = self._directory.load_checkpoint("best").state
        return read_branch(read_branch(state, "training"), "model")

    def save_failure(self) -> str:
        """Save the last good parameters and the rollouts that broke them; return a sentence that says where."""
        rollouts = {str(shard): _list_rows(rollout) for shard, rollout in enumerate(self._training.rollouts)}
        state = {**self.get_state(), "rollouts": rollouts}
        folder = self._directory.path / "failure"
        try:
            folder.mkdir(exist_ok=True)
            path = save_checkpoint(folder, self._training.trainer.env_steps, state, self._config)
        except (OSError, RecordError) as error:
            return f"the state before that update could not be saved ({error})"
        what = "the state before that update and its rollouts are" if rollouts else "the state is"
        return f"{what} saved in {path}"


def _list_rows(rollout: Rollout) -> StateTree:
    """Return what an update has learned from."""
    names = ("obs", "start", "action", "reward", "value", "valid")
    first = rollout.observations.get_state(0)  # frame stacks also need the frames before row 0
    return {**{name: getattr(rollout, name) for name in names}, "first": first}


def restore(
    state: StateTree, directory: RunDirectory, training: Training, tracker: ReturnTracker
) -> tuple[Progress, Report]:
    """Continue from a checkpoint's state, which may have been modified by hand.

    Returns:
        The progress that was saved with the training's state, and the report after which it was saved.

    Raises:
        ValueError: the state is malformed, or does not fit this run.
        WorkerFailure: a worker died or hung.
    """
    with one_sentence(f"the last checkpoint in {directory.path} does not fit this run"):
        if not training.set_state(read_branch(state, "training")):
            log.warning("the state of the environments is not in the checkpoint: their episodes begin anew")
        tracker.load_state(read_branch(state, "tracker"))
        trainer = read_branch(read_branch(state, "training"), "trainer")
        report = last_report(trainer, training.envs.frame_skip)
        tracker.update(report)
        # A run that reached its target is only resumed towards a higher one, so it is not solved yet.
        progress = replace(
            Progress.from_state(read_branch(state, "progress")), solved_wall_s=None, solved_env_steps=None
        )
        # Use the mark: it may belong to an older checkpoint than this one, or have been moved since.
        best_at, best = best_mark(directory.path) or (None, None)
        return replace(progress, best_mean_return=best, best_env_steps=best_at), report
