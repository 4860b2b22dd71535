"""The asynchronous trainer, whose workers are scripted here: what it reports, saves and restores."""

import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from async_support import make_rows, note
from core_support import assert_same, make_training

from fastac.contract import Episodes, Phases, WorkerFailure
from fastac.workers import HogwildTrainer, hogwild_trainer
from fastac.workers.shared_counters import (
    IS_IDLE,
    LOSSES,
    ROOM,
)


class Script:
    """Workers that do one thing between two looks."""

    def __init__(self, *acts):
        self._acts, self.restarts, self.calls = list(acts), 0, []

    @property
    def are_done(self):
        return not self._acts

    def begin(self):
        self.calls.append("begin")

    def pause(self):
        self.calls.append("pause")
        if self._acts:
            self._acts.pop(0)()

    def watch(self, period_s):
        assert 0.0 < period_s <= 0.1
        self._acts.pop(0)()

    def halt(self):
        self.calls.append("halt")
        while self._acts:
            self._acts.pop(0)()


def make_trainer(counters, *acts, budget=10**6):
    script = Script(*acts)
    return HogwildTrainer(budget, 4, counters, script), script


def test_reports_are_sums_over_the_workers():
    counters, worker_rows = make_rows(2)

    def first():
        worker_rows[0].add(0)
        note(worker_rows[0], [1.0, 2.0], env_steps=5, phases=Phases(env_s=1.0, act_s=0.5))

    def second():
        worker_rows[1].add(1)
        worker_rows[1].add(0)
        note(worker_rows[1], [3.0], env_steps=7, phases=Phases(env_s=2.0))

    trainer, script = make_trainer(counters, first, lambda: None, second)
    reports = list(trainer.run())
    assert script.calls == ["begin", "halt"]
    assert [(r.iteration, r.env_steps, r.frames, r.updates, r.episodes) for r in reports] == [
        (1, 5, 20, 1, 2),
        (2, 12, 48, 3, 3),
    ]
    assert [[e.return_ for e in r.finished] for r in reports] == [[1.0, 2.0], [3.0]]
    assert [e.length for e in reports[0].finished] == [1, 2]
    for report in reports:
        phases = report.phases
        total_s = phases.env_s + phases.act_s + phases.advantage_s + phases.update_s + phases.other_s
        assert total_s == pytest.approx(report.train_wall_s, abs=1e-9)
    last = reports[1].phases
    assert (last.env_s, last.act_s, last.update_s) == (1.5, 0.25, 0.0)
    assert last.other_s == pytest.approx(reports[1].train_wall_s - 1.75)
    assert trainer.asynchrony.updates.tolist() == [1, 2]
    assert trainer.asynchrony.staleness[:3].tolist() == [2, 1, 0]
    assert trainer.asynchrony.mean_staleness == pytest.approx(1 / 3)


class Advancing:
    """Rows that workers have written on whenever they are looked at."""

    def __init__(self, shape):
        self._rows = np.zeros(shape)

    def view(self):
        self._rows += 1.0
        return self._rows


def test_what_is_saved_of_the_clocks_is_of_one_moment():
    counters, _ = make_rows(2)
    trainer, _ = make_trainer(replace(counters, seconds=Advancing(counters.seconds.view().shape)))
    state = trainer.get_state()
    assert set(state["phases"].values()) == {state["counters"]["seconds"].mean()}


def test_nothing_is_reported_before_the_first_iteration():
    counters, worker_rows = make_rows(2)
    trainer, _ = make_trainer(counters, lambda: None, partial(note, worker_rows[0]))
    assert [report.iteration for report in trainer.run()] == [1]
    assert make_trainer(make_rows(2)[0])[0].halt() is None


def test_a_resumed_run_reports_nothing_before_its_first_iteration_however_long_that_takes(monkeypatch):
    monkeypatch.setattr(hogwild_trainer, "_SILENT_S", 0.0)
    counters, worker_rows = make_rows(2)
    trainer, _ = make_trainer(counters, partial(note, worker_rows[0]))
    assert len(list(trainer.run())) == 1
    saved = trainer.get_state()
    counters, worker_rows = make_rows(2)
    again, _ = make_trainer(counters, lambda: None, lambda: None, partial(note, worker_rows[1]), *[lambda: None] * 2)
    again.set_state(saved)
    # The second has no news, and is there so that a consumer who wants to stop is heard.
    assert [report.iteration for report in again.run()] == [2, 2]


def test_a_pause_reports_what_was_done_before_it_and_is_no_training_time(monkeypatch):
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(hogwild_trainer, "perf_counter", lambda: now.s)
    counters, worker_rows = make_rows(2)

    def work():
        now.s += 1.0
        note(worker_rows[0], env_steps=5)

    trainer, script = make_trainer(counters, work, work, work)
    reports = trainer.run()
    first = next(reports)
    last = trainer.pause()
    assert (first.env_steps, last.env_steps, last.train_wall_s) == (5, 10, 2.0)
    assert trainer.pause() is None and script.calls == ["begin", "pause"], "they wait already"
    now.s += 60.0
    third = next(reports)
    assert (third.env_steps, third.train_wall_s) == (15, 3.0)
    assert script.calls[:3] == ["begin", "pause", "begin"]


def test_whether_a_worker_is_idle_is_neither_saved_nor_restored():
    counters, _ = make_rows(2)
    counters.counts.view()[:, IS_IDLE] = 1, 0
    trainer, _ = make_trainer(counters)
    state = trainer.get_state()
    assert state["counters"]["counts"][:, IS_IDLE].tolist() == [0, 0]
    trainer.set_state(state)
    assert counters.counts.view()[:, IS_IDLE].tolist() == [1, 0]


def test_losses_are_means_over_the_iterations_since_the_last_report():
    counters, worker_rows = make_rows(2)

    def both():
        note(worker_rows[0], losses={"entropy": 1.0, "explained_variance": np.nan, "learning_rate": 0.5})
        note(worker_rows[0], losses={"entropy": 2.0, "explained_variance": 0.25, "learning_rate": 0.5})
        note(worker_rows[1], losses={"entropy": 6.0, "explained_variance": np.nan, "learning_rate": 0.2})

    def one():
        note(worker_rows[1], losses={"entropy": 10.0, "explained_variance": np.nan})

    trainer, _ = make_trainer(counters, both, one)
    before, after = (report.losses for report in trainer.run())
    assert set(before) == set(LOSSES)
    assert (before["entropy"], before["explained_variance"]) == (3.0, 0.25)
    assert before["learning_rate"] == pytest.approx(0.4)
    assert after["entropy"] == 10.0
    assert np.isnan(after["explained_variance"])  # no iteration had one


def test_the_board_has_room_for_every_loss_that_a_workers_learner_tells():
    training = make_training(num_envs=4, num_steps=8, hidden_sizes=(8,), algo="a2c")  # a worker's is the same
    with closing(training):
        assert sorted(next(training.trainer.run()).losses) == sorted(LOSSES)
    (name, *_), (row,) = LOSSES, make_rows(1)[1]
    with pytest.raises(KeyError, match=name):
        row.note(Episodes(np.empty(0), np.empty(0, int)), 1, {}, Phases())


def test_episodes_that_nobody_fetched_in_time_are_counted_and_the_latest_kept():
    counters, worker_rows = make_rows(2)

    def many():
        note(worker_rows[0], np.arange(ROOM - 3))
        note(worker_rows[0], np.arange(ROOM - 3, ROOM + 10))
        note(worker_rows[1], [-1.0, -2.0])

    def at_once():
        note(worker_rows[1], np.arange(2 * ROOM + 5))

    def few():
        note(worker_rows[1], [7.0, 8.0])

    reports = list(make_trainer(counters, many, at_once, few)[0].run())
    assert [report.episodes for report in reports] == [ROOM + 12, 3 * ROOM + 17, 3 * ROOM + 19]
    kept = [[episode.return_ for episode in report.finished] for report in reports]
    assert kept[0] == [*range(10, ROOM + 10), -1.0, -2.0]
    assert kept[1] == list(range(ROOM + 5, 2 * ROOM + 5))
    assert kept[2] == [7.0, 8.0]
    assert [episode.length for episode in reports[1].finished] == [r % 7 for r in range(ROOM + 5, 2 * ROOM + 5)]


def test_halting_reports_what_was_done_since_the_last_report():
    counters, worker_rows = make_rows(2)
    trainer, script = make_trainer(
        counters, partial(note, worker_rows[0]), partial(note, worker_rows[1], env_steps=5), lambda: None
    )
    run = trainer.run()
    assert next(run).env_steps == 1
    last = trainer.halt()
    assert (last.iteration, last.env_steps) == (2, 6)
    assert trainer.halt() is None
    run.close()
    assert "halt" in script.calls


def test_time_after_training_is_no_training_time():
    counters, worker_rows = make_rows(1)
    trainer, _ = make_trainer(counters, partial(note, worker_rows[0]))
    (report,) = trainer.run()
    time.sleep(0.05)
    assert report.train_wall_s <= trainer.get_state()["train_wall_s"] == trainer.get_state()["train_wall_s"]


def test_workers_are_halted_whatever_ends_the_training():
    counters, _ = make_rows(1)

    def fail():
        raise WorkerFailure("worker 0 died")

    trainer, script = make_trainer(counters, fail)
    with pytest.raises(WorkerFailure):
        list(trainer.run())
    assert script.calls == ["begin", "halt"]


def test_a_spent_budget_trains_nothing():
    counters, worker_rows = make_rows(1)
    note(worker_rows[0], env_steps=100)
    trainer, script = make_trainer(counters, budget=100)
    assert list(trainer.run()) == [] and script.calls == []


def test_a_trainer_goes_on_from_its_state():
    counters, worker_rows = make_rows(2)

    def work():
        worker_rows[0].add(2)
        note(worker_rows[0], [1.0, 2.0], env_steps=5, losses={"entropy": 1.0}, phases=Phases(env_s=1.0))

    trainer, script = make_trainer(counters, work)
    list(trainer.run())
    script.restarts = 3
    saved = trainer.get_state()
    counters, worker_rows = make_rows(2)
    again, script = make_trainer(counters, partial(note, worker_rows[1], [9.0], 2, {"entropy": 4.0}))
    again.set_state(saved)
    assert_same(saved, again.get_state())
    script.restarts = 1
    (report,) = again.run()
    assert (report.iteration, report.env_steps, report.updates, report.episodes) == (2, 7, 1, 3)
    assert [episode.return_ for episode in report.finished] == [9.0]
    assert report.losses["entropy"] == 4.0
    assert again.asynchrony.restarts == again.get_state()["restarts"] == 4
    assert again.asynchrony.staleness[2] == 1
