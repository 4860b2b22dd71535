"""The hidden layers as plain torch, for libraries that take a network of the user's."""

from collections.abc import Iterable
from itertools import pairwise

from torch import nn

from benchmarks.peers.settings import Net

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def hidden_layers(input_size: int, net: Net) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size, next_size in pairwise((input_size, *net.hidden_sizes)):
        layers += [nn.Linear(size, next_size), ACTIVATIONS[net.activation]()]
    return nn.Sequential(*layers)


def count_parameters(parameters: Iterable[nn.Parameter]) -> dict[str, float]:
    """The fact that shows that contestants have the same network."""
    return {"parameters": float(sum(parameter.numel() for parameter in set(parameters)))}
