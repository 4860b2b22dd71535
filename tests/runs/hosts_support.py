"""Hosts without torchrun: processes of this machine that are told what torchrun would tell them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.hosts.cluster import digest

__all__ = ["SMALL", "digest", "finish", "free_port", "start_hosts", "train_on_hosts"]

SMALL = ("--total-env-steps", "6000", "--no-eval", "--no-tensorboard")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_hosts(commands: Sequence[Sequence[str]], folders: Sequence[Path]) -> list[subprocess.Popen[str]]:
    """Start `fastac` with each command in its folder, one of which is the first host."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-m", "fastac", *words],
            cwd=folder,
            env={
                **os.environ,
                "TORCHELASTIC_RUN_ID": "test",
                "TORCHELASTIC_USE_AGENT_STORE": "False",
                "TORCHELASTIC_MAX_RESTARTS": "0",
                "RANK": str(rank),
                "WORLD_SIZE": str(len(commands)),
                "LOCAL_RANK": "0",
                "LOCAL_WORLD_SIZE": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
                "TORCH_CPP_LOG_LEVEL": "ERROR",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, (words, folder) in enumerate(zip(commands, folders, strict=True))
    ]


def finish(hosts: Sequence[subprocess.Popen[str]], timeout_s: float = 120.0) -> tuple[list[int], list[str]]:
    """Return the exit codes and what was said on stderr; no host outlives this."""
    try:
        said = [host.communicate(timeout=timeout_s)[1] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
            host.wait()
    return [host.returncode for host in hosts], said


def train_on_hosts(size: int, words: Sequence[str], folder: Path, *more: str) -> str:
    """Train on some hosts to the end, and return the digest of the run."""
    run_dir = folder / f"hosts{size}{''.join(more)}"
    codes, said = finish(start_hosts([["train", *words, *more, "--run-dir", str(run_dir)]] * size, [folder] * size))
    assert codes == [0] * size, said
    return digest(run_dir)
