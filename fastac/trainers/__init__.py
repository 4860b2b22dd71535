"""Who runs (collector, learner) pairs, and in how many processes; trainers are generators of reports."""

from fastac.trainers.board import Board, Desk, pool_all
from fastac.trainers.crew import Crew, MakeMember, Member, NoCrew
from fastac.trainers.group import GroupMemory
from fastac.trainers.hands import Facts, Hand, Hands, MakeHand
from fastac.trainers.hogwild import HogwildTrainer
from fastac.trainers.pair import Pair
from fastac.trainers.sync import SyncTrainer

__all__ = [
    "Board",
    "Crew",
    "Desk",
    "Facts",
    "GroupMemory",
    "Hand",
    "Hands",
    "HogwildTrainer",
    "MakeHand",
    "MakeMember",
    "Member",
    "NoCrew",
    "Pair",
    "SyncTrainer",
    "pool_all",
]
