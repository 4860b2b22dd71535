"""The hidden layers as plain torch, for libraries that take a network of the user's."""

from collections.abc import Iterable
from itertools import pairwise

from torch import nn

from benchmarks.peers.settings import FRAME_STACK, SCREEN_SIZE, Cnn, Net

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def hidden_layers(input_size: int, net: Net) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size, next_size in pairwise((input_size, *net.hidden_sizes)):
        layers += [nn.Linear(size, next_size), ACTIVATIONS[net.activation]()]
    return nn.Sequential(*layers)


def conv_layers(cnn: Cnn) -> nn.Sequential:
    """From scaled stacks `[M, 4, 84, 84]` to `[M, hidden_size]`."""
    layers: list[nn.Module] = []
    channels, size = FRAME_STACK, SCREEN_SIZE
    for next_channels, kernel, stride in cnn.convs:
        layers += [nn.Conv2d(channels, next_channels, kernel, stride), nn.ReLU()]
        channels, size = next_channels, (size - kernel) // stride + 1
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, cnn.hidden_size), nn.ReLU())


def count_parameters(parameters: Iterable[nn.Parameter]) -> dict[str, float]:
    """The fact that shows that contestants have the same network."""
    return {"parameters": float(sum(parameter.numel() for parameter in set(parameters)))}
