"""Writes down what a run did, atomically and without pickle."""

from fastac.records.checkpoint import (
    Checkpoint,
    best_mark,
    best_mean_return,
    find_checkpoint,
    load_checkpoint,
    mark_best,
    prune_checkpoints,
    save_checkpoint,
)
from fastac.records.files import RecordError, one_sentence, replace_file
from fastac.records.progress import Bar, Evaluated, NullBar, ProgressBar, ProgressLines, open_bar
from fastac.records.provenance import git_commit, peak_rss_mb, versions
from fastac.records.run_dir import RunDirectory, default_run_dir
from fastac.records.tracker import ReturnTracker
from fastac.records.writers import (
    EvaluationRow,
    NullWriter,
    ProgressWriter,
    Row,
    TensorBoardWriter,
    Writer,
    progress_row,
)

__all__ = [
    "Bar",
    "Checkpoint",
    "Evaluated",
    "EvaluationRow",
    "NullBar",
    "NullWriter",
    "ProgressBar",
    "ProgressLines",
    "ProgressWriter",
    "RecordError",
    "ReturnTracker",
    "Row",
    "RunDirectory",
    "TensorBoardWriter",
    "Writer",
    "best_mark",
    "best_mean_return",
    "default_run_dir",
    "find_checkpoint",
    "git_commit",
    "load_checkpoint",
    "mark_best",
    "one_sentence",
    "open_bar",
    "peak_rss_mb",
    "progress_row",
    "prune_checkpoints",
    "replace_file",
    "save_checkpoint",
    "versions",
]
