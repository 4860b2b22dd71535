"""Results do not depend on where memory lies: what the matrix library is given begins at a cache line, or is refused.

On some processors the library's rounding depends on it and on others not, so these tests ask for the addresses.
"""

import hashlib
import os
import subprocess
import sys
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from core_support import assert_same, make_training, take_step, weights

import fastac
from fastac import memory
from fastac.build import Streams, assemble
from fastac.config import Config
from fastac.contract import Alone, read_tensor
from fastac.learning.optimizer import (
    FlatParameters,
    LocalOptimizer,
    SharedOptimizer,
    SharedVectors,
    flat_size,
    flatten,
    squares_of,
)
from fastac.learning.update_rules import Adam, RMSprop
from fastac.processes import start
from fastac.shared_memory import SharedArray
from fastac.workers import SharedCounters
from fastac.workers.division import Division
from fastac.workers.shared_group import GroupMemory
from fastac.workers.sync_workers import CommandMemory

ODD = {"num_envs": 3, "num_steps": 7, "hidden_sizes": (9, 7)}  # nothing fills a cache line by chance
RUNS = {
    "a2c": {},
    "a2c, two trunks, normalised": {"shared_trunk": False, "normalize_obs": True},
    "a2c, continuous": {"env_id": "Pendulum-v1", "vectorization": "sync"},
    "ppo": {"algo": "ppo", "num_epochs": 2, "num_minibatches": 3},
    "reinforce": {"algo": "reinforce", "collect": "episodes", "gae_lambda": 1.0, "num_steps": 40},
    "a2c, lstm": {"core": "lstm", "lstm_size": 5},
    "ppo, lstm": {"algo": "ppo", "core": "lstm", "lstm_size": 5, "num_epochs": 2, "num_minibatches": 3},
}


def is_line(array):
    return array.ctypes.data % 64 == 0


# --- the allocator -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (3, 5), (7, 1, 2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_everything_it_gives_begins_at_a_line(shape, dtype):
    keep = [bytearray(size) for size in range(1, 200, 7)]  # so that the heap is not the same twice
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    source = np.ones((2, *shape), dtype)[:, ..., ::-1][1]
    source.flags.writeable = False
    for tensor in (memory.empty(shape, kind), memory.zeros(shape, kind), memory.copy_of(source)):
        assert tensor.shape == shape and tensor.dtype == kind and tensor.is_contiguous()
        assert memory.begins_line(tensor) and memory.is_aligned(tensor)
    assert (memory.copy_of(source, torch.float64) == 1.0).all()
    array = memory.lines(shape, np.dtype(dtype))
    assert is_line(array) and array.shape == shape and not array.any() and len(keep) > 1


def test_what_begins_elsewhere_is_seen():
    for shift in range(1, 16):
        tensor = shifted(4 * shift, torch.zeros(5, 3))
        assert not memory.begins_line(tensor) and not memory.is_aligned(tensor, memory.empty([3]))
        assert memory.is_aligned(memory.empty([5, 16])[shift:, shift:])  # an offset that the program has chosen


def shifted(nbytes, tensor):
    """Copy a tensor to where it begins so many bytes behind a cache line."""
    raw = np.zeros(tensor.nbytes + 128, np.uint8)
    begin = -raw.ctypes.data % 64 + nbytes
    array = raw[begin : begin + tensor.nbytes].view(tensor.numpy().dtype).reshape(tensor.shape)
    array[...] = tensor.numpy()
    return torch.from_numpy(array)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (3, 2, 7), (4, 16)])
def test_shared_arrays_begin_at_a_line_and_keep_writers_apart(shape, apart):
    arrays = [SharedArray(shape, np.dtype(kind), apart) for kind in (np.float32, np.int64, np.uint8) for _ in range(3)]
    for number, array in enumerate(arrays):
        view = array.view()
        assert view.shape == shape and not view.any() and is_line(view)
        if apart:
            assert all(is_line(row) for row in view.reshape(shape[0], -1)), "each row has a writer of its own"
        view[...] = number
    for number, array in enumerate(arrays):
        assert (array.view() == number).all(), "arrays overlap, or a view is a copy"
    lines = [{address // 64 for address in addresses(array.view())} for array in arrays]
    assert len(set.union(*lines)) == sum(map(len, lines)), "arrays share a cache line"


def addresses(view):
    """Where each element is."""
    begin = view.ctypes.data
    return {begin + sum(i * s for i, s in zip(index, view.strides, strict=True)) for index in np.ndindex(view.shape)}


def report_places(arrays, parent):
    parent.send([(is_line(array.view()), array.view().tolist()) for array in arrays])
    parent.receive()


def test_another_process_sees_the_same_line():
    arrays = [SharedArray((3, size), np.dtype(np.float32), apart=True) for size in (1, 5, 17)]
    for array in arrays:
        array.view()[...] = np.arange(3)[:, None]
    child = start("the child", partial(report_places, arrays), "fastac.build")
    try:
        assert child.receive_within(60.0, "") == [(True, array.view().tolist()) for array in arrays]
    finally:
        child.end()


def test_workers_write_into_lines_of_their_own():
    counters = SharedCounters.allocate(3, 16, {"square": 0.0}, {"obs": 2, "reward": 1})
    group = GroupMemory.allocate(Division.divide(3, 3), 72, 48, {"square": 0.0})
    commands = CommandMemory.allocate(3, 5)
    rows = [
        counters.counts,
        counters.seconds,
        counters.losses,
        counters.staleness,
        counters.episodes.rings,
        *counters.statistics.values(),
    ]
    rows += [*counters.versions.values(), group.counts, commands.episodes.rings, commands.num_episodes]
    for array in rows:
        assert all(is_line(row) for row in array.view().reshape(3, -1))
    assert all(is_line(grad) for turn in group.grads.view() for grad in turn)
    assert all(is_line(slot) for turn in group.exchanged.view() for slot in turn)


# --- the flat vectors ----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Adam(1e-5), RMSprop(1e-5, tensorflow=False), RMSprop(1e-5, tensorflow=True)])
def test_gaps_between_parameters_stay_zero_and_weigh_nothing(rule):
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    param, grad = flatten(model)
    optimizer = LocalOptimizer(model, rule, 0.5)
    is_gap = torch.ones(flat_size(model), dtype=torch.bool)
    for p in model.parameters():
        assert memory.begins_line(p) and memory.begins_line(p.grad)
        begin = p.storage_offset()
        is_gap[begin : begin + p.numel()] = False
    assert is_gap.sum() == flat_size(model) - sum(p.numel() for p in model.parameters())
    for step in range(20):
        for p in model.parameters():
            p.grad.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(step)))
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        assert take_step(optimizer, 0.1)[1] == pytest.approx(norm.item(), rel=1e-6)
    vector = next(model.parameters()).untyped_storage()
    whole = torch.empty(0).set_(vector, 0, (flat_size(model),))
    assert not whole[is_gap].any() and whole[~is_gap].all()
    assert len(param) == len(grad) == len(whole)


class _Pair(Alone):
    size, rank = 2, 1

    def __init__(self):
        self.shards = range(1, 2)

    def prepare_gather(self, array):
        return [], torch.cat([array, array])


@pytest.mark.parametrize("place", ["param", "grads"])
@pytest.mark.parametrize("shift", [4, 28, 60])
def test_shared_vectors_that_begin_elsewhere_are_refused(place, shift):
    model = torch.nn.Linear(3, 5)
    size = flat_size(model)
    vectors = {"param": torch.zeros(size), "grads": torch.zeros(1, 2, size)}
    make, squares = partial(SharedOptimizer, model, Adam(1e-5), None, _Pair()), squares_of(vectors["param"])
    make(vectors["grads"], SharedVectors(FlatParameters(vectors["param"], {}), squares))
    vectors[place] = shifted(shift, vectors[place])
    with pytest.raises(AssertionError, match="cache line"):
        make(vectors["grads"], SharedVectors(FlatParameters(vectors["param"], {}), squares))


def test_statistics_in_another_layout_are_refused_in_one_sentence():
    training = make_training(**ODD)
    state = training.get_state()
    optimizer = state["trainer"]["learner"]["optimizer"]
    optimizer["average"] = read_tensor(optimizer, "average")[:-3]
    with pytest.raises(
        ValueError, match=r"'average' in the saved state is an array \[205\] .* expected an array \[208\]"
    ):
        training.set_state(state)


# --- whole runs ----------------------------------------------------------------------------------


class Shifting:
    """Counts what is allocated, and lets the one whose turn it is begin elsewhere."""

    def __init__(self, turn, nbytes):
        self.turn, self.nbytes, self.calls = turn, nbytes, count()
        self._allocate = {name: getattr(memory, name) for name in ("empty", "zeros")}

    def install(self, monkeypatch):
        for name, allocate in self._allocate.items():
            monkeypatch.setattr(memory, name, partial(self._give, allocate))

    def _give(self, allocate, *args, **kwargs):
        tensor = allocate(*args, **kwargs)
        is_read = tensor.numel() and tensor.dtype == torch.float32  # what is empty, or no float, is never multiplied
        return shifted(self.nbytes, tensor) if is_read and next(self.calls) == self.turn else tensor


@pytest.mark.parametrize("name", ["a2c", "a2c, two trunks, normalised", "ppo", "a2c, lstm"])
def test_a_buffer_that_begins_elsewhere_is_refused_whichever_it_is(name, monkeypatch):
    refused = 0
    for turn in count():
        with monkeypatch.context() as patch:
            shifting = Shifting(turn, 4 + 4 * (turn % 15))
            shifting.install(patch)
            try:
                training = make_training(**(ODD | RUNS[name]))
                list(islice(training.trainer.run(), 1))
                training.trainer._worker.shards[0]._collector._actor.value_of(training.rollouts[0].obs[0])
            except AssertionError as error:
                assert "begin at a cache line" in str(error)
                refused += 1
                continue
        assert next(shifting.calls) <= turn, "a buffer that began elsewhere was taken"
        break
    assert refused >= (3 if "lstm" in name else 9)


def disturb(number):
    """Leave the heaps of Python, NumPy, torch and multiprocessing otherwise than they were."""
    rng = np.random.default_rng(number)
    kept = [np.zeros(int(size), np.uint8) for size in rng.integers(1, 5000, 40)]
    kept += [torch.zeros(int(size)) for size in rng.integers(1, 3000, 40)]
    kept += [SharedArray((int(size),), np.dtype(np.uint8)) for size in rng.integers(1, 300, 10)]
    return kept[::2]


def end_of(settings, iterations=6):
    config = Config().replace(**settings)
    training = assemble(config, Streams.spawn(config.run.seed).env)
    try:
        list(islice(training.trainer.run(), iterations))
        return weights(training)
    finally:
        training.close()


@pytest.mark.parametrize("name", RUNS)
def test_runs_are_the_same_whatever_ran_before(name):
    first = end_of(ODD | RUNS[name])
    for number in range(3):
        kept = disturb(number)
        end_of(ODD | {"num_envs": 2 + number, "hidden_sizes": (5 + number,)}, 1)
        assert_same(end_of(ODD | RUNS[name]), first)
        del kept


@pytest.mark.parametrize(
    "name", ["ppo, lstm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("a2c, continuous", "reinforce"))]
)
def test_runs_with_workers_are_the_same_whatever_ran_before(name):
    settings = ODD | RUNS[name] | {"num_envs": 6, "workers": 2}
    first = end_of(settings)
    for number in range(2):
        kept = disturb(number)
        assert_same(end_of(settings), first)
        del kept


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_runs_of_atari_are_the_same_whatever_ran_before(workers):
    pytest.importorskip("ale_py")
    settings = {"env_id": "ALE/Pong-v5", "num_envs": 2, "num_steps": 3, "encoder": "a3c", "workers": workers}
    first = end_of(settings, 2)
    kept = disturb(workers)
    assert_same(end_of(settings, 2), first)
    del kept


def digest_of_runs(folder):
    """Train through the public face, wide enough for the library to use more threads, were it not for fastac."""
    digest = hashlib.sha256()
    wide = {"hidden_sizes": (200, 200), "num_envs": 30, "num_steps": 20, "total_env_steps": 600, "eval_every": 0}
    for name, settings in (("a2c", {}), ("ppo", {"algo": "ppo", "core": "lstm"})):
        run = fastac.train("CartPole-v1", run_dir=Path(folder, name), eval_episodes=2, **wide, **settings)
        for value in run.policy.model.state_dict().values():
            digest.update(value.numpy().tobytes())
        digest.update(str(run.summary["eval_mean_return"]).encode())
    return digest.hexdigest()


SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_alignment import digest_of_runs
print(torch.get_num_threads(), digest_of_runs(sys.argv[2]))
"""


@pytest.mark.parametrize("threads", [pytest.param("2", marks=pytest.mark.slow), "4"])
def test_the_threads_that_are_set_outside_change_no_bit(tmp_path, threads):
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_DYNAMIC": "FALSE"}
    words = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path / threads)]
    run = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    expected = digest_of_runs(tmp_path / "1")  # in this process torch has one, and other runs came before
    assert run.communicate(timeout=120)[0].split() == [threads, expected]
