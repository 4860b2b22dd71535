"""Who runs (collector, learner) pairs, and in how many processes; trainers are generators of reports."""

from fastac.trainers.board import Board, BoardRow, pool_all
from fastac.trainers.crew import WORKER_TIMEOUT_S, Crew, MakeMember, Member, NoCrew
from fastac.trainers.group import GroupMemory, SharedGroup
from fastac.trainers.hogwild import HogwildTrainer
from fastac.trainers.hogwild_worker import BeatingEnvs, Facts, HogwildWorker, MakeHogwildWorker
from fastac.trainers.pair import Pair
from fastac.trainers.pool import WorkerPool
from fastac.trainers.sync import SyncTrainer

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
