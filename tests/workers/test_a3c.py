"""A3C's parts: one worker is A2C, none loses what others did, and what is shared is what was meant to be."""

import gc
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
import time
import weakref
from contextlib import closing, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from a3c_support import (
    Log,
    Logged,
    allocate,
    descendants,
    hold_lock,
    make_counts,
    make_encoder,
    make_model,
    make_slow,
    multiply,
    num_params,
    param_size,
    take_steps,
)
from core_support import PROBES, assert_same, make_training, weights

from fastac.build import Streams, assemble, restart_seed
from fastac.build.environments import replacement_seeds, worker_seeds
from fastac.build.hogwild import _make_worker
from fastac.config import Config
from fastac.contract import Alone, EnvFailure, Episodes, NonFiniteError, Phases, VecEnv, WorkerFailure
from fastac.learning.optimizer import Adam, HogwildOptimizer, LocalOptimizer, RMSprop, flatten
from fastac.models import RunningMoments, merge_moments
from fastac.processes import Children, start
from fastac.shared_memory import ProcessLock
from fastac.workers import BeatingEnvs, HogwildTrainer, SharedCounters, WorkerCounters, async_workers, hogwild_trainer
from fastac.workers.hogwild_worker import _train
from fastac.workers.shared_counters import (
    BEATS,
    ENV_STEPS,
    EPISODES,
    ITERATIONS,
    LOSSES,
    MAX_STALENESS,
    ROOM,
    UPDATES,
    merge_all_statistics,
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


# --- one worker is A2C ---------------------------------------------------------------------------

LINEAR = {"learning_rate_schedule": "linear", "ent_coef": 0.01, "ent_coef_schedule": "linear"}
CASES = {
    "plain": {},
    "linear": LINEAR,
    "normalized": {"normalize_obs": True, "normalize_reward": True, "normalize_advantage": True},
    "lstm": {"core": "lstm", "lstm_size": 8, "normalize_obs": True, **LINEAR},
    "rmsprop": {"optimizer": "rmsprop"},
    "rmsprop_tf": {"optimizer": "rmsprop_tf", "normalize_reward": True, "max_grad_norm": None},
    "continuous": {"env_id": "Pendulum-v1", "vectorization": "sync", "normalize_obs": True, "shared_trunk": False},
    "episodes": {"collect": "episodes", "num_steps": 500},
    "forwards not kept": {"reuse_forward": False},
    "locked": {"lock": True},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_one_worker_is_synchronous_a2c_bit_for_bit(settings):
    states = []
    for algo in ("a2c", "a3c"):
        own = {**settings, "lock": False} if algo == "a2c" else settings
        with assembled(**{**own, "algo": algo, "workers": 1, "seed": 3}) as training:
            reports = train(training)
            states.append((training.get_state(), sum(len(report.finished) for report in reports)))
    (a2c, found), (a3c, also_found) = states
    assert a3c["trainer"]["updates"] == a2c["trainer"]["learner"]["updates"] > 10
    assert a3c["trainer"]["learner"]["updates"] == a2c["trainer"]["learner"]["updates"]
    for counter in ("iteration", "env_steps", "episodes"):
        assert a3c["trainer"][counter] == a2c["trainer"][counter], counter
    assert found == also_found == a3c["trainer"]["episodes"]
    assert_same(dict(a3c["model"]), dict(a2c["model"]))
    assert_same(a3c["trainer"]["learner"]["optimizer"], a2c["trainer"]["learner"]["optimizer"])
    moments = [{n: v for n, v in s["reward_normalizer"].items() if "moments" in n} for s in (a3c, a2c)]
    assert_same(*moments)


# --- nothing is lost -----------------------------------------------------------------------------


def run_workers(counters, rule, lock, workers, steps):
    """Let processes take steps on shared parameters at the same time."""
    with ending() as children:
        for worker in range(workers):
            work = partial(take_steps, counters, worker, rule, lock, steps)
            children.append(start(f"worker {worker}", work, "fastac.workers"))
        assert children.receive_within(PATIENCE_S, "") == ["ready"] * workers
        counters.control.view()[0] = 1
        assert children.receive_within(PATIENCE_S, "") == ["done"] * workers


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


@EACH_RULE
def test_with_the_lock_workers_are_a_serial_replay_of_their_gradients(rule):
    workers, steps = 3, 150
    log = Log(workers * steps, param_size())
    counters = allocate(workers, rule)
    began = counters.parameters.vectors()
    param = began.param.clone()
    slots = {name: slot.clone() for name, slot in began.slots.items()}
    run_workers(counters, Logged(rule, log), ProcessLock(), workers, steps)

    assert (log.written.view() == 1).all(), "two steps were counted as one"
    for i, (scale, rate) in enumerate(log.rates.view().tolist()):
        rule.step(param, torch.from_numpy(log.grads.view()[i].copy()), slots, scale, rate, i + 1)
    assert torch.equal(param, torch.from_numpy(counters.parameters.param.view()))
    assert_same(slots, {name: slot.view() for name, slot in counters.parameters.slots.items()})
    assert counters.counts.view()[:, UPDATES].tolist() == [steps] * workers
    assert counters.staleness.view().sum(axis=1).tolist() == [steps] * workers


@EACH_RULE
def test_without_the_lock_every_step_is_counted_and_numbers_stay_finite(rule):
    workers, steps = 3, 300
    counters = allocate(workers, rule)
    before = counters.parameters.param.view().copy()
    run_workers(counters, rule, nullcontext(), workers, steps)
    assert counters.counts.view()[:, UPDATES].tolist() == [steps] * workers
    assert counters.staleness.view().sum() == workers * steps
    assert np.isfinite(counters.parameters.param.view()).all() and (counters.parameters.param.view() != before).any()
    assert all(np.isfinite(slot.view()).all() for slot in counters.parameters.slots.values())


# --- the optimiser --------------------------------------------------------------------------------


def make_optimizers(rule, workers=2, lock=None, max_grad_norm=None):
    """Two workers at shared counters, in this process: models and optimisers."""
    counters = allocate(workers, rule)
    models = [make_model() for _ in range(workers)]
    lock, shared = nullcontext() if lock is None else lock, counters.parameters.vectors()
    optimizers = [
        HogwildOptimizer(model, rule, max_grad_norm, shared, WorkerCounters(counters, worker), lock)
        for worker, model in enumerate(models)
    ]
    return counters, models, optimizers


def put_gradient(model, grad):
    sizes = [p.numel() for p in model.parameters()]
    for p, part in zip(model.parameters(), grad.split(sizes), strict=True):
        p.grad.copy_(part.view_as(p))


def gradient_of(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def parameters_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@EACH_RULE
def test_a_constant_gradient_stays_constant(rule):
    _, models, optimizers = make_optimizers(rule)
    for _ in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            model.zero_grad(set_to_none=False)
            sum(p.sum() for p in model.parameters()).backward()
            assert (gradient_of(model) == 1.0).all()
            optimizer.step(0.01)


def test_a_gradient_of_ones_moves_parameters_by_as_much_each_time():
    class Descent:
        def __init__(self):
            self.slots = {}

        def step(self, param, grad, slots, grad_scale, learning_rate, count):
            param.sub_(learning_rate * grad_scale * grad)

    counters, models, optimizers = make_optimizers(Descent())
    counters.parameters.param.view()[:] = 0.0
    for turn in range(4):
        model, optimizer = models[turn % 2], optimizers[turn % 2]
        model.zero_grad(set_to_none=False)
        sum(p.sum() for p in model.parameters()).backward()
        optimizer.step(1.0)
        assert torch.equal(torch.from_numpy(counters.parameters.param.view()), flatten(deepcopy(model))[0])
        assert (parameters_of(model) == -1.0 - turn).all(), "a worker copies the parameters after its step"


def test_gradients_and_parameters_of_workers_are_their_own():
    counters, models, _ = make_optimizers(Adam(1e-5))
    shared = [counters.parameters.param.view(), *(slot.view() for slot in counters.parameters.slots.values())]
    own = [
        array for model in models for p in model.parameters() for array in (p.detach().numpy(), p.grad.detach().numpy())
    ]
    arrays = shared + own
    for i, one in enumerate(arrays):
        for other in arrays[:i]:
            assert not np.shares_memory(one, other)
    counters.parameters.param.view()[:] = 7.0
    assert not any((p == 7.0).any() for model in models for p in model.parameters())


@EACH_RULE
@pytest.mark.parametrize("make_lock", [lambda: None, ProcessLock], ids=["without lock", "with lock"])
def test_workers_in_turn_are_one_that_takes_all_their_steps(rule, make_lock):
    counters, models, optimizers = make_optimizers(rule, lock=make_lock(), max_grad_norm=0.5)
    alone = make_model()
    local = LocalOptimizer(alone, rule, 0.5)
    rng = torch.Generator().manual_seed(0)
    for turn in range(7):
        grad, worker = torch.randn(parameters_of(alone).shape, generator=rng), turn % 2
        put_gradient(models[worker], grad)
        put_gradient(alone, grad)
        rate = 0.1 / (1 + turn)
        assert optimizers[worker].step(rate) == local.step(rate)
        assert torch.equal(torch.from_numpy(counters.parameters.param.view()), flatten(deepcopy(alone))[0])
        assert torch.equal(parameters_of(models[worker]), parameters_of(alone))
    assert_same(optimizers[0].get_state(), local.get_state())


def test_adam_corrects_its_averages_by_everybodys_steps():
    """A count of a worker's own would correct the second worker's step as if it were the first."""
    _, models, optimizers = make_optimizers(Adam(1e-5))
    counts = []
    for worker in (0, 1, 1, 0):
        put_gradient(models[worker], torch.ones(num_params()))
        optimizers[worker].step(0.01)
        counts.append(optimizers[worker].get_state()["steps"])
    assert counts == [1, 2, 3, 4]
    # With a constant gradient corrected averages are that gradient, so that each step is the learning rate.
    moved = parameters_of(make_model()) - parameters_of(models[0])
    torch.testing.assert_close(moved, torch.full_like(moved, 0.04), rtol=1e-3, atol=0.0)


def test_numbers_that_are_not_finite_are_not_applied():
    counters, models, optimizers = make_optimizers(Adam(1e-5))
    before = counters.parameters.param.view().copy()
    put_gradient(models[0], torch.full((num_params(),), torch.nan))
    assert np.isnan(optimizers[0].step(0.01))
    assert (counters.parameters.param.view() == before).all()
    assert not any(slot.view().any() for slot in counters.parameters.slots.values())
    assert counters.counts.view().sum() == counters.staleness.view().sum() == 0


def test_staleness_is_how_many_steps_of_others_lay_between_copy_and_step():
    counters, models, optimizers = make_optimizers(RMSprop(1e-5, tensorflow=False))
    for model in models:
        put_gradient(model, torch.ones(num_params()))
    expected = np.zeros((2, MAX_STALENESS + 1), int)
    # Who steps, and the others' steps since its last one (both have copied at the beginning).
    for worker, staleness in [(0, 0), (1, 1), (0, 1), (0, 0), (0, 0), (1, 3), (1, 0), (0, 2)]:
        optimizers[worker].step(0.0)
        expected[worker, staleness] += 1
    assert counters.staleness.view().tolist() == expected.tolist()
    for _ in range(MAX_STALENESS + 9):
        optimizers[1].step(0.0)
    optimizers[0].step(0.0)
    assert counters.staleness.view()[0, MAX_STALENESS] == 1
    assert counters.staleness.view().sum() == counters.counts.view()[:, UPDATES].sum()


def test_mean_and_maximum_of_staleness_are_true_beyond_where_it_is_counted():
    counters, _, optimizers = make_optimizers(RMSprop(1e-5, tensorflow=False))
    between = [MAX_STALENESS + 9, 1, MAX_STALENESS + 2]
    for steps in between:
        for _ in range(steps):
            optimizers[1].step(0.0)
        optimizers[0].step(0.0)
    # The other worker finds a step between, whenever it goes on after one.
    staleness, measured = [*between, 1, 1], HogwildTrainer(1, 1, counters, SimpleNamespace(restarts=0)).asynchrony
    assert measured.max_staleness == MAX_STALENESS + 9
    assert measured.mean_staleness == pytest.approx(sum(staleness) / (sum(between) + 3))
    assert measured.staleness[MAX_STALENESS] == 2


def test_a_worker_copies_anew_when_it_is_told():
    counters, models, optimizers = make_optimizers(Adam(1e-5))
    counters.parameters.param.view()[:] = 3.0
    put_gradient(models[1], torch.zeros(num_params()))
    optimizers[1].step(0.0)
    optimizers[0].copy()
    assert (parameters_of(models[0]) == 3.0).all()
    put_gradient(models[0], torch.zeros(num_params()))
    optimizers[0].step(0.0)
    assert counters.staleness.view()[0].tolist() == [1] + [0] * MAX_STALENESS  # it has copied after the other's step


# --- the lock ------------------------------------------------------------------------------------


def start_holder(lock):
    return start("the holder", partial(hold_lock, lock), "fastac.workers")


def test_one_process_holds_the_lock_at_a_time():
    lock = ProcessLock()
    with ending() as children:
        children.append(start_holder(lock))
        assert receive(children[0]) == "held"
        children.append(start_holder(lock))
        assert not children[1].has_news(0.3)
        children[0].send("go on")
        assert receive(children[1]) == "held"
        assert receive(children[0]) == "released"
        children[1].send("go on")
        assert receive(children[1]) == "released"
        with lock:
            pass


def test_a_process_that_is_killed_does_not_keep_the_lock():
    lock = ProcessLock()
    with ending() as children:
        children.append(start_holder(lock))
        assert receive(children[0]) == "held"
        children.append(start_holder(lock))
        os.kill(children[0].pid, signal.SIGKILL)
        assert receive(children[1]) == "held"


def test_the_lock_is_released_by_what_raises_under_it():
    lock = ProcessLock()
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    with ending() as children:
        children.append(start_holder(lock))
        assert receive(children[0]) == "held"


# --- the counters---------------------------------------------------------------------------------


def moments_of(rows):
    """Count, mean and variance, as `RunningMoments.dump` has them."""
    return np.concatenate([[len(rows)], rows.mean(axis=0), rows.var(axis=0)])


def make_rows(workers=3, slots=()):
    counters = SharedCounters.allocate(workers, 4, dict.fromkeys(slots, 0.0), {"obs": 2, "reward": 1})
    return counters, [WorkerCounters(counters, worker) for worker in range(workers)]


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
            "obs", np.zeros(5), moments_of(rows), merge_moments
        )  # the third sees none
        np.testing.assert_allclose(got, moments_of(np.concatenate(seen)), rtol=1e-12)
    assert pooled(counters, "reward").tolist() == [0.0] * 3


def test_running_moments_of_workers_are_those_of_all_rows():
    rng = torch.Generator().manual_seed(0)
    _, worker_rows = make_rows()
    everyones, whole = [RunningMoments((2,)) for _ in worker_rows], RunningMoments((2,))
    for turn in range(6):
        rows = torch.randn(7, 2, generator=rng) * turn
        everyones[turn % 3].update("obs", rows, worker_rows[turn % 3])
        whole.update("obs", rows, Alone())
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
        worker_rows[worker].merge_statistics("obs", np.zeros(5), moments_of(rows[worker]), merge_moments)
    with pytest.raises(Killed):
        worker_rows[1].merge_statistics("obs", np.zeros(5), moments_of(rows[3]), merge_half)
    np.testing.assert_allclose(pooled(counters), moments_of(np.concatenate(rows[:3])), rtol=1e-12)
    # Who takes its place goes on from the last whole version.
    got = WorkerCounters(counters, 1).merge_statistics("obs", np.zeros(5), moments_of(rows[3]), merge_moments)
    np.testing.assert_allclose(got, moments_of(np.concatenate(rows)), rtol=1e-12)


def note(row, returns=(), env_steps=1, losses=(), phases=None):
    returns = np.asarray(returns, float)
    losses = dict.fromkeys(LOSSES, np.nan) | dict(losses)
    row.note(Episodes(returns, returns.astype(int) % 7), env_steps, losses, phases or Phases())


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


# --- the trainer, whose workers are scripted -----------------------------------------------------


class Script:
    """Workers that do one thing between two looks."""

    def __init__(self, *acts):
        self._acts, self.restarts, self.calls = list(acts), 0, []

    @property
    def are_done(self):
        return not self._acts

    def begin(self):
        self.calls.append("begin")

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


# --- a worker's loop -----------------------------------------------------------------------------


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
    _train(worker, worker_rows[0], 100, threading.Event())
    assert worker.fractions == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert worker_rows[0].env_steps() == 100
    assert counters.counts.view()[0, ITERATIONS] == 5


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
    streams = [*worker_seeds(config, seed), *(replacement_seeds(seed, restarts) for restarts in (1, 2, 3))]
    assert len({tuple(envs.generate_state(4)) for envs, _ in streams}) == 6
    assert len({actions for _, actions in streams}) == 6


def test_a_resumed_run_repeats_no_actions_of_the_first_one():
    config = Config().replace(**SMALL)
    first, again = (worker_seeds(config, seed) for seed in (Streams.spawn(0).env, restart_seed(0, 1000)))
    assert not {actions for _, actions in first} & {actions for _, actions in again}


# --- runs in processes ---------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"core": "lstm", "lstm_size": 8}, {"lock": True}])
def test_workers_learn_together_until_the_budget_of_all_is_spent(settings):
    normalized = {"normalize_obs": True, "normalize_reward": True, "learning_rate_schedule": "linear"}
    with assembled(**normalized, **settings) as training:
        before = weights(training)
        reports = train(training)
        state = training.get_state()
    last = reports[-1]
    assert 1500 <= last.env_steps < 1500 + 2 * 8 * 2
    counts = state["trainer"]["counters"]["counts"]
    assert counts[:, ENV_STEPS].sum() == last.env_steps
    assert counts[:, UPDATES].sum() == last.updates == last.iteration == counts[:, ITERATIONS].sum()
    assert sum(len(report.finished) for report in reports) == last.episodes > 0
    assert training.asynchrony.staleness.sum() == last.updates
    assert all(value.isfinite().all() for value in state["model"].values())
    assert any(not torch.equal(value, state["model"][name]) for name, value in before.items())
    rates = [rate for report in reports if not np.isnan(rate := report.losses["learning_rate"])]
    assert Config().optim.learning_rate >= rates[0] > rates[-1] >= 0.0
    assert float(state["model"]["obs_normalizer.moments.count"]) == last.env_steps
    assert float(state["reward_normalizer"]["moments.count"]) == last.env_steps


@pytest.mark.parametrize("kind", ["MultiDiscreteReward", "ContinuousReward"])
def test_workers_learn_whatever_the_actions_are(kind):
    with assembled(env_id=f"{PROBES}{kind}-v0", total_env_steps=400, normalize_obs=True) as training:
        before = weights(training)
        reports = train(training)
        after = training.get_state()["model"]
    found = [episode.return_ for report in reports for episode in report.finished]
    assert reports[-1].updates >= 400 // (2 * 8)
    if kind == "MultiDiscreteReward":
        assert set(found) == {0.0, 0.5, 1.0}
    else:
        assert len(set(found)) > 100 and max(found) < 0.0
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {"head.layer.bias", "value_head.bias"} <= changed  # there is nothing to see, so weights may stay
    assert all(value.isfinite().all() for value in after.values())


def test_workers_train_an_encoder_of_the_users_own():
    with assembled(encoder=make_encoder) as training:
        before = weights(training)
        reports = train(training)
        after = training.get_state()["model"]
    assert reports[-1].env_steps >= 1500
    assert sorted(value.shape for name, value in before.items() if "encoder" in name) == [(6,), (6, 4)]
    for name, value in before.items():
        assert not torch.equal(value, after[name]), name


def test_a_state_that_is_restored_is_the_state_that_was_saved():
    settings = {"normalize_obs": True, "normalize_reward": True, "core": "lstm", "lstm_size": 8}
    with assembled(**settings, total_env_steps=10**6) as training:
        stop_after(training, 5)
        saved = training.get_state()
    with assembled(**settings, total_env_steps=10**6) as again:
        assert again.set_state(saved) is False  # episodes begin anew
        assert_same(to_dict(saved), to_dict(again.get_state()))
        assert_same(to_dict(weights(training)), to_dict(weights(again)))
        assert again.trainer.env_steps == saved["trainer"]["env_steps"]
        (report,) = stop_after(again, 1)
        assert report.iteration > saved["trainer"]["iteration"] > 0
        assert report.updates > saved["trainer"]["updates"]


def to_dict(tree):
    return {name: to_dict(value) for name, value in tree.items()} if hasattr(tree, "items") else tree


def test_a_state_saved_while_workers_learn_counts_the_same_everywhere():
    with assembled(total_env_steps=10**6) as training:
        run = training.trainer.run()
        next(run)
        for _ in range(100):
            trainer = training.get_state()["trainer"]
            totals = trainer["counters"]["counts"].sum(axis=0)
            told = [trainer[name] for name in ("updates", "iteration", "env_steps", "episodes")]
            assert totals[[UPDATES, ITERATIONS, ENV_STEPS, EPISODES]].tolist() == told


def test_workers_begin_with_the_restored_parameters_and_statistics():
    settings = {"workers": 1, "num_envs": 2, "normalize_obs": True, "normalize_reward": True}
    with assembled(**settings) as training:
        train(training)
        saved = training.get_state()
    with assembled(**settings) as again:
        counters, lock = again._counters, nullcontext()
        config, seed = Config().replace(**(SMALL | settings)), np.random.SeedSequence(0)
        worker = _make_worker(config, seed, 0, "as asked", None, None, counters, WorkerCounters(counters, 0), lock)
        with closing(worker.worker):
            again.set_state(saved)  # when workers stand already
            worker.begin()
            assert_same(dict(saved["model"]), dict(worker.worker.model.state_dict()))
            assert_same(
                worker.worker.reward_normalizer.moments.dump(), training._reward_normalizer.moments.dump(), "rewards"
            )


def test_a_resumed_worker_acts_and_learns_with_the_restored_parameters():
    settings = {"learning_rate": 1e-9, "workers": 1, "total_env_steps": 1}
    with assembled(**settings) as training:
        saved = to_dict(training.get_state())
    bias = next(name for name in saved["model"] if "value" in name and name.endswith("bias"))
    saved["model"][bias] = saved["model"][bias] + 1000.0
    with assembled(**settings) as again:
        again.set_state(saved)
        report = train(again)[-1]
    assert report.iteration == 1
    assert report.losses["value_loss"] > 1e3  # a worker that had begun with its own would value nothing so high


def test_a_lost_worker_is_started_again_with_new_episodes(caplog):
    with assembled(total_env_steps=10**7, normalize_obs=True) as training:
        run = training.trainer.run()
        next(run)
        (lost, other) = pids_of(training)
        os.kill(lost, signal.SIGKILL)
        while training.asynchrony.restarts == 0:
            next(run)
        new, still = pids_of(training)
        assert new != lost and still == other and are_gone([lost])
        iterations = training._counters.counts.view()[:, ITERATIONS].copy()
        while (training._counters.counts.view()[:, ITERATIONS] <= iterations).any():
            next(run)
        run.close()
        state = training.get_state()
    assert state["trainer"]["restarts"] == 1
    assert [r.getMessage() for r in caplog.records] == [
        "worker 0 died (exit code -9): started again with new episodes (1 of at most 10 times)"
    ]


def test_a_worker_that_is_lost_once_too_often_ends_the_run():
    with assembled(total_env_steps=10**7, max_restarts=0) as training:
        run = training.trainer.run()
        next(run)
        pids = pids_of(training)
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(WorkerFailure, match=r"worker 1 died \(exit code -9\), after as many restarts as max"):
            list(run)
        assert are_gone(pids)
        assert training.get_state()["trainer"]["env_steps"] > 0


def test_a_worker_that_fails_every_time_ends_the_run_with_its_traceback():
    factory = partial(make_counts, os.getpid(), "step", None)
    with assembled(factory, total_env_steps=10**6, max_restarts=2) as training:
        pids = pids_of(training)
        with pytest.raises(EnvFailure, match=r"worker \d: .* raised ArithmeticError: the wheel came off") as caught:
            train(training)
        assert are_gone(pids)
    assert "after as many restarts as max_restarts allows (2)" in str(caught.value)
    assert 'raise ArithmeticError("the wheel came off")' in str(caught.value.__cause__)


def test_a_worker_that_fails_once_is_started_again(tmp_path, caplog):
    with assembled(partial(make_counts, os.getpid(), "step", tmp_path), total_env_steps=10**7) as training:
        run = training.trainer.run()
        while training.asynchrony.restarts == 0:
            steps = next(run).env_steps
        while next(run).env_steps < steps + 1000:  # training goes on
            pass
        run.close()
        assert training.asynchrony.restarts == 1
    (record,) = caplog.records
    assert "ArithmeticError: the wheel came off" in record.getMessage()
    assert record.getMessage().endswith("started again with new episodes (1 of at most 10 times)")


def test_a_worker_that_hangs_is_started_again(monkeypatch, caplog):
    monkeypatch.setattr(async_workers, "SILENCE_S", 4.0)  # longer than a busy machine keeps the other one waiting
    monkeypatch.setattr(async_workers, "SILENCE_ITERATIONS", 1.0)
    with assembled(total_env_steps=10**7) as training:
        run = training.trainer.run()
        next(run)
        while (training._counters.counts.view()[:, ITERATIONS] == 0).any():
            next(run)
        hung = pids_of(training)[1]
        os.kill(hung, signal.SIGSTOP)
        while training.asynchrony.restarts == 0:
            next(run)
        run.close()
        assert are_gone([hung])
    assert "worker 1 finished no step for" in caplog.records[0].getMessage()


def test_a_slow_first_iteration_is_no_hang(monkeypatch, caplog):
    with assembled(partial(make_slow, 0.2), workers=1, num_envs=1, num_steps=30, total_env_steps=1) as training:
        training._workers._start_timeout_s = 4.0  # it has started; an iteration takes longer
        monkeypatch.setattr(async_workers, "SILENCE_S", 4.0)
        (report,) = train(training)[-1:]
        assert training.asynchrony.restarts == 0
    assert report.iteration == 1 and report.phases.env_s > 4.0
    assert caplog.records == []


@pytest.mark.parametrize(
    ("iterations", "seconds", "patience_s", "setting"),
    [(0, 0.0, 50.0, "start_timeout_s"), (3, 60.0, 80.0, "env_timeout_s"), (3, 6.0, 10.0, "env_timeout_s")],
    ids=["first", "slow", "fast"],
)
def test_who_shows_no_step_for_too_long_is_lost(monkeypatch, iterations, seconds, patience_s, setting):
    monkeypatch.setattr(async_workers, "SILENCE_S", 10.0)
    monkeypatch.setattr(async_workers, "SILENCE_ITERATIONS", 4.0)
    with assembled(total_env_steps=10**9, start_timeout_s=50.0) as training:
        for pid in pids_of(training):
            os.kill(pid, signal.SIGSTOP)  # so that nobody but this test writes to the counters
        counts, (place, _) = training._counters.counts.view(), training._workers._places

        def miss(seconds):
            """Let the worker's silence last longer, and look at it."""
            place.child.silence.elapsed_s += seconds
            training._workers._check_pulse(0, place)

        counts[0, ITERATIONS] = iterations
        training._counters.seconds.view()[0, :2] = seconds / 2
        for _ in range(3):
            miss(1e6)  # who has not been let go need not show anything
        training._counters.control.view()[0] = 1
        for _ in range(3):
            miss(0.8 * patience_s)
            counts[0, BEATS] += 1
            miss(1e6)
        miss(0.8 * patience_s)
        with pytest.raises(
            WorkerFailure, match=f"^worker 0 finished no step for {patience_s:.0f} s \\(raise {setting} "
        ):
            miss(0.3 * patience_s)


def test_steps_too_large_end_the_run_at_once():
    with assembled(learning_rate=1e30, max_grad_norm=None) as training:
        with pytest.raises(NonFiniteError, match=r"worker \d: update \d+: "):
            train(training)
        assert training.asynchrony.restarts == 0


def fork_server_children():
    return set(descendants(multiprocessing.forkserver._forkserver._forkserver_pid))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_cannot_begin_is_told_of_and_leaves_nobody(workers):
    with assembled():
        pass  # so that there is a fork server
    before = fork_server_children()
    factory = partial(make_counts, os.getpid(), "construction", None)
    with pytest.raises(EnvFailure, match=r"worker \d: .*ArithmeticError: the wheel came off") as caught:
        assembled(factory, workers=workers).__enter__()
    assert 'raise ArithmeticError("the wheel came off")' in str(caught.value.__cause__)
    assert are_gone(fork_server_children() - before)
    assert multiprocessing.active_children() == []


def test_what_fails_in_this_process_too_starts_nobody():
    before = multiprocessing.active_children()
    with pytest.raises(ValueError, match="NoSuchEnv"):
        assembled(env_id="NoSuchEnv-v0").__enter__()
    assert multiprocessing.active_children() == before


def test_a_factory_that_cannot_be_sent_is_refused():
    with pytest.raises(
        ValueError, match=r"functions are sent .* top level of a module; move them there, or train with"
    ):
        assembled(lambda num: make_counts(os.getpid(), "", None, num)).__enter__()
    assert multiprocessing.active_children() == []


def test_closing_ends_the_workers_in_mid_training():
    with assembled(total_env_steps=10**9) as training:
        pids = pids_of(training)
        next(training.trainer.run())
    assert are_gone(pids) and len(pids) == 2
    training.close()


def test_workers_that_never_began_end_too():
    with assembled() as training:
        pids = pids_of(training)
        training.trainer.halt()
        assert are_gone(pids)


def test_a_worker_that_is_killed_while_training_is_being_stopped_is_told_of_and_not_replaced(caplog):
    with assembled(total_env_steps=10**9) as training:
        run = training.trainer.run()
        next(run)
        pids = pids_of(training)
        os.kill(pids[1], signal.SIGSTOP)  # so that it cannot end in order

        def kill():
            settles(lambda: training._counters.control.view()[1])
            os.kill(pids[1], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        training.trainer.halt()
        killer.join()
        assert are_gone(pids)
        run.close()
        assert training.asynchrony.restarts == 0
    assert [r.getMessage() for r in caplog.records] == [
        "worker 1 died (exit code -9), while training was being stopped"
    ]


@pytest.mark.parametrize("lock", [False, True])
def test_nothing_of_a_run_stays_open_or_in_shared_memory(lock):
    def run_once():
        with assembled(lock=lock, total_env_steps=100) as training:
            train(training)
            arrays.append(weakref.ref(training._counters.parameters.param))  # its memory is freed with it

    arrays = []
    run_once()  # what is opened once and for all
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        run_once()
    assert len(os.listdir("/proc/self/fd")) <= files
    gc.collect()
    assert len(arrays) == 4 and not any(array() for array in arrays), "somebody keeps the counters"


def test_spawned_processes_do_too(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with assembled(workers=1, lock=True, normalize_obs=True) as training:
        assert train(training)[-1].env_steps >= 1500
        assert training.asynchrony.updates.sum() > 0


def test_a_process_started_after_torch_has_used_threads_does_not_hang():
    torch.set_num_threads(4)
    try:
        float((torch.ones(600, 600) @ torch.ones(600, 600)).sum())
        with ending() as children:
            children.append(start("the child", multiply, "fastac.workers"))
            assert receive(children[0]) == 600.0**3
    finally:
        torch.set_num_threads(1)


def test_workers_start_beside_threads_of_torch():
    torch.set_num_threads(4)
    try:
        float((torch.ones(600, 600) @ torch.ones(600, 600)).sum())
        with assembled() as training:
            assert train(training)[-1].env_steps >= 1500
    finally:
        torch.set_num_threads(1)
