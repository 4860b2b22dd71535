"""Cores: recurrent or not, all with the signature `core(features, state, start) -> features, state`.

Shapes: features `[N, D]` for one step or `[T, N, D]` for a sequence; state `[N, S]`; start `[N]` or `[T, N]`, True
where a row is the first of an episode; the state is reset there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn


class IdentityCore(nn.Module):
    """No recurrence: returns its input. Features may have any leading shape."""

    state_size = 0

    def __init__(self, input_size: int) -> None:
        """Store the features' size, which is also the output size."""
        super().__init__()
        self.output_size = input_size

    def forward(self, features: Tensor, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features and the (empty) state."""
        return features, state


class LSTMCore(nn.Module):
    """A long short-term memory (Hochreiter and Schmidhuber 1997); its state is h and c concatenated."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        """Build one cell with orthogonal recurrent and input weights, and zero biases."""
        super().__init__()
        self.cell = nn.LSTMCell(input_size, hidden_size)
        _initialize(self.cell)
        self.output_size = hidden_size
        self.state_size = 2 * hidden_size

    def forward(self, features: Tensor, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Run one step (`[N, D]`) or a sequence (`[T, N, D]`), with a state reset wherever `start` is set."""
        return _run(self._step, self.output_size, features, state, start)

    def _step(self, features: Tensor, state: Tensor) -> Tensor:
        h, c = self.cell(features, state.chunk(2, dim=-1))
        return torch.cat((h, c), dim=-1)


class GRUCore(nn.Module):
    """A gated recurrent unit (Cho et al. 2014); its state is h."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        """Build one cell, initialised as an LSTM's."""
        super().__init__()
        self.cell = nn.GRUCell(input_size, hidden_size)
        _initialize(self.cell)
        self.output_size = hidden_size
        self.state_size = hidden_size

    def forward(self, features: Tensor, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """See `LSTMCore`."""
        return _run(self.cell, self.output_size, features, state, start)


Core: TypeAlias = IdentityCore | LSTMCore | GRUCore


def _initialize(cell: nn.LSTMCell | nn.GRUCell) -> None:
    nn.init.orthogonal_(cell.weight_ih)
    nn.init.orthogonal_(cell.weight_hh)
    nn.init.zeros_(cell.bias_ih)
    nn.init.zeros_(cell.bias_hh)


def _run(
    step: Callable[[Tensor, Tensor], Tensor], size: int, features: Tensor, state: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """Run `step`, from features `[N, D]` and a state to the next state, whose first `size` columns are the output."""
    if features.dim() == 2:
        state = step(features, _reset(state, start))
        return state[:, :size], state
    outputs = []
    for t in range(features.shape[0]):
        state = step(features[t], _reset(state, start[t]))
        outputs.append(state[:, :size])
    return torch.stack(outputs), state  # [T, N, H], [N, S]


def _reset(state: Tensor, start: Tensor) -> Tensor:
    return state * (~start).unsqueeze(-1)  # [N, S]
