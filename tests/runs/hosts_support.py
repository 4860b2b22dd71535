"""Hosts without torchrun: processes of this machine that are told what torchrun would tell them."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from run_support import spawn_main

from benchmarks.hosts.cluster import digest

__all__ = ["SMALL", "digest", "environment_of", "finish", "free_port", "start_hosts", "train_on_hosts"]

SMALL = ("--total-env-steps", "6000", "--no-eval", "--no-tensorboard")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment_of(rank: int, size: int, port: int) -> dict[str, str]:
    """Return what torchrun tells a host of `size`."""
    return {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }


class Host:
    """A process that runs `fastac`; it is forked, since importing torch takes seconds."""

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._output = folder / f"output{environment['RANK']}"
        self._output.mkdir(exist_ok=True)
        self._process = spawn_main(list(words), self._output, partial(_become_host, folder, environment))

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, timeout_s: float) -> int:
        """Return the exit code."""
        self._process.join(timeout_s)
        assert self._process.exitcode is not None, f"it has not ended in {timeout_s} s: {self.said}"
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    @property
    def said(self) -> str:
        """What is on stderr."""
        return (self._output / "stderr").read_text()


def _become_host(folder: Path, environment: Mapping[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)


def start_hosts(commands: Sequence[Sequence[str]], folders: Sequence[Path]) -> list[Host]:
    """Start `fastac` with each command in its folder, one of which is the first host."""
    size, port = len(commands), free_port()
    return [
        Host(words, folder, environment_of(rank, size, port))
        for rank, (words, folder) in enumerate(zip(commands, folders, strict=True))
    ]


def finish(hosts: Sequence[Host], timeout_s: float = 120.0) -> tuple[list[int], list[str]]:
    """Return the exit codes and what was said on stderr; no host outlives this."""
    try:
        codes = [host.wait(timeout_s) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    return codes, [host.said for host in hosts]


def train_on_hosts(size: int, words: Sequence[str], folder: Path, *more: str) -> str:
    """Train on some hosts to the end, and return the digest of the run."""
    run_dir = folder / f"hosts{size}{''.join(more)}"
    codes, said = finish(start_hosts([["train", *words, *more, "--run-dir", str(run_dir)]] * size, [folder] * size))
    assert codes == [0] * size, said
    return digest(run_dir)
