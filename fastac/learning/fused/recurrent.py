"""Recurrent cores without autograd: products of all rows by the matrix library, the loop over the steps by a kernel.

Shapes: `M = T * n` rows of a pass, T steps of n sequences, time first; `D` inputs, `H` units, `G` gates; `S` numbers
of recurrent state.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fastac import memory
from fastac.kernels import Op, gru_backward, gru_forward, lstm_backward, lstm_forward, transpose, write_columns
from fastac.learning.fused.layers import LinearLayer, bind_head
from fastac.models import ActorCritic, GRUCore, LSTMCore


@dataclass(frozen=True, slots=True)
class Sequences:
    """What the rows of a pass are besides inputs.

    Attributes:
        state: `[n, S]`, the recurrent state of all trunks before the first row.
        start: `[M]` bool, where the state is reset.
        moves_on: whether the pass replaces `state` by the state after the last row, as acting does.
    """

    state: Tensor
    start: Tensor
    moves_on: bool = False


@dataclass(frozen=True, slots=True)
class CoreActivations:
    """What a core keeps of R rows for its backward pass.

    Attributes:
        gates: `[R, G * H]`.
        inner: an LSTM's cells `[R, H]`, or the recurrent products of a GRU `[R, G * H]`.
        before: `[R, H]`, the units that each row begins with.
        hidden: `[R, H]`, the output.
    """

    gates: Tensor
    inner: Tensor
    before: Tensor
    hidden: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors."""
        return [self.gates, self.inner, self.before, self.hidden]

    def rows(self, begin: int, end: int) -> CoreActivations:
        """View rows `begin` to `end`."""
        return CoreActivations(*(tensor[begin:end] for tensor in self.tensors))


@dataclass(frozen=True, slots=True)
class CoreGradients:
    """Gradients with respect to `CoreActivations`, in the same shapes; all trunks share one set.

    Attributes:
        gates: before their activation.
        inner: see `CoreActivations`.
        hidden: from the heads; the backward pass adds what comes from later steps.
    """

    gates: Tensor
    inner: Tensor
    hidden: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors."""
        return [self.gates, self.inner, self.hidden]

    def rows(self, num: int) -> CoreGradients:
        """View the first `num` rows."""
        return CoreGradients(*(tensor[:num] for tensor in self.tensors))


@dataclass(frozen=True, slots=True)
class _Weights:
    """A cell's parameters as those of a linear layer."""

    weight: Tensor
    bias: Tensor


class RecurrentLayer:
    """An LSTM's or a GRU's tensors and their gradients.

    Attributes:
        num_inputs: D.
        num_outputs: H.
        grads: the gradients that its backward pass writes.
    """

    def __init__(self, cell: nn.LSTMCell | nn.GRUCell, offset: int) -> None:
        """Keep views of the parameters and of their `p.grad`; the state of this core begins at column `offset`."""
        self._inputs = LinearLayer(_Weights(cell.weight_ih, cell.bias_ih))
        self._recurrent = LinearLayer(_Weights(cell.weight_hh, cell.bias_hh))
        self.grads = (*self._inputs.grads, *self._recurrent.grads)
        self.num_inputs, self.num_outputs = cell.input_size, cell.hidden_size
        self._bias, self._offset = cell.bias_hh.detach(), offset
        self._is_lstm = isinstance(cell, nn.LSTMCell)
        self._num_gates = 4 if self._is_lstm else 3
        self._weight_in = self._recurrent.weight.t().contiguous()  # [H, G * H], a copy

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Columns of `CoreActivations`."""
        size, gates = self.num_outputs, self._num_gates * self.num_outputs
        return gates, size if self._is_lstm else gates, size, size

    def allocate(self, rows: int) -> CoreActivations:
        """Allocate for `rows` rows."""
        return CoreActivations(*(memory.empty((rows, width)) for width in self.widths))

    def allocate_gradients(self, rows: int) -> CoreGradients:
        """Allocate for `rows` rows."""
        gates, inner, _, hidden = self.widths
        return CoreGradients(*(memory.empty((rows, width)) for width in (gates, inner, hidden)))

    def refresh(self) -> list[Op]:
        """Return the calls that copy the weights for `forward`; the copies are stale after every update."""
        return [*self._inputs.refresh(), transpose.prepare(self._recurrent.weight, self._weight_in)]

    def forward(self, x: Tensor, kept: CoreActivations, sequences: Sequences) -> list[Op]:
        """Return the calls that fill `kept` for `x` `[M, D]`, with the weights copied by `refresh`."""
        return [*self._inputs.forward(x, kept.gates), *self._loop(kept, sequences)]

    def _loop(self, kept: CoreActivations, sequences: Sequences) -> list[Op]:
        prepare = lstm_forward.prepare if self._is_lstm else gru_forward.prepare
        ops: list[Op] = [
            prepare(
                self._by_step(kept.gates, sequences),
                self._weight_in,
                self._bias,
                sequences.state,
                self._offset,
                sequences.start,
                kept.before,
                kept.inner,
                kept.hidden,
            )
        ]
        if sequences.moves_on:
            assert len(kept.hidden) == len(sequences.state), "the state moves on by one step"
            ops.append(write_columns.prepare(kept.hidden, sequences.state, self._offset))
            if self._is_lstm:
                ops.append(write_columns.prepare(kept.inner, sequences.state, self._offset + self.num_outputs))
        return ops

    def backward(
        self, d: CoreGradients, x: Tensor, kept: CoreActivations, sequences: Sequences, d_x: Tensor | None
    ) -> list[Op]:
        """Return the calls of the backward pass, which overwrite the gradient of the parameters.

        Args:
            d: `hidden` is read, the rest is written.
            x: `[M, D]`, the inputs.
            kept: as filled by `forward`.
            sequences: as in `forward`.
            d_x: `[M, D]`, written; None if not needed.
        """
        gates = self._by_step(kept.gates, sequences)
        weight, start, offset = self._recurrent.weight, sequences.start, self._offset
        loop: Op = (
            lstm_backward.prepare(gates, kept.inner, weight, sequences.state, offset, start, d.hidden, d.inner, d.gates)
            if self._is_lstm
            else gru_backward.prepare(gates, kept.inner, kept.before, weight, start, d.hidden, d.gates, d.inner)
        )
        products = bind_head(self._recurrent, d.gates if self._is_lstm else d.inner, kept.before, adds=False)
        inputs = self._inputs
        products += inputs.deactivate(d.gates, d.gates, x, adds=False) + inputs.backward(d.gates, x, d_x, adds=False)
        return [loop, *products]

    def _by_step(self, gates: Tensor, sequences: Sequences) -> Tensor:
        return gates.view(-1, len(sequences.state), self._num_gates, self.num_outputs)  # [T, n, G, H]


def read_cores(model: ActorCritic) -> list[RecurrentLayer]:
    """Return the core of each trunk; none if there is no recurrence."""
    layers, offset = [], 0
    for trunk in model.trunks:
        core = trunk.get_submodule("core")
        if isinstance(core, LSTMCore | GRUCore):
            layers.append(RecurrentLayer(core.cell, offset))
            offset += core.state_size
    return layers
