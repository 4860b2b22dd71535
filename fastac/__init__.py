"""fastac: fast, exact actor-critic training (A2C, PPO, REINFORCE) on the machine you have.

    import fastac

    run = fastac.train("CartPole-v1", algo="a2c", seed=0, until_return=475)
    action = run.policy.act(observation)

`fastac.train` trains to the end. `fastac.start` returns the loop, an iterator of reports, and `fastac.finish` ends it.
`fastac.resume` returns the loop of an existing run, and `fastac.complete` trains such a loop to its end.
`fastac.load` reads a run, `fastac.load_policy` a policy that `run.policy.save` has written. `fastac.export` writes a
policy for programs without fastac. `fastac.train_seeds` trains one setting with many seeds, and `fastac.sweep` searches
for settings. `fastac.doctor` examines an environment.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING

from fastac.garbage import collected_later

if TYPE_CHECKING:
    from fastac.api import Run, complete, evaluate, finish, load, resume, start, train
    from fastac.config import Config, TrainSettings
    from fastac.contract import EnvFailure, NonFiniteError, Report, WorkerFailure
    from fastac.runs import Session
    from fastac.runs.evaluate import Evaluation
    from fastac.runs.files import RecordError
    from fastac.studies.options import SweepOptions
    from fastac.studies.seeds import SeedRun, SeedRuns, train_seeds
    from fastac.studies.sweep import Candidate, Sweep, sweep
    from fastac.tools.doctor import Diagnosis, Finding, doctor
    from fastac.tools.export import Exported, export
    from fastac.tools.policy import Decision, TrainedPolicy, load_policy

__version__ = "0.1.0"

__all__ = [
    "Candidate",
    "Config",
    "Decision",
    "Diagnosis",
    "EnvFailure",
    "Evaluation",
    "Exported",
    "Finding",
    "NonFiniteError",
    "RecordError",
    "Report",
    "Run",
    "SeedRun",
    "SeedRuns",
    "Session",
    "Sweep",
    "SweepOptions",
    "TrainSettings",
    "TrainedPolicy",
    "WorkerFailure",
    "complete",
    "doctor",
    "evaluate",
    "export",
    "finish",
    "load",
    "load_policy",
    "resume",
    "start",
    "sweep",
    "train",
    "train_seeds",
]

# Imported on first use: `fastac --help` and worker processes should not wait seconds for torch.
_HOMES = dict.fromkeys(("Run", "complete", "evaluate", "finish", "load", "resume", "start", "train"), "fastac.api")
_HOMES |= dict.fromkeys(("EnvFailure", "NonFiniteError", "Report", "WorkerFailure"), "fastac.contract")
_HOMES |= dict.fromkeys(("Config", "TrainSettings"), "fastac.config")
_HOMES |= {"RecordError": "fastac.runs.files", "Session": "fastac.runs"}
_HOMES |= dict.fromkeys(("Diagnosis", "Finding", "doctor"), "fastac.tools.doctor")
_HOMES |= {"Evaluation": "fastac.runs.evaluate", "Exported": "fastac.tools.export", "export": "fastac.tools.export"}
_HOMES |= dict.fromkeys(("Decision", "TrainedPolicy", "load_policy"), "fastac.tools.policy")
_HOMES |= dict.fromkeys(("SeedRun", "SeedRuns", "train_seeds"), "fastac.studies.seeds")
_HOMES |= dict.fromkeys(("Candidate", "Sweep", "sweep"), "fastac.studies.sweep")
_HOMES |= {"SweepOptions": "fastac.studies.options"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastac' has no attribute {name!r}")
    with _interrupts_later(), collected_later():
        return getattr(import_module(_HOMES[name]), name)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Delay Ctrl-C until torch is imported: a partial import cannot be repeated in the same process."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        handler(signal.SIGINT, came[0])


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
