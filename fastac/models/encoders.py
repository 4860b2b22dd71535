"""Encoders: map observations to features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from fastac.config import ActivationName

ConvName = Literal["nature", "a3c", "minatar"]
Shape: TypeAlias = tuple[int, int, int]

_Weighted = TypeVar("_Weighted", nn.Linear, nn.Conv2d)

_ACTIVATIONS: dict[ActivationName, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def make_activation(name: ActivationName) -> nn.Module:
    """Build an activation module."""
    return _ACTIVATIONS[name]()


def _init(layer: _Weighted, gain: float) -> _Weighted:
    """Initialise with orthogonal weights (Saxe et al. 2014, arXiv 1312.6120) and zero biases."""
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def make_linear(in_features: int, out_features: int, gain: float) -> nn.Linear:
    """Build a linear layer with orthogonal weights and zero bias."""
    return _init(nn.Linear(in_features, out_features), gain)


class MLPEncoder(nn.Module):
    """Hidden layers over a flat observation: `[..., D]` to `[..., hidden_sizes[-1]]`.

    Attributes:
        activation: name of the activation between layers.
        output_size: features per row; the observation size if there are no hidden layers.
    """

    def __init__(self, obs_size: int, hidden_sizes: tuple[int, ...], activation: ActivationName) -> None:
        """Build `len(hidden_sizes)` layers, orthogonal with gain sqrt(2)."""
        super().__init__()
        sizes = (obs_size, *hidden_sizes)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [make_linear(before, after, math.sqrt(2.0)), make_activation(activation)]
        self.layers = nn.Sequential(*layers)
        self.activation = activation
        self.output_size = sizes[-1]

    def forward(self, obs: Tensor) -> Tensor:
        """Encode observations."""
        features: Tensor = self.layers(obs)
        return features


class KeyedEncoder(nn.Module):
    """An encoder for each key that a trunk reads, side by side: rows `[..., D]` to `[..., sum of their sizes]`.

    Vectors are one part together, since an MLP loses nothing by reading them side by side.
    """

    def __init__(self, parts: Sequence[tuple[slice, tuple[int, ...], nn.Module]]) -> None:
        """Take the columns, the shape of an observation, and the encoder of each part."""
        super().__init__()
        self.places = [(columns, shape) for columns, shape, _ in parts]
        self.encoders = nn.ModuleList(encoder for _, _, encoder in parts)

    def forward(self, obs: Tensor) -> Tensor:
        """Encode observations."""
        features = [
            encoder(obs[..., columns].unflatten(-1, shape) if len(shape) > 1 else obs[..., columns].float())
            for (columns, shape), encoder in zip(self.places, self.encoders, strict=True)
        ]
        return torch.cat(features, dim=-1)


class _Conv(NamedTuple):
    channels: int
    kernel: int
    stride: int


# Convolutions, and the width of the linear layer after them.
_CONV_NETS: dict[ConvName, tuple[tuple[_Conv, ...], int]] = {
    # Mnih et al. 2015, Nature 518
    "nature": ((_Conv(32, 8, 4), _Conv(64, 4, 2), _Conv(64, 3, 1)), 512),
    # Mnih et al. 2016, arXiv 1602.01783; the same as in Mnih et al. 2013, arXiv 1312.5602
    "a3c": ((_Conv(16, 8, 4), _Conv(32, 4, 2)), 256),
    # Young and Tian 2019, arXiv 1903.03176
    "minatar": ((_Conv(16, 3, 1),), 128),
}


def _smallest_side(net: ConvName) -> int:
    """Return the smallest height and width, which leave one pixel after the last convolution."""
    size = 1
    for conv in reversed(_CONV_NETS[net][0]):
        size = (size - 1) * conv.stride + conv.kernel
    return size


def is_planar(obs_shape: Shape) -> bool:
    """Return whether images are `[C, H, W]`: the first side is less than the last."""
    return obs_shape[0] < obs_shape[2]


def _to_image(obs_shape: Shape) -> Shape:
    """Return `(C, H, W)`."""
    first, second, third = obs_shape
    return (first, second, third) if is_planar(obs_shape) else (third, first, second)


def pick_net(obs_shape: Shape) -> ConvName:
    """Return the net for images of a shape: nature if they are large enough, else minatar."""
    return "nature" if min(_to_image(obs_shape)[1:]) >= _smallest_side("nature") else "minatar"


class ConvEncoder(nn.Module):
    """Convolutions over an image, then a linear layer: `[..., *obs_shape]` to `[..., output_size]`.

    All tensors are channels last in memory, the library's format, so the features of the linear layer are in the
    order `[h, w, C]`.

    Attributes:
        convs: the convolutions, each followed by a ReLU.
        linear: the layer after them, also followed by a ReLU.
        shapes: `(C, H, W)` of an observation, and of the output of each convolution.
        is_planar: whether observations are `[C, H, W]` instead of `[H, W, C]`.
        scale: factor for pixels.
        output_size: features per row.
    """

    def __init__(self, obs_shape: Shape, net: ConvName, scale: float) -> None:
        """Build the layers of `net`, orthogonal with gain sqrt(2).

        Args:
            obs_shape: `(C, H, W)` if the first is less than the last, else `(H, W, C)`.
            net: nature, a3c or minatar.
            scale: factor for pixels.

        Raises:
            ValueError: the images are too small.
        """
        super().__init__()
        self.is_planar, self.scale = is_planar(obs_shape), scale
        channels, height, width = _to_image(obs_shape)
        least = _smallest_side(net)
        if min(height, width) < least:
            raise ValueError(
                f"observations are images of {height} x {width} pixels, expected at least {least} x {least} for the "
                f"encoder {net}: choose another encoder."
            )
        self.shapes = [(channels, height, width)]
        convs, self.output_size = _CONV_NETS[net]
        self.convs = nn.ModuleList()
        for conv in convs:
            layer = _init(nn.Conv2d(channels, conv.channels, conv.kernel, conv.stride), math.sqrt(2.0))
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
            self.convs.append(layer)
            channels, height, width = conv.channels, *((s - conv.kernel) // conv.stride + 1 for s in (height, width))
            self.shapes.append((channels, height, width))
        self.linear = make_linear(math.prod(self.shapes[-1]), self.output_size, math.sqrt(2.0))
        # Stored as [in, out]: with few rows, the layer's cost is reading the weight, and the library reads this order
        # 1.3 times (16 rows) to 1.7 times (8 rows) as fast.
        self.linear.weight.data = self.linear.weight.data.t().contiguous().t()

    def forward(self, obs: Tensor) -> Tensor:
        """Encode observations."""
        leading = obs.shape[:-3]
        images = obs.reshape(-1, *obs.shape[-3:])  # [M, ...]
        images = images if self.is_planar else images.permute(0, 3, 1, 2)  # [M, C, H, W]
        x = images.to(torch.float32, memory_format=torch.channels_last) * self.scale
        for conv in self.convs:
            x = torch.relu(conv(x))
        x = torch.relu(self.linear(x.permute(0, 2, 3, 1).flatten(1)))
        return x.view(*leading, self.output_size)
