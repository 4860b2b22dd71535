"""Names what a number was measured on; measures nothing, and names neither the host nor its user.

`python -m benchmarks.machine` prints it. A number without these lines cannot be compared with another.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import distributions
from pathlib import Path

import torch

from benchmarks.peers import APART
from fastac.runs.provenance import git_commit, versions

_CPUINFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_PEERS = ("stable_baselines3", "torchrl", "tianshou", "envpool", "ale_py")
_SMT = Path("/sys/devices/system/cpu/smt/active")

Machine = dict[str, str | int | float | dict[str, str] | None]


def describe_machine(torch_threads: int | None = None) -> Machine:
    """Return CPU, cores, torch threads, load, versions and commit; None where the system does not tell.

    Args:
        torch_threads: where another process is measured, how many that one has.
    """
    return {
        "cpu": _cpu_model(),
        "cores": count_cores(),  # that this process may use
        "smt": _read(_SMT),  # 1: two of those may share one core
        "governor": _read(_GOVERNOR),
        "torch_threads": torch_threads or torch.get_num_threads(),
        "load_1min": round(os.getloadavg()[0], 2),  # processes wanting a core, this one among them
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions() | _peer_versions(),
        "commit": git_commit(),
    }


def count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def format_machine(machine: Machine) -> str:
    """Two lines: the hardware and what shares it, the software."""
    found = machine["versions"]
    assert isinstance(found, dict)
    software = ", ".join(f"{name} {version}" for name, version in found.items())
    hardware = f"{machine['cpu']}, {machine['cores']} cores, {machine['torch_threads']} torch thread(s)"
    return f"{hardware}, load {machine['load_1min']}\n{software}, commit {machine['commit']}"


def _peer_versions() -> dict[str, str]:
    """What is installed of the libraries that fastac is compared with."""
    places = [*sys.path, *map(str, APART.values())]
    return {found.name: found.version for name in _PEERS for found in distributions(name=name, path=places)}


def _cpu_model() -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


if __name__ == "__main__":
    print(format_machine(describe_machine()))
