"""A3C's worker processes: they learn together, are started again when lost, and leave nothing behind."""

import gc
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
import weakref
from contextlib import closing, nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from a3c_support import (
    descendants,
    make_counts,
    make_drawing_encoder,
    make_encoder,
    make_slow,
    multiply,
)
from async_support import (
    SMALL,
    are_gone,
    assembled,
    ending,
    pids_of,
    receive,
    settles,
    stop_after,
    train,
)
from core_support import PROBES, assert_same, weights

from fastac.build.hogwild import _make_worker
from fastac.config import Config
from fastac.contract import EnvFailure, NonFiniteError, WorkerFailure
from fastac.processes import start
from fastac.workers import WorkerCounters, async_workers
from fastac.workers.shared_counters import (
    BEATS,
    ENV_STEPS,
    EPISODES,
    ITERATIONS,
    UPDATES,
)


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
        state = again.model.state_dict()
        worker = _make_worker(
            config, seed, 0, "as asked", None, None, state, counters, WorkerCounters(counters, 0), lock
        )
        with closing(worker.worker):
            again.set_state(saved)  # when workers stand already
            worker.begin()
            assert_same(dict(saved["model"]), dict(worker.worker.model.state_dict()))
            assert_same(
                worker.worker.shards[0].reward_normalizer.moments.dump(),
                training._reward_normalizer.moments.dump(),
                "rewards",
            )


def test_a_worker_begins_with_the_first_processs_model_whatever_an_encoder_draws():
    settings = {"workers": 1, "num_envs": 2}
    with assembled(encoder=make_drawing_encoder, **settings) as training:
        counters, state = training._counters, training.model.state_dict()
        config, row = Config().replace(**(SMALL | settings)), WorkerCounters(counters, 0)
        rest = None, make_drawing_encoder, state, counters, row, nullcontext()
        worker = _make_worker(config, np.random.SeedSequence(0), 0, "as asked", *rest)
        with closing(worker.worker):
            assert_same(dict(worker.worker.model.state_dict()), dict(state))


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


@pytest.mark.slow
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


@pytest.mark.slow
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
        place.child.silence.restart()  # a beat from before the stop may have been seen already
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
        for pid in pids_of(training):
            os.kill(pid, signal.SIGKILL)  # or closing would wait for them


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


@pytest.mark.parametrize("lock", [pytest.param(False, marks=pytest.mark.slow), True])
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
