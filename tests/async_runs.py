"""Runs with A3C for tests, and what processes and shared memory they leave."""

from __future__ import annotations

import multiprocessing.forkserver
import os
import time
from pathlib import Path

from run_support import (
    SMALL,
)

import fastac

ENDLESS = 10**9
A3C = {**SMALL, "algo": "a3c", "workers": 2, "eval_every": ENDLESS}  # evaluated on the way, but not yet
FLAGS = (
    *("--algo", "a3c", "--workers", "2", "--num-envs", "4", "--num-steps", "8", "--hidden-sizes", "8"),
    *("--eval-every", str(ENDLESS), "--eval-episodes", "2", "--no-tensorboard"),
)


def start(run_dir, env="CartPole-v1", **settings):
    return fastac.start(env, run_dir=run_dir, **(A3C | settings))


def finish(session):
    for _ in session:
        pass
    return fastac.finish(session).summary


def pids_of(session):
    return session.training._workers.children.pids


def read_stat(pid):
    """Return state, parent and session of a process, or nothing if there is none."""
    try:
        state, parent, _, leader, *_ = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return state, int(parent), int(leader)


def is_alive(pid):
    stat = read_stat(pid)
    return stat is not None and stat[0] != "Z"


def find_processes(which):
    """Return the live processes of which `which` holds, told their parent and session."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        stat = read_stat(path.name)
        if stat is not None and stat[0] != "Z" and which(*stat[1:]):
            found.add(int(path.name))
    return found


def below(pid):
    """Return the live processes that a process has started, and those that they have."""
    children = find_processes(lambda parent, _: parent == pid)
    return children.union(*map(below, children))


def forked():
    """Return the live processes that this process's fork server has started."""
    return below(multiprocessing.forkserver._forkserver._forkserver_pid)


def are_gone(pids, seconds=5.0):
    until = time.monotonic() + seconds
    while any(is_alive(pid) for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def shared_memory():
    return set(os.listdir("/dev/shm"))


def no_more_than(shared, seconds=5.0):
    """Wait until nothing is in shared memory that was not before; others have files there for a moment."""
    until = time.monotonic() + seconds
    while not shared_memory() <= shared:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True
