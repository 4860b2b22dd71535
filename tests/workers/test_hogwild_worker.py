"""A worker's loop: its budget, when it ends, its random streams."""

import threading
import time
from types import SimpleNamespace

import numpy as np
from async_support import SMALL, make_rows, note

from fastac.build import Streams, restart_seed
from fastac.build.environments import replacement_seeds, shard_seeds
from fastac.config import Config
from fastac.contract import Episodes, VecEnv
from fastac.workers import BeatingEnvs
from fastac.workers.hogwild_worker import _train
from fastac.workers.shared_counters import (
    BEATS,
    IS_IDLE,
    ITERATIONS,
    LOSSES,
)


class Steps:
    """A worker that takes ten steps an iteration, while another worker takes as many."""

    def __init__(self, other):
        self._other, self.learner, self.fractions = other, self, []
        self.rows = 10

    def collect(self, phases):
        if self._other is not None:
            note(self._other, env_steps=10)
        return Episodes(np.empty(0), np.empty(0, int))

    def learn(self, done_fraction, phases):
        self.fractions.append(done_fraction)
        return dict.fromkeys(LOSSES, 0.0)


def test_schedules_and_the_budget_are_of_all_workers_steps():
    counters, worker_rows = make_rows(2)
    worker = Steps(worker_rows[1])
    counters.control.view()[0] = 1
    _train(worker, worker_rows[0], 100, threading.Event())
    assert worker.fractions == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert worker_rows[0].env_steps() == 100
    assert counters.counts.view()[0, ITERATIONS] == 5


def test_a_worker_waits_and_says_so_until_it_may_train():
    counters, worker_rows = make_rows(1)
    worker, idle = Steps(None), counters.counts.view()[0]
    thread = threading.Thread(target=_train, args=(worker, worker_rows[0], 20, threading.Event()))
    thread.start()
    while not idle[IS_IDLE]:
        time.sleep(0.001)
    assert worker.fractions == []
    counters.control.view()[0] = 1
    thread.join(60.0)
    assert worker.fractions and not idle[IS_IDLE]


def test_a_worker_ends_when_the_board_says_so_or_the_first_process_has_left():
    counters, worker_rows = make_rows(2)
    has_left, worker = threading.Event(), Steps(None)
    counters.control.view()[1] = 1
    _train(worker, worker_rows[0], 100, has_left)
    counters.control.view()[1] = 0
    has_left.set()
    _train(worker, worker_rows[0], 100, has_left)
    assert worker.fractions == []


def test_environments_that_beat_are_those_that_they_wrap():
    members = {*VecEnv.__annotations__, *(name for name in vars(VecEnv) if not name.startswith("_"))}
    assert {"num_envs", "reset", "step", "close"} < members
    calls, final_obs, action, step_row = [], object(), object(), object()

    def step(*arguments):
        calls.append((arguments, counts[0, BEATS]))
        return final_obs

    counters, worker_rows = make_rows(2)
    counts = counters.counts.view()
    wrapped = SimpleNamespace(**{**{name: object() for name in members}, "step": step, "reset": step})
    envs = BeatingEnvs(wrapped, worker_rows[0])
    for name in members - {"step", "reset"}:
        assert getattr(envs, name) is getattr(wrapped, name), name
    for steps in (1, 2, 3):
        assert envs.step(action, step_row) is final_obs
        assert calls[-1] == ((action, step_row), steps)  # an environment that hangs has shown that it was called
    obs, start = object(), object()
    envs.reset(obs, start)
    assert calls[-1] == ((obs, start), 4) and counts[0, BEATS] == counts.sum() == 5  # before it and after it


def test_random_streams_of_workers_are_apart_also_of_those_that_take_another_ones_place():
    config = Config().replace(**(SMALL | {"num_envs": 6, "workers": 3}))
    seed = Streams.spawn(0).env
    streams = [*shard_seeds(config, seed), *(replacement_seeds(seed, restarts) for restarts in (1, 2, 3))]
    assert len({tuple(envs.generate_state(4)) for envs, _ in streams}) == 6
    assert len({actions for _, actions in streams}) == 6


def test_a_resumed_run_repeats_no_actions_of_the_first_one():
    config = Config().replace(**SMALL)
    first, again = (shard_seeds(config, seed) for seed in (Streams.spawn(0).env, restart_seed(0, 1000)))
    assert not {actions for _, actions in first} & {actions for _, actions in again}
