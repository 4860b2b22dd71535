"""What other operating systems lack: everything has a fall-back, and training with all of them gives the same bits."""

from __future__ import annotations

import ast
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastac
from fastac import cpu, system

ROOT = Path(__file__).parents[1]

TRAIN = """
import hashlib, json, multiprocessing, sys
import fastac, fastac.system
from fastac.runs.provenance import peak_rss_mb

assert not fastac.system.has_fork_server() and multiprocessing.get_all_start_methods()[0] != "forkserver"
assert peak_rss_mb() is None and not fastac.system.pinnable_cores()
weights = {}
for workers in (1, 2):
    run_dir = f"{sys.argv[1]}/{workers}"
    run = fastac.train("CartPole-v1", workers=workers, run_dir=run_dir, **json.loads(sys.argv[2]))
    bits = b"".join(p.detach().numpy().tobytes() for p in run.policy.model.parameters())
    weights[workers] = hashlib.sha256(bits).hexdigest()
    assert fastac.load(run_dir).summary == run.summary
print(json.dumps(weights))
"""
SETTINGS = {"num_envs": 4, "shards": 2, "num_steps": 8, "total_env_steps": 256, "eval_episodes": 2}


def test_training_with_all_fall_backs_gives_the_same_bits(tmp_path):
    path = os.pathsep.join([str(ROOT / "tests/elsewhere"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", TRAIN, str(tmp_path), json.dumps(SETTINGS)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    run = fastac.train("CartPole-v1", workers=1, run_dir=tmp_path / "here", **SETTINGS)
    bits = b"".join(p.detach().numpy().tobytes() for p in run.policy.model.parameters())
    expected = hashlib.sha256(bits).hexdigest()
    assert json.loads(done.stdout.splitlines()[-1]) == {"1": expected, "2": expected}


# What only some systems have, to be used in `system` alone, and in the module that only a fork server imports.
ONLY_SOME = re.findall(
    r"\S+",
    """
    fcntl resource grp pwd termios msvcrt ctypes.CDLL multiprocessing.context.ForkServerContext
    os.fork os.getsid os.killpg os.setsid os.eventfd os.memfd_create os.O_DIRECTORY os.O_NOFOLLOW
    os.sched_getaffinity os.sched_setaffinity os.sched_yield select.epoll select.poll
    signal.pthread_sigmask signal.SIGALRM signal.SIGKILL
    """,
)
FILES_OF_LINUX = ("/proc/", "/sys/", "/dev/shm")
HOMES = {Path("fastac/system.py"), Path("fastac/fork_server.py")}
# It also runs old revisions, which have no `system`.
OWN_FALL_BACKS = {Path("fastac/tools/gate/driver.py")}


def uses(path: Path) -> list[str]:
    """Say where a module uses what only some systems have."""
    found = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.Constant) and str(node.value).startswith(FILES_OF_LINUX):
            names = [str(node.value)]
        found += [f"{path}:{node.lineno}: {name}" for name in names if name in ONLY_SOME or name[0] == "/"]
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "fastac").rglob("*.py")), ids=lambda path: path.stem)
def test_what_only_some_systems_have_is_used_in_one_place(path):
    path = path.relative_to(ROOT)
    if path not in HOMES | OWN_FALL_BACKS:
        assert not uses(path), "use fastac.system, or add to it with a fall-back"


def test_uses_are_seen():
    assert len(uses(Path("fastac/system.py"))) > 8 and uses(Path("fastac/tools/gate/driver.py"))


def test_cores_without_affinity_and_files(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(system, "_CPU_QUOTA", tmp_path / "none")
    monkeypatch.setattr(system, "_CPUS", tmp_path / "none")
    monkeypatch.setattr(system, "_CPU_INFO", tmp_path / "none")
    monkeypatch.setattr(system, "_STATUS", tmp_path / "none")
    assert system.core_numbers() == list(range(os.cpu_count()))
    assert cpu.count_cores() == cpu.count_physical_cores() == os.cpu_count()
    assert system.cpu_model() and system.resident_bytes() == 0


@pytest.mark.parametrize(("text", "cores"), [("max 100000", 8), ("150000 100000", 2), ("1000 100000", 1)])
def test_a_containers_quota(monkeypatch, tmp_path, text, cores):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(system, "_CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(cpu, "core_numbers", lambda: list(range(8)))
    assert cpu.count_cores() == cores


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells")
def test_memory_is_that_of_this_process():
    before = system.resident_bytes()
    block = np.ones(8_000_000)
    assert system.resident_bytes() - before > 0.9 * block.nbytes
    assert system.peak_resident_bytes() >= 0.9 * system.resident_bytes()


def test_without_a_fork_server_processes_start_anew(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert system.start_context(["fastac.api"]).get_start_method() == "spawn"
    with system.stop_signals_blocked():
        pass


def test_a_lock_is_held_once_or_there_is_none(monkeypatch, tmp_path):
    unlock = system.lock_directory(tmp_path)
    if unlock is not None:
        with pytest.raises(BlockingIOError):
            system.lock_directory(tmp_path)
        unlock()
        system.lock_directory(tmp_path)()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert system.lock_directory(tmp_path) is None
    with pytest.raises(ValueError, match="no lock that a killed process releases"):
        system.file_lock(0)


def test_what_another_system_lacks_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "win32")
    system.die_with_parent()
    assert system.interface_of("127.0.0.1") is None
    monkeypatch.delattr(os, "setsid", raising=False)
    system.leave_terminal()

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "O_DIRECTORY", 0, raising=False)
    with pytest.raises(PermissionError):
        system.sync_directory(tmp_path)
    monkeypatch.delattr(os, "O_DIRECTORY")
    system.sync_directory(tmp_path)
