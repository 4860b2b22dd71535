"""What the gate compares of fastac itself: three workloads in CPU time and memory, by `fastac.tools.gate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastac.tools.gate.measure import Effort, Measured, measure
from fastac.tools.gate.sides import Tree

_SEPARATE = {"hidden_sizes": (64, 64), "activation": "tanh", "shared_trunk": False}
_LECTURE = {"hidden_sizes": (128, 128), "activation": "relu", "shared_trunk": True}
A2C_64 = "a2c 64x16, separate 64-64 tanh"
# Settings that every revision knows.
WORKLOADS: Mapping[str, dict[str, Any]] = {
    A2C_64: {"algo": "a2c", "num_envs": 64, "num_steps": 16, **_SEPARATE},
    "a2c 256x16, shared 128-128 relu": {"algo": "a2c", "num_envs": 256, "num_steps": 16, **_LECTURE},
    "ppo 8x32, 4 epochs of 4 minibatches": {
        **{"algo": "ppo", "num_envs": 8, "num_steps": 32, "num_epochs": 4, "num_minibatches": 4},
        **_SEPARATE,
    },
}


def compare(base: Path, head: Path, effort: Effort, workloads: Mapping[str, dict[str, Any]] = WORKLOADS) -> Measured:
    """Measure two trees, in new processes."""
    return measure(Tree(base), Tree(head), workloads, effort)
