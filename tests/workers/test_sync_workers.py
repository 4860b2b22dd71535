"""Workers: equal to one of them on the same data, equal to each other, resumable, and never left behind."""

import os
import signal
import threading
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from a3c_support import make_drawing_encoder
from async_support import settles
from core_support import assert_same, make_gradient, take_step, weights
from gymnasium.spaces import Box, Discrete
from run_support import spawn

from fastac.build import (
    Streams,
    assemble,
    build_head,
    build_objective,
    resolve_workers,
)
from fastac.build.sync import _make_worker
from fastac.config import Config
from fastac.contract import Alone, EnvFailure, NonFiniteError, Phases, WorkerFailure
from fastac.kernels import SQUARES_BLOCK, merge_moments
from fastac.learning.fused import FusedNetwork
from fastac.learning.learner import Learner
from fastac.learning.losses import clipped_surrogate, policy_gradient
from fastac.learning.optimizer import LocalOptimizer, SharedOptimizer, SharedVectors, flat_size, squares_of
from fastac.learning.update_rules import Adam
from fastac.models import ActorCritic, IdentityCore, MLPEncoder, NoObsNormalizer, ObsNormalizer, RewardNormalizer, Trunk
from fastac.rollout import FlatMinibatches, Rollout
from fastac.rollout.observations import Rows
from fastac.workers import Division, shared_group, waiting
from fastac.workers.shared_group import GroupMemory, SharedGroup
from fastac.workers.shared_parameters import SharedParameters
from fastac.workers.waiting import wait_until

SMALL = {"num_envs": 4, "num_steps": 8, "workers": 2, "hidden_sizes": (8,), "total_env_steps": 10**6}
SMALL |= {"vectorization": "native"}


def assemble_training(factory=None, encoder=None, **settings):
    config = Config().replace(**(SMALL | settings))
    return assemble(config, Streams.spawn(config.run.seed).env, factory, encoder)


def in_threads(works, param_size=0):
    """Run one function per member of a group at the same time; return what they return, by rank."""
    division = Division.divide(len(works), len(works))
    memory = GroupMemory.allocate(division, 1 << 16, param_size, Adam(1e-5).slots)
    results, errors = [None] * len(works), []

    def run(rank):
        try:
            results[rank] = works[rank](SharedGroup(memory, rank, watch))
        except Exception as error:
            errors.append(error)

    def watch(waited_s):
        if errors:
            raise RuntimeError("another member has failed")

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads)
    return results


# --- the group -----------------------------------------------------------------------------------


def test_everybody_sees_everybodys_numbers_in_every_exchange():
    def work(rank, group):
        seen = []
        for turn in range(200):
            kind, size = (np.float32, 3) if turn % 3 else (np.float64, 5)
            seen.append(group.gather(np.full((1, size), 1000 * rank + turn, kind)).copy())
            if turn % 50 == rank:
                time.sleep(0.002)
        return seen

    results = in_threads([partial(work, rank) for rank in range(3)])
    for turn in range(200):
        for seen in results:
            assert seen[turn].shape == (3, 3 if turn % 3 else 5)
            assert (seen[turn] == np.array([[turn], [1000 + turn], [2000 + turn]])).all()


def test_a_group_knows_who_waited_for_whom_and_how_long():
    late = []

    def work(rank, group):
        group._watch = lambda waited_s: late.append((rank, group.late_ranks))
        if rank == 1:
            settles(lambda: late)  # until the other one waits
        group.wait()
        return group.waited_s

    first, _ = in_threads([partial(work, rank) for rank in range(2)])
    assert late[0] == (0, [1])
    assert first[0] > 0.0 and first[0] > first[1]


def test_the_share_of_waiting_is_of_this_processs_training():
    training = assemble_training()
    try:
        list(islice(training.trainer.run(), 3))
        state = training.get_state()
    finally:
        training.close()
    state["trainer"]["train_wall_s"] = 1000.0
    again = assemble_training()
    try:
        again.set_state(state)
        assert again.waiting == [0.0, 0.0]
        list(islice(again.trainer.run(), 3))
        again.others._shared._waited_s[:] = [0.25 * again.trainer.trained_s, 0.0]
        assert again.trainer.trained_s < 500.0
        assert again.waiting == pytest.approx([0.25, 0.0])
    finally:
        again.close()


def test_alone_is_a_group_of_one():
    array = np.arange(3.0)[None]
    assert Alone().gather(array) is array
    assert Alone(2).merge_statistics("obs", np.array([1.0]), np.array([[2.0], [4.0]]), np.subtract) == [-5.0]


def test_moments_of_parts_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    rows = [rng.normal(3.0, 2.0, size) for size in (5, 0, 1, 40)]
    training = np.array(
        [[len(r), r.mean() if len(r) else 0.0, ((r - r.mean()) ** 2).sum() if len(r) else 0.0] for r in rows]
    )
    whole = np.concatenate(rows)
    merged = merge_moments(training)
    assert merged == pytest.approx((46, whole.mean(), 46 * whole.var()))
    assert merge_moments(np.zeros((2, 3))) == (0.0, 0.0, 0.0)


# --- K workers with N/K envs each are one worker with N envs --------------------------------------


def make_model():
    torch.manual_seed(0)
    trunks = [Trunk(MLPEncoder(3, (8, 8), "tanh"), IdentityCore(8)) for _ in range(2)]
    return ActorCritic(trunks, build_head(Discrete(4), 8, Config().model), NoObsNormalizer())


def make_rollout(num_steps=9, num_envs=6):
    rng = torch.Generator().manual_seed(4)
    rollout = Rollout.allocate(num_steps, num_envs, (3,), (), torch.int64, 0)
    for part in (rollout.obs, rollout.value, rollout.reward):
        part.copy_(torch.randn(part.shape, generator=rng))
    rollout.log_prob.copy_(-torch.rand(rollout.log_prob.shape, generator=rng))
    rollout.action.copy_(torch.randint(4, rollout.action.shape, generator=rng))
    rollout.terminated.copy_(torch.rand(rollout.reward.shape, generator=rng) < 0.1)
    rollout.valid.copy_(torch.rand(rollout.reward.shape, generator=rng) < 0.7)
    return rollout


def slice_envs(rollout, envs):
    fields = {name: getattr(rollout, name) for name in rollout.__slots__ if name != "observations"}
    training = {n: (t[envs] if n == "state" else t[:, envs]).clone().contiguous() for n, t in fields.items()}
    return replace(rollout, observations=Rows(rollout.obs[:, envs].clone().contiguous()), **training)


def learn(rollout, model, settings, group):
    config = Config().replace(num_envs=6, num_steps=9, learning_rate=0.01, **settings)
    optimizer = LocalOptimizer(model, Adam(1e-5), 0.5)
    if isinstance(group, SharedGroup):
        optimizer = SharedOptimizer(model, Adam(1e-5), 0.5, group, group.grads, group.vectors)
    objective = build_objective(model.head, clipped_surrogate if settings["algo"] == "ppo" else policy_gradient)
    gradient = make_gradient(FusedNetwork(model), objective, None, rollout.reward.numel())
    learner = Learner(config, [gradient], [FlatMinibatches(1, torch.Generator())], optimizer, group)
    metrics = [learner.learn([rollout], [rollout.reward], 0.1, Phases()) for _ in range(3)]
    # A copy of right after the last step, as a worker who came back from it would go on from.
    return {name: value.clone() for name, value in model.state_dict().items()}, metrics[-1], learner.rows


@pytest.mark.parametrize("shares", [[slice(0, 3), slice(3, 6)], [slice(0, 1), slice(1, 2), slice(2, 6)]])
@pytest.mark.parametrize(
    "settings",
    [{"algo": "a2c"}, {"algo": "a2c", "normalize_advantage": True}, {"algo": "ppo", "num_epochs": 3, "clip_coef": 0.1}],
)
def test_workers_learn_what_one_learns_from_all_their_envs(settings, shares):
    whole = make_rollout()
    expected, metrics, rows = learn(whole, make_model(), settings, Alone())
    works = [partial(learn, slice_envs(whole, envs), make_model(), settings) for envs in shares]
    results = in_threads(works, flat_size(make_model()))
    assert rows == int(whole.valid.sum())
    for state, its_metrics, its_rows in results:
        assert its_rows == rows
        assert its_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-6)
        for name, value in state.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)
            assert torch.equal(value, results[0][0][name]), "the workers train one model"


@pytest.mark.parametrize("size", [2, 3])
def test_parameters_that_are_shared_get_the_bits_of_those_that_each_worker_keeps(size, monkeypatch):
    params = flat_size(make_large_model())
    assert params > 2 * SQUARES_BLOCK, "each worker must have a part"
    grads = torch.randn(5, size, params, generator=torch.Generator().manual_seed(0))

    def train(model, group):
        optimizer = SharedOptimizer(model, Adam(1e-5), 0.5, group, group.grads, group.vectors)
        found = []
        for step in range(5):
            put_gradient(model, grads[step, group.rank])
            terms, norm = take_step(optimizer, 0.01, 1.0 + group.rank)
            group.wait()  # nobody steps on while another one copies
            found.append((terms, norm, torch.cat([p.detach().flatten() for p in model.parameters()])))
            group.wait()
        return found, optimizer.get_state()

    def train_all(few_numbers):
        monkeypatch.setattr(shared_group, "_FEW_NUMBERS", few_numbers)
        return in_threads([partial(train, make_large_model()) for _ in range(size)], params)

    own, shared = train_all(10**9), train_all(0)
    for (steps, state), (others, other_state) in zip(own, shared, strict=True):
        assert_same(state, other_state)
        for (terms, norm, param), (other_terms, other_norm, other) in zip(steps, others, strict=True):
            assert terms.tolist() == other_terms.tolist() == [sum(range(1, size + 1))] * 5
            assert norm == other_norm and torch.equal(param, other)


def test_a_gradient_stays_where_others_may_still_read_it():
    """The other worker adds up the first step's gradients only when this one has begun its second step."""
    read = []

    class Late(Alone):
        size = 2

        def gather(self, array):
            read.append([place[0].clone() for place in grads])
            return np.concatenate([array, array])

        def prepare_gather(self, array):
            return [lambda: self.gather(array.numpy())], torch.zeros(2, 5, dtype=torch.float64)

    model = make_large_model()
    params = flat_size(model)
    grads = torch.zeros(2, 2, params)
    optimizer = SharedOptimizer(model, Adam(1e-5), 0.5, Late(), grads, None)
    for number in (1.0, 2.0, 3.0):
        put_gradient(model, torch.full((params,), number))
        take_step(optimizer, 0.01)
    first = [[place.max().item() for place in places] for places in read]
    assert first == [[1.0, 0.0], [1.0, 2.0], [3.0, 2.0]]


def test_a_worker_begins_with_the_first_ones_model_whatever_an_encoder_draws():
    training = assemble_training(encoder=make_drawing_encoder)
    try:
        share, state = Config().replace(**(SMALL | {"num_envs": 2, "workers": 1})), training.model.state_dict()
        given = {name: value.clone() for name, value in state.items()}
        worker = _make_worker(share, [(np.random.SeedSequence(1), 0)], None, make_drawing_encoder, given, Alone())
        with closing(worker):
            assert_same(dict(worker.model.state_dict()), dict(state))
        list(islice(training.trainer.run(), 2))  # it is sent to the other worker
    finally:
        training.close()


def make_large_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(40, 50), torch.nn.Linear(50, 20))


def put_gradient(model, grad):
    for p in model.parameters():
        p.grad.copy_(grad[: p.numel()].view_as(p))
        grad = grad[p.numel() :]


@pytest.mark.parametrize("is_shared", [False, True])
def test_terms_that_are_not_finite_change_nothing(is_shared, monkeypatch):
    monkeypatch.setattr(shared_group, "_FEW_NUMBERS", 0 if is_shared else 10**9)

    def train(model, group):
        optimizer = SharedOptimizer(model, Adam(1e-5), 0.5, group, group.grads, group.vectors)
        put_gradient(model, torch.ones(flat_size(model)))
        terms, _ = take_step(optimizer, 0.01, np.nan if group.rank else 1.0)
        return terms, optimizer.get_state()["steps"]

    models = [make_large_model(), make_large_model()]
    for terms, steps in in_threads([partial(train, model) for model in models], flat_size(models[0])):
        assert terms.isnan().all() and steps == 0
    for model in models:
        assert_same(dict(model.state_dict()), dict(make_large_model().state_dict()))


def test_a_step_that_is_taken_in_part_is_not_saved():
    class Deserted:  # the other worker is lost after terms and norm have been exchanged
        size, rank, shards = 2, 0, range(1)

        def __init__(self):
            self.meetings = 0

        def wait(self):
            self.meetings += 1
            if self.meetings == 3:
                raise WorkerFailure("worker 1 died")

        def prepare_gather(self, array):
            return [self.wait], torch.cat([array, array])

    model = make_model()
    params = flat_size(model)
    shared = SharedParameters.allocate(params, {"average": 0.0, "square": 0.0}).vectors()
    grads = torch.ones(1, 2, params)
    vectors = SharedVectors(shared, squares_of(grads[0, 0]))
    optimizer = SharedOptimizer(model, Adam(1e-5), 0.5, Deserted(), grads, vectors)
    assert optimizer.get_state()["steps"] == 0
    with pytest.raises(WorkerFailure, match="worker 1 died"):
        take_step(optimizer, 0.01)
    with pytest.raises(WorkerFailure, match="within a step"):
        optimizer.get_state()


def test_normalizers_see_all_workers_rows():
    rng = torch.Generator().manual_seed(0)
    obs, reward = torch.randn(5, 6, 3, generator=rng), torch.randn(5, 6, generator=rng)
    valid, done = torch.rand(5, 6, generator=rng) < 0.7, torch.rand(5, 6, generator=rng) < 0.2

    def work(envs, group):
        of_obs, of_reward = ObsNormalizer((3,)), RewardNormalizer(len(range(6)[envs]), 0.9)
        scaled = []
        for _ in range(3):
            own = [rows[:, envs].contiguous() for rows in (reward, valid, done)]
            of_obs.update([(obs[:, envs], valid[:, envs])], group)
            of_reward.moments.merge("reward", of_reward.measure(*own)[None], group)
            scaled.append(of_reward(own[0]))
        return of_obs.state_dict(), of_reward.moments.state_dict(), torch.stack(scaled)

    whole = work(slice(0, 6), Alone())
    training = in_threads([partial(work, slice(0, 2)), partial(work, slice(2, 6))])
    for which in (0, 1):
        for name, value in whole[which].items():
            for part in training:
                torch.testing.assert_close(part[which][name], value, msg=name)
    torch.testing.assert_close(torch.cat([part[2] for part in training], dim=-1), whole[2])


# --- in processes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"algo": "ppo", "num_epochs": 2, "num_minibatches": 2}, {"core": "lstm"}, {"core": "gru"}]
)
def test_a_run_with_workers_learns_and_counts_everybodys_steps(settings):
    training = assemble_training(normalize_obs=True, normalize_reward=True, lstm_size=8, **settings)
    try:
        before = weights(training)
        reports = list(islice(training.trainer.run(), 40))
        state = training.get_state()
    finally:
        training.close()
    assert any(not torch.equal(value, weights(training)[name]) for name, value in before.items())
    assert reports[0].env_steps <= 32 and reports[-1].env_steps > 40 * 32 * 0.8
    seen = sum(e.length for r in reports for e in r.finished)
    going_on = int(sum(shard["episode_counter"]["length"].sum() for shard in state["shards"].values()))
    assert seen + going_on == reports[-1].env_steps, "every step belongs to one episode of one worker"
    rank_0, rank_1 = (shard["collector"]["obs"] for shard in state["shards"].values())
    assert not torch.equal(torch.as_tensor(rank_0), torch.as_tensor(rank_1)), "the workers' streams are the same"


_FLAT = ", observations flattened to 16 numbers"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"vectorization": "auto"}, f"sync (in each worker){_FLAT}"),
        ({"vectorization": "sync"}, f"sync (as asked){_FLAT}"),
        ({"vectorization": "auto", "algo": "a3c"}, f"sync (in each worker){_FLAT}"),
        ({"vectorization": "auto", "env_id": "MountainCar-v0"}, "compiled (MountainCar-v0)"),
    ],
)
def test_how_a_workers_environments_are_stepped_is_told_as_it_came(settings, says):
    training = assemble_training(**{"env_id": "FrozenLake-v1", **settings})
    try:
        assert training.info.description == says
    finally:
        training.close()


def without_clocks(state):
    trainer = {name: value for name, value in state["trainer"].items() if name not in ("phases", "train_wall_s")}
    return to_dict(state | {"trainer": trainer})


def to_dict(tree):
    return {name: to_dict(value) for name, value in tree.items()} if hasattr(tree, "items") else tree


@pytest.mark.parametrize("settings", [{}, {"normalize_obs": True, "normalize_reward": True, "vectorization": "sync"}])
def test_a_saved_run_with_workers_goes_on_bit_for_bit(settings):
    straight, first, second = (assemble_training(**settings) for _ in range(3))
    try:
        list(islice(straight.trainer.run(), 6))
        list(islice(first.trainer.run(), 3))
        assert second.set_state(first.get_state()) is True
        list(islice(second.trainer.run(), 3))
        assert_same(without_clocks(straight.get_state()), without_clocks(second.get_state()))
    finally:
        for training in (straight, first, second):
            training.close()


def children_of(training):
    return training.others.children.pids


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_gone(pids, seconds=10.0):
    until = time.monotonic() + seconds
    while any(is_alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(is_alive(pid) for pid in pids)


def test_closing_ends_the_workers():
    training = assemble_training()
    pids = children_of(training)
    assert len(pids) == 1 and all(is_alive(pid) for pid in pids)
    training.close()
    assert wait_gone(pids)
    training.close()


def test_a_worker_that_is_killed_ends_the_run_and_leaves_a_state_to_go_on_from():
    training = assemble_training(normalize_reward=True)
    try:
        reports = training.trainer.run()
        list(islice(reports, 3))
        os.kill(children_of(training)[0], signal.SIGKILL)
        with pytest.raises(
            WorkerFailure, match=r"worker 1 died \(exit code -9\), in iteration \d+, after \d+ environment"
        ):
            list(islice(reports, 50))
        state = training.get_state()
    finally:
        training.close()
    assert list(state["shards"]) == ["0"] and state["shards"]["0"]["envs"] is None
    again = assemble_training(normalize_reward=True)
    try:
        assert again.set_state(state) is False
        (report,) = islice(again.trainer.run(), 1)
        assert report.iteration == state["trainer"]["iteration"] + 1
    finally:
        again.close()


@pytest.mark.usefixtures("kills_early")
def test_a_worker_that_hangs_ends_the_run():
    training = assemble_training()
    try:
        reports = training.trainer.run()
        list(islice(reports, 2))
        training.others._timeout_s = 0.3
        os.kill(children_of(training)[0], signal.SIGSTOP)
        with pytest.raises(WorkerFailure, match=r"^worker 1 kept the others waiting"):
            list(islice(reports, 50))
        assert training.others.children == []
    finally:
        training.close()


class Fails(gym.Env):
    """Raises in its fifth step, if it is not in the first worker."""

    observation_space = Box(-1.0, 1.0, (2,), np.float32)
    action_space = Discrete(2)
    parent = os.getpid()

    def __init__(self, first, kind):
        self._breaks, self._kind, self._steps = os.getpid() != first, kind, 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self._steps += 1
        if self._breaks and self._steps == 5:
            raise self._kind("the wheel came off")
        return np.zeros(2, np.float32), 0.0, False, False, {}


def vector_of(first, kind, num):
    return gym.vector.SyncVectorEnv([partial(Fails, first, kind)] * num)


def test_an_environment_that_fails_in_a_worker_is_named_with_its_traceback():
    training = assemble_training(partial(vector_of, os.getpid(), ArithmeticError))
    try:
        with pytest.raises(
            EnvFailure, match=r"worker 1: .*ArithmeticError: the wheel came off.*in iteration 1, "
        ) as caught:
            list(islice(training.trainer.run(), 3))
    finally:
        training.close()
    assert "in step" in str(caught.value)
    assert 'raise self._kind("the wheel came off")' in str(caught.value.__cause__)


def test_a_factory_that_cannot_be_sent_is_refused():
    with pytest.raises(ValueError, match="top level of a module; use workers 1"):
        assemble_training(lambda num: vector_of(0, ValueError, num))


def test_numbers_that_are_not_finite_stop_every_worker_and_can_be_saved():
    training = assemble_training(learning_rate=1e30, max_grad_norm=None)
    try:
        with pytest.raises(NonFiniteError):
            list(islice(training.trainer.run(), 50))
        assert "1" in training.get_state()["shards"]
    finally:
        training.close()


def train_on(pipe):
    training = assemble_training()
    pipe.send(children_of(training))
    for _ in training.trainer.run():
        pass


def test_workers_go_when_the_first_is_killed():
    ours, theirs = Pipe()
    run = spawn(train_on, theirs)
    pids = ours.recv()
    assert len(pids) == 1 and is_alive(pids[0])
    time.sleep(0.3)
    run.kill()
    run.join()
    assert wait_gone(pids, 5.0)


# --- how many ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "settings", "workers"),
    [
        (4, {"num_envs": 1024}, 4),
        (4, {"num_envs": 512}, 2),  # too few for four
        (4, {"num_envs": 256}, 2),
        (4, {"num_envs": 64}, 1),
        (4, {"num_envs": 801}, 3),
        (3, {"envs_per_worker": 1}, 3),
        (3, {"algo": "a3c", "envs_per_worker": 8}, 3),
        (4, {"algo": "a3c", "num_envs": 64}, 4),  # which wait for nobody
        (6, {"algo": "a3c", "num_envs": 64}, 4),
        (3, {"algo": "a3c", "num_envs": 64}, 2),
        (2, {"algo": "a3c", "num_envs": 2}, 2),
        (8, {"algo": "a3c", "num_envs": 7}, 7),
        (4, {"algo": "a3c", "num_envs": 5}, 1),
        (1, {"algo": "a3c", "num_envs": 64}, 1),
        (2, {"num_envs": 8, "vectorization": "sync", "env_id": "Pendulum-v1"}, 2),
        (1, {"num_envs": 256}, 1),
        (2, {"num_envs": 256, "num_steps": 1, "num_minibatches": 256}, 1),
        (2, {"env_id": "Pendulum-v1", "core": "lstm", "num_envs": 16, "num_minibatches": 16}, 1),  # whole sequences
    ],
)
def test_auto_workers(monkeypatch, cores, settings, workers):
    monkeypatch.setattr("fastac.build.shares.count_physical_cores", lambda: cores)
    config = Config().replace(workers="auto", **settings)
    resolved = resolve_workers(config)
    assert resolved.run.workers == workers
    expected = config.env.num_envs if config.env.envs_per_worker is None else workers * config.env.envs_per_worker
    assert resolved.env.num_envs == expected
    assert resolve_workers(config.replace(workers=1)).run.workers == 1


def test_nothing_is_shared_by_name():
    before = set(os.listdir("/dev/shm")) if Path("/dev/shm").exists() else set()
    training = assemble_training()
    list(islice(training.trainer.run(), 2))
    training.close()
    after = set(os.listdir("/dev/shm")) if Path("/dev/shm").exists() else set()
    assert after <= before


def test_waiting_costs_less_the_longer_it_lasts(monkeypatch):
    now, sleeps = [0.0], []

    def sleep(seconds):
        sleeps.append(seconds)
        now[0] += seconds

    def look():
        now[0] += 1e-5
        return now[0] > 60.0

    monkeypatch.setattr(waiting, "time", SimpleNamespace(perf_counter=lambda: now[0], sleep=sleep))
    wait_until(look, lambda waited_s: None)
    ends = np.cumsum(sleeps)
    assert max(sleep for sleep, end in zip(sleeps, ends, strict=True) if end < 0.9) <= 0.001  # as others work
    assert all(
        sleep <= 0.011 * (end + 1.0) for sleep, end in zip(sleeps, ends, strict=True)
    )  # nobody waits long for it
    assert min(sleep for sleep, end in zip(sleeps, ends, strict=True) if end > 10.0) == 0.05
