"""Who runs (collector, learner) pairs, and in how many processes; trainers are generators of reports."""

from fastac.trainers.crew import Crew, MakeMember, Member, NoCrew
from fastac.trainers.group import GroupMemory
from fastac.trainers.pair import Pair
from fastac.trainers.sync import SyncTrainer

__all__ = ["Crew", "GroupMemory", "MakeMember", "Member", "NoCrew", "Pair", "SyncTrainer"]
