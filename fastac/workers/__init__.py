"""Workers: training in one process or several; trainers are generators of reports."""

from fastac.workers.async_workers import AsyncWorkers
from fastac.workers.division import Division, divide_shards
from fastac.workers.hogwild_trainer import HogwildTrainer
from fastac.workers.hogwild_training import HogwildTraining
from fastac.workers.hogwild_worker import BeatingEnvs, HogwildWorker, MakeHogwildWorker
from fastac.workers.hosts import Hosts
from fastac.workers.shard import Shard
from fastac.workers.shared_counters import SharedCounters, WorkerCounters
from fastac.workers.shared_group import GroupMemory, SharedGroup
from fastac.workers.statistics import find_moments
from fastac.workers.sync_trainer import SyncTrainer, SyncTraining
from fastac.workers.sync_workers import CommandMemory, MakeWorker, NoOtherWorkers, SyncWorkers
from fastac.workers.training import Training
from fastac.workers.worker import Worker

__all__ = [
    "AsyncWorkers",
    "BeatingEnvs",
    "CommandMemory",
    "Division",
    "GroupMemory",
    "HogwildTrainer",
    "HogwildTraining",
    "HogwildWorker",
    "Hosts",
    "MakeHogwildWorker",
    "MakeWorker",
    "NoOtherWorkers",
    "Shard",
    "SharedCounters",
    "SharedGroup",
    "SyncTrainer",
    "SyncTraining",
    "SyncWorkers",
    "Training",
    "Worker",
    "WorkerCounters",
    "divide_shards",
    "find_moments",
]
