"""Who runs a (collector, learner) pair, and in how many processes; trainers are generators of reports."""

from fastac.trainers.sync import SyncTrainer

__all__ = ["SyncTrainer"]
