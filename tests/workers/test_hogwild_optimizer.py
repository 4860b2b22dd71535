"""The Hogwild optimiser: steps on shared parameters, staleness, the lock, and that no step is lost."""

import os
import signal
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from a3c_support import (
    Log,
    Logged,
    allocate,
    hold_lock,
    make_model,
    num_params,
    param_size,
    take_steps,
)
from async_support import EACH_RULE, PATIENCE_S, ending, receive
from core_support import PlainDescent, apply_rule, assert_same, take_step

from fastac.learning.optimizer import HogwildOptimizer, LocalOptimizer, flatten
from fastac.learning.update_rules import Adam, RMSprop
from fastac.processes import start
from fastac.shared_memory import ProcessLock
from fastac.workers import HogwildTrainer, WorkerCounters
from fastac.workers.shared_counters import (
    MAX_STALENESS,
    UPDATES,
)


def run_workers(counters, rule, lock, workers, steps):
    """Let processes take steps on shared parameters at the same time."""
    with ending() as children:
        for worker in range(workers):
            work = partial(take_steps, counters, worker, rule, lock, steps)
            children.append(start(f"worker {worker}", work, "fastac.workers"))
        assert children.receive_within(PATIENCE_S, "") == ["ready"] * workers
        counters.control.view()[0] = 1
        assert children.receive_within(PATIENCE_S, "") == ["done"] * workers


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
        apply_rule(rule, (param, torch.from_numpy(log.grads.view()[i].copy()), slots), scale, rate, i + 1)
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
def test_the_critics_rate_is_that_of_a_local_optimizer(rule):
    counters, (own, alone) = allocate(1, rule), (make_model(), make_model())
    critics = [list(model.parameters())[-2:] for model in (own, alone)]
    shared = counters.parameters.vectors()
    local = LocalOptimizer(alone, rule, 0.5, critic=critics[1])
    shared.param.copy_(local._vectors.param)
    hogwild = HogwildOptimizer(own, rule, 0.5, shared, WorkerCounters(counters, 0), nullcontext(), critics[0])
    for _ in range(3):
        for model, optimizer in ((own, hogwild), (alone, local)):
            put_gradient(model, torch.linspace(-1.0, 2.0, num_params()))
            take_step(optimizer, (0.1, 0.02))
    assert torch.equal(parameters_of(own), parameters_of(alone))


@EACH_RULE
def test_a_constant_gradient_stays_constant(rule):
    _, models, optimizers = make_optimizers(rule)
    for _ in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            model.zero_grad(set_to_none=False)
            sum(p.sum() for p in model.parameters()).backward()
            assert (gradient_of(model) == 1.0).all()
            take_step(optimizer, 0.01)


def test_a_gradient_of_ones_moves_parameters_by_as_much_each_time():
    counters, models, optimizers = make_optimizers(PlainDescent())
    counters.parameters.param.view()[:] = 0.0
    for turn in range(4):
        model, optimizer = models[turn % 2], optimizers[turn % 2]
        model.zero_grad(set_to_none=False)
        sum(p.sum() for p in model.parameters()).backward()
        take_step(optimizer, 1.0)
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
        assert take_step(optimizers[worker], rate)[1] == take_step(local, rate)[1]
        assert torch.equal(torch.from_numpy(counters.parameters.param.view()), flatten(deepcopy(alone))[0])
        assert torch.equal(parameters_of(models[worker]), parameters_of(alone))
    assert_same(optimizers[0].get_state(), local.get_state())


def test_adam_corrects_its_averages_by_everybodys_steps():
    """A count of a worker's own would correct the second worker's step as if it were the first."""
    _, models, optimizers = make_optimizers(Adam(1e-5))
    counts = []
    for worker in (0, 1, 1, 0):
        put_gradient(models[worker], torch.ones(num_params()))
        take_step(optimizers[worker], 0.01)
        counts.append(optimizers[worker].get_state()["steps"])
    assert counts == [1, 2, 3, 4]
    # With a constant gradient corrected averages are that gradient, so that each step is the learning rate.
    moved = parameters_of(make_model()) - parameters_of(models[0])
    torch.testing.assert_close(moved, torch.full_like(moved, 0.04), rtol=1e-3, atol=0.0)


def test_numbers_that_are_not_finite_are_not_applied():
    counters, models, optimizers = make_optimizers(Adam(1e-5))
    before = counters.parameters.param.view().copy()
    put_gradient(models[0], torch.full((num_params(),), torch.nan))
    assert np.isnan(take_step(optimizers[0], 0.01)[1])
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
        take_step(optimizers[worker], 0.0)
        expected[worker, staleness] += 1
    assert counters.staleness.view().tolist() == expected.tolist()
    for _ in range(MAX_STALENESS + 9):
        take_step(optimizers[1], 0.0)
    take_step(optimizers[0], 0.0)
    assert counters.staleness.view()[0, MAX_STALENESS] == 1
    assert counters.staleness.view().sum() == counters.counts.view()[:, UPDATES].sum()


def test_mean_and_maximum_of_staleness_are_true_beyond_where_it_is_counted():
    counters, _, optimizers = make_optimizers(RMSprop(1e-5, tensorflow=False))
    between = [MAX_STALENESS + 9, 1, MAX_STALENESS + 2]
    for steps in between:
        for _ in range(steps):
            take_step(optimizers[1], 0.0)
        take_step(optimizers[0], 0.0)
    # The other worker finds a step between, whenever it goes on after one.
    staleness, measured = [*between, 1, 1], HogwildTrainer(1, 1, counters, SimpleNamespace(restarts=0)).asynchrony
    assert measured.max_staleness == MAX_STALENESS + 9
    assert measured.mean_staleness == pytest.approx(sum(staleness) / (sum(between) + 3))
    assert measured.staleness[MAX_STALENESS] == 2


def test_a_worker_copies_anew_when_it_is_told():
    counters, models, optimizers = make_optimizers(Adam(1e-5))
    counters.parameters.param.view()[:] = 3.0
    put_gradient(models[1], torch.zeros(num_params()))
    take_step(optimizers[1], 0.0)
    optimizers[0].copy()
    assert (parameters_of(models[0]) == 3.0).all()
    put_gradient(models[0], torch.zeros(num_params()))
    take_step(optimizers[0], 0.0)
    assert counters.staleness.view()[0].tolist() == [1] + [0] * MAX_STALENESS  # it has copied after the other's step


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
