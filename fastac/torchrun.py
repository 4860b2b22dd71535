"""What torchrun (TorchElastic) tells the processes that it starts, and what such a process owes its agent.

The agent is the torchrun process of a machine. It starts the others again whenever one fails or a machine leaves or
joins, with new ranks. So a process that cannot go on just ends with an exit code other than 0; and one that must not
be started again, since its input is wrong, ends its agent.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from fastac.system import die_with_parent


@dataclass(frozen=True, slots=True)
class Launch:
    """How torchrun started this process.

    Attributes:
        rank: of this process; it may change with every start.
        size: number of processes.
        local_rank: the number of this process among those of its machine.
        local_size: how many those are.
        address: where the process of rank 0 listens.
        port: likewise.
        max_restarts: how often the agent starts a failed process again.
        uses_agent_store: whether processes of all starts share the agent's store.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    max_restarts: int
    uses_agent_store: bool


def is_launched() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def find_launch(environ: Mapping[str, str] = os.environ) -> Launch | None:
    """Return how torchrun started this process, or None if it did not.

    Raises:
        ValueError: torchrun runs with the setting that makes joining again fail.
    """
    if "TORCHELASTIC_RUN_ID" not in environ:
        return None
    launch = Launch(
        rank=int(environ["RANK"]),
        size=int(environ["WORLD_SIZE"]),
        local_rank=int(environ["LOCAL_RANK"]),
        local_size=int(environ["LOCAL_WORLD_SIZE"]),
        address=environ["MASTER_ADDR"],
        port=int(environ["MASTER_PORT"]),
        max_restarts=int(environ.get("TORCHELASTIC_MAX_RESTARTS", "0")),
        uses_agent_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )
    if launch.uses_agent_store:
        # Processes would find addresses of an earlier start there, and fail to connect (pytorch issue 135712).
        raise ValueError(
            "torchrun shares one store among all its starts, so a host that leaves could not join again: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where you start torchrun (fastac hosts prints the whole command)."
        )
    return launch


def end_with_agent() -> None:
    """Let the system kill this process when its agent dies; a process left over would train on, unnoticed."""
    die_with_parent()


def end_agent() -> None:
    """End the agent, if it would start this process again although that cannot help."""
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0:
        os.kill(os.getppid(), signal.SIGTERM)
