"""Cores: recurrent or not, all with the signature `core(features, state, start) -> features, state`.

Shapes: features `[N, D]` for one step or `[T, N, D]` for a sequence; state `[N, S]`; start `[N]` or `[T, N]`, True
where a row is the first of an episode; the state is reset there.
"""

from __future__ import annotations

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
        nn.init.orthogonal_(self.cell.weight_ih)
        nn.init.orthogonal_(self.cell.weight_hh)
        nn.init.zeros_(self.cell.bias_ih)
        nn.init.zeros_(self.cell.bias_hh)
        self.output_size = hidden_size
        self.state_size = 2 * hidden_size

    def forward(self, features: Tensor, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Run one step (`[N, D]`) or a sequence (`[T, N, D]`), with a state reset wherever `start` is set."""
        if features.dim() == 2:
            state = self._step(features, state, start)
            return state[:, : self.output_size], state
        outputs = []
        for t in range(features.shape[0]):
            state = self._step(features[t], state, start[t])
            outputs.append(state[:, : self.output_size])
        return torch.stack(outputs), state  # [T, N, H], [N, S]

    def _step(self, features: Tensor, state: Tensor, start: Tensor) -> Tensor:
        kept = state * (~start).unsqueeze(-1)  # [N, S]
        h, c = self.cell(features, kept.chunk(2, dim=-1))
        return torch.cat((h, c), dim=-1)
