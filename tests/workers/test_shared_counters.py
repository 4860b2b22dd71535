"""The shared counters: statistics of all workers, and who takes a lost worker's place."""

import numpy as np
import pytest
import torch
from async_support import make_rows, note

from fastac.contract import Alone, Phases
from fastac.learning.update_rules import RMSprop
from fastac.models import RunningMoments, merge_moments
from fastac.workers import SharedCounters, WorkerCounters
from fastac.workers.shared_counters import (
    ENV_STEPS,
    EPISODES,
    ITERATIONS,
    UPDATES,
    merge_all_statistics,
)


def moments_of(rows):
    """Count, mean and variance, as `RunningMoments.dump` has them."""
    return np.concatenate([[len(rows)], rows.mean(axis=0), rows.var(axis=0)])


def pooled(counters, name="obs"):
    return merge_all_statistics(counters.statistics[name].view(), counters.versions[name].view()[:, 0], merge_moments)


def test_slots_begin_as_the_rule_says():
    counters = SharedCounters.allocate(2, 4, RMSprop(1e-5, tensorflow=True).slots, {})
    assert counters.parameters.slots["square"].view().tolist() == [1.0] * 4


def test_statistics_are_of_the_rows_that_any_worker_has_seen():
    rng = np.random.default_rng(0)
    counters, worker_rows = make_rows()
    seen = []
    for turn in range(9):
        rows = rng.normal(turn, 1.0 + turn, (1 + 5 * (turn % 3), 2))
        seen.append(rows)
        got = worker_rows[turn % 2].merge_statistics(
            "obs", np.zeros(5), moments_of(rows)[None], merge_moments
        )  # the third sees none
        np.testing.assert_allclose(got, moments_of(np.concatenate(seen)), rtol=1e-12)
    assert pooled(counters, "reward").tolist() == [0.0] * 3


def test_running_moments_of_workers_are_those_of_all_rows():
    rng = torch.Generator().manual_seed(0)
    _, worker_rows = make_rows()
    everyones, whole = [RunningMoments((2,)) for _ in worker_rows], RunningMoments((2,))
    for turn in range(6):
        part = moments_of((torch.randn(7, 2, generator=rng) * turn).numpy())[None]
        everyones[turn % 3].merge("obs", part, worker_rows[turn % 3])
        whole.merge("obs", part, Alone())
        np.testing.assert_allclose(everyones[turn % 3].dump(), whole.dump(), rtol=1e-12)


def test_what_a_worker_had_half_written_when_it_was_killed_is_not_read():
    class Killed(Exception):
        pass

    def merge_half(known, part):
        version = int(counters.versions["obs"].view()[1, 0])
        counters.statistics["obs"].view()[1, 1 - version, :3] = -1e9
        raise Killed

    rng = np.random.default_rng(0)
    counters, worker_rows = make_rows()
    rows = [rng.normal(size=(4, 2)) for _ in range(4)]
    for worker in range(3):
        worker_rows[worker].merge_statistics("obs", np.zeros(5), moments_of(rows[worker])[None], merge_moments)
    with pytest.raises(Killed):
        worker_rows[1].merge_statistics("obs", np.zeros(5), moments_of(rows[3])[None], merge_half)
    np.testing.assert_allclose(pooled(counters), moments_of(np.concatenate(rows[:3])), rtol=1e-12)
    # Who takes its place goes on from the last whole version.
    got = WorkerCounters(counters, 1).merge_statistics("obs", np.zeros(5), moments_of(rows[3])[None], merge_moments)
    np.testing.assert_allclose(got, moments_of(np.concatenate(rows)), rtol=1e-12)


def test_who_takes_a_lost_workers_place_goes_on_with_its_row():
    counters, worker_rows = make_rows()
    worker_rows[1].add(0)
    note(worker_rows[1], [5.0], env_steps=10, phases=Phases(env_s=1.5, update_s=0.5))
    worker_rows[2].add(3)
    again = WorkerCounters(counters, 1)
    assert again.total() == 2 and again.env_steps() == 10
    assert again.phases() == Phases(env_s=1.5, update_s=0.5)
    again.add(1)
    note(again, [6.0, 7.0], env_steps=20, phases=again.phases())
    assert worker_rows[0].total() == 3 and worker_rows[0].env_steps() == 30
    counts = counters.counts.view()
    assert counts[1, [UPDATES, ITERATIONS, ENV_STEPS, EPISODES]].tolist() == [2, 2, 30, 3]
    assert counters.episodes.rings.view()[1, 0, :3].tolist() == [5.0, 6.0, 7.0]
    assert counts[[0, 2], UPDATES].tolist() == [0, 1]
