"""Recurrent kernels: against torch's cells under autograd in float64, and Numba's form against the reference."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import SEEDS, generator

from fastac.kernels import layers, recurrent

NUM_GATES = {"lstm": 4, "gru": 3}
CELLS = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}
STATES = {"lstm": 2, "gru": 1}
BEYOND = 3  # columns of the state that belong to another core


def plain(kernel):
    return partial(partial, kernel.reference)


FORMS = {"reference": plain, "numba": lambda kernel: kernel.prepare}
KERNELS = {
    "lstm": (recurrent.lstm_forward, recurrent.lstm_backward),
    "gru": (recurrent.gru_forward, recurrent.gru_backward),
}
kinds = pytest.mark.parametrize("kind", KERNELS)


class Case:
    """Random inputs and weights of T steps of N sequences with H units, and room for what the kernels write."""

    def __init__(self, kind, steps, num, size, share_of_starts, seed):
        self.kind, self.steps, self.num, self.size = kind, steps, num, size
        random = generator(seed)
        self.cell = CELLS[kind](size, size, dtype=torch.float64)  # its inputs are `x` times the first weight
        for p in self.cell.parameters():
            p.data.copy_(torch.randn(p.shape, generator=random) / size**0.5)
        self.x = torch.randn(steps, num, size, generator=random)
        self.state = torch.randn(num, BEYOND + STATES[kind] * size, generator=random)
        self.start = torch.rand(steps, num, generator=random) < share_of_starts
        self.d_hidden = torch.randn(steps, num, size, generator=random)

    def run(self, form, dtype=torch.float32):
        """Return all that the kernels write, by name."""
        gates, kind = NUM_GATES[self.kind], self.kind
        weight, bias = self.cell.weight_hh.detach().to(dtype), self.cell.bias_hh.detach().to(dtype)
        products = self.x.double() @ self.cell.weight_ih.detach().t() + self.cell.bias_ih.detach()
        shape = (self.steps, self.num, gates, self.size)
        by_gate, hidden, before = products.to(dtype).view(shape).contiguous(), *self._room(2, self.size, dtype)
        (inner,) = self._room(1, self.size if kind == "lstm" else gates * self.size, dtype)
        inner = inner if kind == "lstm" else inner.view(shape)
        state, weight_in = self.state.to(dtype), weight.t().contiguous()
        forward, backward = (FORMS[form](kernel) for kernel in KERNELS[kind])
        forward(by_gate, weight_in.view(-1, gates, self.size), bias.view(gates, -1), state, BEYOND, self.start,
                before, inner, hidden)()  # fmt: skip
        d_hidden, by_gate_weight = self.d_hidden.to(dtype).clone(), weight.view(gates, self.size, self.size)
        d_inner, d_gates = torch.full_like(inner, torch.nan), torch.full_like(by_gate, torch.nan)
        if kind == "lstm":
            backward(by_gate, inner, by_gate_weight, state, BEYOND, self.start, d_hidden, d_inner, d_gates)()
        else:
            backward(by_gate, inner, before, by_gate_weight, self.start, d_hidden, d_gates, d_inner)()
        return {"gates": by_gate, "before": before, "inner": inner, "hidden": hidden, "d_hidden": d_hidden,
                "d_gates": d_gates, "d_inner": d_inner}  # fmt: skip

    def _room(self, count, width, dtype):
        return [torch.full((self.steps, self.num, width), torch.nan, dtype=dtype) for _ in range(count)]

    def expected(self):
        """Return outputs, and gradients of inputs and parameters, by torch's own cell and autograd."""
        x = self.x.double().requires_grad_()
        state, outputs = self.state.double()[:, BEYOND:], []
        for t in range(self.steps):
            kept = state * ~self.start[t].unsqueeze(-1)
            if self.kind == "lstm":
                state = torch.cat(self.cell(x[t], kept.chunk(2, dim=1)), dim=1)
            else:
                state = self.cell(x[t], kept)
            outputs.append(state[:, : self.size])
        hidden = torch.stack(outputs)
        names, params = zip(*self.cell.named_parameters(), strict=True)
        grads = torch.autograd.grad(hidden, (x, *params), self.d_hidden.double())
        return {"hidden": hidden.detach(), **dict(zip(("x", *names), grads, strict=True))}

    def found(self, form):
        """Return the same by a form of the kernels, in float32, with products of all rows after the loop."""
        ran = {name: value.double().flatten(0, 1) for name, value in self.run(form).items()}
        d_gates = ran["d_gates"].flatten(1)
        d_recurrent = d_gates if self.kind == "lstm" else ran["d_inner"].flatten(1)
        x = self.x.double().flatten(0, 1)
        return {
            "hidden": ran["hidden"].view(self.steps, self.num, -1),
            "x": (d_gates @ self.cell.weight_ih.detach()).view(self.x.shape),
            "weight_ih": d_gates.t() @ x,
            "weight_hh": d_recurrent.t() @ ran["before"],
            "bias_ih": d_gates.sum(0),
            "bias_hh": d_recurrent.sum(0),
        }


sizes = given(
    st.integers(1, 7), st.integers(1, 9), st.sampled_from([1, 2, 3, 5, 8, 17]), st.sampled_from([0.0, 0.2, 1.0]), SEEDS
)


@pytest.mark.parametrize("form", FORMS)
@kinds
@sizes
@settings(max_examples=25)
def test_equals_torchs_cell_under_autograd(form, kind, steps, num, size, starts, seed):
    case = Case(kind, steps, num, size, starts, seed)
    expected, found = case.expected(), case.found(form)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-5 * (1 + value.abs().max().item()), msg=name)


@kinds
@sizes
@settings(max_examples=25)
def test_numba_writes_what_the_reference_writes(kind, steps, num, size, starts, seed):
    case = Case(kind, steps, num, size, starts, seed)
    oracle, found = case.run("reference", torch.float64), case.run("numba")
    for name, value in oracle.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-4, msg=name)


@kinds
@pytest.mark.parametrize("num", [1, 4, 7])
def test_a_step_at_a_time_gives_the_bits_of_all_steps_at_once(kind, num):
    case = Case(kind, 5, num, 6, 0.3, 0)
    whole, state = case.run("numba")["hidden"], case.state.clone()
    for t in range(5):
        one = Case(kind, 1, num, 6, 0.3, 0)
        one.cell, one.x, one.start, one.state = case.cell, case.x[t : t + 1], case.start[t : t + 1], state
        ran = one.run("numba")
        assert torch.equal(ran["hidden"][0], whole[t])
        after = [ran["hidden"][0], *([ran["inner"][0]] if kind == "lstm" else [])]
        for number, part in enumerate(after):
            layers.write_columns(part, state, BEYOND + 6 * number)
    assert torch.equal(state[:, :BEYOND], case.state[:, :BEYOND])


@kinds
@pytest.mark.parametrize("form", FORMS)
def test_a_number_that_is_not_finite_stays_visible(kind, form):
    case = Case(kind, 3, 5, 4, 0.0, 0)
    case.x[1, 2, 0] = torch.nan
    hidden = case.run(form)["hidden"]
    assert hidden[1:, 2].isnan().all() and hidden[:, [0, 1, 3, 4]].isfinite().all() and hidden[0].isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_columns_are_written_by_hand(form):
    target = torch.zeros(2, 5)
    FORMS[form](layers.write_columns)(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), target, 2)()
    assert target.tolist() == [[0.0, 0.0, 1.0, 2.0, 0.0], [0.0, 0.0, 3.0, 4.0, 0.0]]


@kinds
def test_an_array_of_another_size_is_refused(kind):
    case = Case(kind, 2, 3, 4, 0.0, 0)
    case.start = case.start[:1]
    with pytest.raises(ValueError, match=r"start of shape \(1, 3\).*a contiguous one of 6 elements, torch.bool"):
        case.run("numba")
