"""Brings the states that earlier versions of fastac saved into the present layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from fastac.contract import StateLeaf, StateTree

OLDEST = 3  # the oldest schema that can be read


def upgrade(state: StateTree, schema: int) -> StateTree:
    """Return a run's state in the present layout.

    Until schema 3 there were no shards: every worker in step had what one shard has today. That of the first worker was
    beside the counters.
    """
    training = state.get("training")
    if schema > 3 or not isinstance(training, Mapping) or not isinstance(training.get("workers"), Mapping):
        return state
    trainer, workers = (dict(cast(StateTree, training[name])) for name in ("trainer", "workers"))
    first: dict[str, StateTree | StateLeaf] = {"reward_normalizer": training["reward_normalizer"]}
    first |= {name: trainer.pop(name) for name in ("collector", "episode_counter", "envs")}
    kept = {name: training[name] for name in training if name not in ("reward_normalizer", "workers")}
    return {**state, "training": {**kept, "trainer": trainer, "shards": {"0": first, **workers}}}
