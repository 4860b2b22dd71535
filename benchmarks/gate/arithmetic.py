"""Whether the same seed still gives the same bits: both trees train short runs, whose parameters are compared.

Bits differ between machines, so nothing is kept but what `declarations` holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastac.tools.gate.sides import DriverError, Side, Tree

ITERATIONS = 20

_SEPARATE = {"hidden_sizes": (64, 64), "activation": "tanh", "shared_trunk": False}
_SMALL = {"num_envs": 8, "num_steps": 16, "learning_rate": 3e-3, **_SEPARATE}
_PPO = {**_SMALL, "algo": "ppo", "num_epochs": 4, "num_minibatches": 4}
# With the default ways of batching environments: what a user's run gives is what counts. Settings that every revision
# knows.
RUNS: Mapping[str, dict[str, Any]] = {
    "a2c CartPole, separate 64-64 tanh": {**_SMALL, "algo": "a2c"},
    "a2c CartPole, shared 128-128 relu, rmsprop": {
        **{**_SMALL, "algo": "a2c", "optimizer": "rmsprop"},
        **{"hidden_sizes": (128, 128), "activation": "relu", "shared_trunk": True},
    },
    "a2c CartPole, lstm 64": {**_SMALL, "algo": "a2c", "core": "lstm", "lstm_size": 64, "hidden_sizes": (64,)},
    "ppo CartPole, 4 epochs of 4 minibatches": _PPO,
    "ppo Pendulum, 4 epochs of 4 minibatches": {**_PPO, "env_id": "Pendulum-v1"},
}


class Found(NamedTuple):
    """Runs by what became of their bits."""

    same: list[str]
    changed: list[str]
    unknown: list[str]  # which the base does not run


def compare(base: Path, head: Path, runs: Mapping[str, dict[str, Any]] = RUNS) -> Found:
    """Train both trees and compare the parameters' bits.

    Raises:
        DriverError: HEAD does not run something.
    """
    found = Found([], [], [])
    with Side(Tree(base), {}) as old, Side(Tree(head), {}) as new:
        for side in (old, new):
            side.wait()
        for name, settings in runs.items():
            after, before = (side.train(settings, ITERATIONS) for side in (new, old))
            if after is None:
                raise DriverError(f"This working tree does not run {name}, see above.")
            place = found.unknown if before is None else found.same if before == after else found.changed
            place.append(name)
    return found
