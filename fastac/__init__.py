"""fastac: fast, exact actor-critic training (A2C, PPO, REINFORCE) on the machine you have.

    import fastac

    run = fastac.train("CartPole-v1", algo="a2c", seed=0, until_return=475)
    action = run.policy.act(observation)

`fastac.train` trains to the end; `fastac.start` gives the loop as an iterator of reports and
`fastac.finish` ends it; `fastac.resume` continues a run and `fastac.load` reads a finished one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastac.api import Run, evaluate, finish, load, resume, start, train
    from fastac.config import Config
    from fastac.contract import EnvFailure, NonFiniteError, Report, WorkerFailure
    from fastac.runs import Session
    from fastac.runs.evaluate import Evaluation
    from fastac.runs.files import RecordError
    from fastac.settings import TrainSettings
    from fastac.tools.policy import TrainedPolicy

__version__ = "0.1.0"

__all__ = [
    "Config",
    "EnvFailure",
    "Evaluation",
    "NonFiniteError",
    "RecordError",
    "Report",
    "Run",
    "Session",
    "TrainSettings",
    "TrainedPolicy",
    "WorkerFailure",
    "evaluate",
    "finish",
    "load",
    "resume",
    "start",
    "train",
]

# Imported when first used: `fastac --help` and worker processes need not wait seconds for torch.
_HOMES = dict.fromkeys(("Run", "evaluate", "finish", "load", "resume", "start", "train"), "fastac.api")
_HOMES |= dict.fromkeys(("EnvFailure", "NonFiniteError", "Report", "WorkerFailure"), "fastac.contract")
_HOMES |= {"Config": "fastac.config", "RecordError": "fastac.runs.files", "Session": "fastac.runs"}
_HOMES |= {"Evaluation": "fastac.runs.evaluate", "TrainedPolicy": "fastac.tools.policy"}
_HOMES |= {"TrainSettings": "fastac.settings"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastac' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
