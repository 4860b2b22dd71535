"""Rollout storage, the hot loop that fills it, minibatches, and finished episodes."""

from fastac.rollout.actor import GraphActor, Graphs, ModelActor
from fastac.rollout.buffer import Rollout
from fastac.rollout.collector import Collector
from fastac.rollout.episodes import EpisodeCounter, join_episodes
from fastac.rollout.minibatches import Batch, FlatMinibatches, Minibatches, Preview, SequenceMinibatches

__all__ = [
    "Batch",
    "Collector",
    "EpisodeCounter",
    "FlatMinibatches",
    "GraphActor",
    "Graphs",
    "Minibatches",
    "ModelActor",
    "Preview",
    "Rollout",
    "SequenceMinibatches",
    "join_episodes",
]
