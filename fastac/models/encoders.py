"""Encoders: observations to features."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from fastac.config import ActivationName

_ACTIVATIONS: dict[ActivationName, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU}


def make_linear(in_features: int, out_features: int, gain: float) -> nn.Linear:
    """Build a linear layer with orthogonal weights (Saxe et al. 2014, arXiv 1312.6120) and zero bias."""
    layer = nn.Linear(in_features, out_features)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class MLPEncoder(nn.Module):
    """Hidden layers over a flat observation: `[..., D]` to `[..., hidden_sizes[-1]]`.

    Attributes:
        activation: between layers.
        output_size: features per row; the observation's own size if there are no hidden layers.
    """

    def __init__(self, obs_size: int, hidden_sizes: tuple[int, ...], activation: ActivationName) -> None:
        """Build `len(hidden_sizes)` layers, orthogonal with gain sqrt(2)."""
        super().__init__()
        sizes = (obs_size, *hidden_sizes)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [make_linear(before, after, math.sqrt(2.0)), _ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers)
        self.activation = activation
        self.output_size = sizes[-1]

    def forward(self, obs: Tensor) -> Tensor:
        """Encode."""
        features: Tensor = self.layers(obs)
        return features
