"""What tests of A3C share: small runs, shared counters, and processes to wait for."""

import time
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from fastac.build import Streams, assemble
from fastac.config import Config
from fastac.contract import Episodes, Phases
from fastac.learning.update_rules import Adam, RMSprop
from fastac.processes import Children
from fastac.workers import SharedCounters, WorkerCounters
from fastac.workers.shared_counters import (
    LOSSES,
)

SMALL = {"algo": "a3c", "num_envs": 4, "num_steps": 8, "workers": 2, "hidden_sizes": (8,), "total_env_steps": 1500}
PATIENCE_S = 60.0
RULES = {"adam": Adam(1e-5), "rmsprop": RMSprop(1e-5, tensorflow=False), "rmsprop_tf": RMSprop(1e-5, tensorflow=True)}
EACH_RULE = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


@contextmanager
def assembled(factory=None, encoder=None, **settings):
    config = Config().replace(**(SMALL | settings))
    training = assemble(config, Streams.spawn(config.run.seed).env, factory, encoder)
    try:
        yield training
    finally:
        training.close()


def train(training):
    """Train to the end of the budget, and return the reports."""
    return list(training.trainer.run())


def stop_after(training, reports):
    """Train for some reports, and let the workers end."""
    run = training.trainer.run()
    seen = list(islice(run, reports))
    run.close()
    return seen


def pids_of(training):
    return training._workers.children.pids


def settles(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def are_gone(pids):
    settles(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    return True


@contextmanager
def ending():
    """Yield where children are kept, which are ended however the block ends."""
    children = Children()
    try:
        yield children
    finally:
        children.end(timeout_s=0.0)


def receive(child):
    return child.receive_within(PATIENCE_S, "")


def make_rows(workers=3, slots=()):
    counters = SharedCounters.allocate(workers, 4, dict.fromkeys(slots, 0.0), {"obs": 2, "reward": 1})
    return counters, [WorkerCounters(counters, worker) for worker in range(workers)]


def note(row, returns=(), env_steps=1, losses=(), phases=None):
    returns = np.asarray(returns, float)
    losses = dict.fromkeys(LOSSES, np.nan) | dict(losses)
    row.note(Episodes(returns, returns.astype(int) % 7), env_steps, losses, phases or Phases())
