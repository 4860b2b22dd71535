"""An encoder that only autograd differentiates."""

from __future__ import annotations

import torch
from gymnasium.spaces import Box
from torch import Tensor, nn


class _Encoder(nn.Module):
    output_size = 8

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(num_inputs, self.output_size)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.sin(self.layer(obs))


def make_encoder(space: Box) -> _Encoder:
    return _Encoder(space.shape[0])
