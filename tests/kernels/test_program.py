"""Programs: the calls run in order, on what the memory holds then, and joined or one by one give the same bits."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels_support import SEEDS, generator

from fastac.kernels import Program, copy_row, dense, join_calls, rmsprop_step, stack_frames, standardize


def layers(random, rows, sizes):
    """The calls of a small network, and its outputs."""
    x, calls, outputs = torch.randn(rows, sizes[0], generator=random), [], []
    for inputs, size in itertools.pairwise(sizes):
        weight, bias = torch.randn(inputs, size, generator=random), torch.randn(size, generator=random)
        y = torch.full((rows, size), torch.nan)
        calls.append(dense.prepare(x, weight, bias, "tanh", y))
        outputs.append(y)
        x = y
    return calls, outputs


@given(st.integers(0, 20), st.lists(st.integers(1, 40), min_size=2, max_size=5), SEEDS)
def test_a_joined_program_gives_the_bits_of_its_calls(rows, sizes, seed):
    calls, outputs = layers(generator(seed), rows, sizes)
    for call in calls:
        call()
    want = [y.clone() for y in outputs]
    for y in outputs:
        y.fill_(torch.nan)
    whole = Program.join(calls)
    assert len(whole) == len(calls)
    whole()
    assert all(map(torch.equal, outputs, want))


def test_calls_run_in_order_on_what_the_memory_holds():
    a, b, c = (torch.full((3,), value) for value in (1.0, 2.0, 3.0))
    shift = Program.join([copy_row.prepare(b, c), copy_row.prepare(a, b)])
    shift()
    assert (a[0], b[0], c[0]) == (1.0, 1.0, 2.0)
    a.fill_(5.0)
    shift()
    assert (a[0], b[0], c[0]) == (5.0, 5.0, 1.0)


def test_only_neighbouring_programs_are_joined():
    told = []
    a, b = torch.ones(2), torch.zeros(2)
    copy, other = copy_row.prepare(a, b), lambda: told.append("called")
    joined = join_calls([copy, copy, other, copy, other, other])
    assert [len(op) if isinstance(op, Program) else op for op in joined] == [2, other, 1, other, other]
    assert join_calls([]) == []
    for op in joined:
        op()
    assert torch.equal(a, b) and told == ["called"] * 3


def test_the_memory_of_a_call_lives_as_long_as_its_program():
    b = torch.zeros(1000)
    program = Program.join([copy_row.prepare(torch.full((1000,), 7.0), b)])
    rest = [torch.full((1000,), 3.0) for _ in range(50)]
    program()
    assert (b == 7.0).all() and len(rest) == 50


def test_what_is_no_step_cannot_be_prepared():
    with pytest.raises(AssertionError):
        stack_frames.prepare(torch.zeros(1))


@given(st.integers(0, 9), st.integers(1, 9), SEEDS)
def test_standardize_gives_the_bits_of_its_reference(rows, size, seed):
    random = generator(seed)
    x, mean = 20.0 * torch.randn(rows, size, generator=random), torch.randn(size, generator=random)
    scale, y, want = torch.rand(size, generator=random), torch.empty(rows, size), torch.empty(rows, size)
    standardize(x, mean, scale, 10, y)
    standardize.reference(x, mean, scale, 10, want)
    assert torch.equal(y, want)


def test_standardize_by_hand():
    x, y = torch.tensor([[3.0, 100.0, torch.nan], [-1.0, -100.0, -torch.inf]]), torch.empty(2, 3)
    standardize(x, torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.5, 1.0, 1.0]), 10, y)
    torch.testing.assert_close(y, torch.tensor([[1.0, 10.0, torch.nan], [-1.0, -10.0, -10.0]]), equal_nan=True)


@pytest.mark.parametrize(("times", "done"), [(0, 0), (3, 3), (9, 5)])
def test_a_program_is_repeated_until_a_number_is_set(times, done):
    """A chain of copies sets the number after five times: its bits are those of a float."""
    chain = torch.zeros(6)
    chain[0] = 1.0
    until = torch.zeros(1, dtype=torch.int64)
    calls = [copy_row.prepare(chain[k - 1 : k], chain[k : k + 1]) for k in range(5, 0, -1)]
    program = Program.join([*calls, copy_row.prepare(chain[5:], until.view(torch.float32)[:1])])
    program.repeat(times, until)
    assert chain.sum() == 1.0 + done
    before = chain.clone()
    if done == 5:
        program.repeat(1, until)
    assert torch.equal(chain, before)
    with pytest.raises(AssertionError, match="int64"):
        program.repeat(1, chain)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_a_number_that_changes_is_read_by_every_run(is_compiled, monkeypatch):
    if not is_compiled:
        monkeypatch.setattr(rmsprop_step, "_bind", None)
    param, grad, square = torch.zeros(1), torch.ones(1), torch.ones(1)
    scale, rate = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    step = rmsprop_step.prepare(param, grad, square, scale, rate, 1.0, 0.0, False)
    assert isinstance(step, Program) == is_compiled
    for rate[0] in (0.5, 0.25):
        step()
    assert param.item() == -0.75
    scale[0] = -1.0
    step()
    assert param.item() == -0.5


def test_a_number_of_another_type_is_refused():
    vectors = torch.zeros(1), torch.ones(1), torch.ones(1)
    for number in (torch.ones(1), torch.ones(2, dtype=torch.float64)):
        with pytest.raises(AssertionError, match="float64"):
            rmsprop_step.prepare(*vectors, number, 0.1, 1.0, 0.0, False)
