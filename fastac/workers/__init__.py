"""Who runs (collector, learner) pairs, and in how many processes; trainers are generators of reports."""

from fastac.workers.shared_counters import Board, BoardRow, pool_all
from fastac.workers.sync_workers import WORKER_TIMEOUT_S, Crew, MakeMember, Member, NoCrew
from fastac.workers.shared_group import GroupMemory, SharedGroup
from fastac.workers.hogwild_trainer import HogwildTrainer
from fastac.workers.hogwild_worker import BeatingEnvs, Facts, HogwildWorker, MakeHogwildWorker
from fastac.workers.worker import Pair
from fastac.workers.async_workers import WorkerPool
from fastac.workers.sync_trainer import SyncTrainer

__all__ = [
    "WORKER_TIMEOUT_S",
    "BeatingEnvs",
    "Board",
    "BoardRow",
    "Crew",
    "Facts",
    "GroupMemory",
    "HogwildTrainer",
    "HogwildWorker",
    "MakeHogwildWorker",
    "MakeMember",
    "Member",
    "NoCrew",
    "Pair",
    "SharedGroup",
    "SyncTrainer",
    "WorkerPool",
    "pool_all",
]
