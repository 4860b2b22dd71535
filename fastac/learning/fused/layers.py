"""Layers without autograd: each returns the calls of its passes, with all arguments bound in advance.

Shapes: `M` rows of a pass, `D` inputs and `H` outputs of a layer, flat; images are `[h, w, C]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fastac import memory
from fastac.config import ActivationName
from fastac.kernels import Op, dense
from fastac.models import ConvEncoder, MLPEncoder, Shape

_aten = torch.ops.aten

# Up to about this many weights fastac's own product is as fast as the library's, and its activation much faster. Which
# of them acts does not depend on the number of rows, so neither do the bits of a row.
_FEW_WEIGHTS = 2**14


def _tanh(y: Tensor) -> Op:
    if y.is_cuda:
        return partial(torch.tanh, y, out=y)
    view = y.numpy()
    return partial(np.tanh, view, view)  # five times as fast as torch's on AVX2


_ACTIVATE: dict[ActivationName, Callable[[Tensor], Op]] = {
    "relu": lambda y: partial(torch.relu_, y),
    "tanh": _tanh,
    "elu": lambda y: partial(nn.functional.elu_, y),
}
# (gradient, activations) -> the gradient before the activation, in place. Each derivative is computed from the
# activation's output, because only outputs are kept.
_DEACTIVATE: dict[ActivationName, Callable[[Tensor, Tensor], object]] = {
    "relu": lambda d, y: _aten.threshold_backward.grad_input(d, y, 0.0, grad_input=d),
    "tanh": lambda d, y: _aten.tanh_backward.grad_input(d, y, grad_input=d),
    "elu": lambda d, y: _aten.elu_backward.grad_input(d, 1.0, 1.0, 1.0, True, y, grad_input=d),
}


class Layer(Protocol):
    """One layer of a trunk, including its activation.

    Attributes:
        num_inputs: D.
        num_outputs: H.
        grads: the gradients that its backward pass writes.
    """

    num_inputs: int
    num_outputs: int
    grads: tuple[Tensor, Tensor]

    def refresh(self) -> None:
        """Copy the weights for acting; the copies are stale after every update."""

    def forward(self, x: Tensor, y: Tensor) -> list[Op]:
        """Return the calls that write `y` `[M, H]` for `x` `[M, D]`."""

    def forward_acting(self, x: Tensor, y: Tensor) -> list[Op]:
        """Return the calls that do the same with the weights copied by `refresh`."""

    def deactivate(self, d: Tensor, y: Tensor) -> list[Op]:
        """Return the calls that turn `d` `[M, H]`, the gradient of the outputs `y`, into that before the activation."""

    def backward(self, d: Tensor, x: Tensor, ones: Tensor, d_x: Tensor | None, adds: bool) -> list[Op]:
        """Return the calls of the backward pass from `d` `[M, H]`, the gradient before the activation.

        Args:
            d: read.
            x: `[M, D]`, the inputs.
            ones: `[M]`.
            d_x: `[M, D]`, written: the gradient before the activation of the layer that computed `x`, which must have
                the same activation as this one. None if not needed.
            adds: add to the gradient of the parameters instead of overwriting it. Overwriting saves zeroing and
                reading: at a million parameters these cost as much as 5 rows.
        """


class LinearLayer:
    """A linear layer's tensors and their gradients."""

    def __init__(self, layer: nn.Linear, activation: ActivationName | None = None) -> None:
        """Keep views of the parameters and of their `p.grad`; `optimizer.flatten` must have been called before."""
        assert layer.weight.grad is not None and layer.bias.grad is not None, "flatten the parameters first"
        self.weight, self._bias = layer.weight.detach(), layer.bias.detach()  # [H, D], [H]
        self._grad_weight, self._grad_bias = self.grads = layer.weight.grad, layer.bias.grad
        _check_places(self.weight, self._bias, *self.grads)
        self.num_outputs, self.num_inputs = self.weight.shape
        self._activation = activation
        self._weight_in: Tensor | None = None  # [D, H], a copy for acting if it pays off

    def refresh(self) -> None:
        """See `Layer`."""
        if self._weight_in is not None:
            self._weight_in.copy_(self.weight.t())

    def forward(self, x: Tensor, y: Tensor) -> list[Op]:
        """See `Layer`."""
        multiply = partial(torch.addmm, self._bias, x, self.weight.t(), out=y)
        return [multiply] if self._activation is None else [multiply, _ACTIVATE[self._activation](y)]

    def forward_acting(self, x: Tensor, y: Tensor) -> list[Op]:
        """See `Layer`; a single call where that is faster."""
        if self._activation == "elu" or x.is_cuda or self.weight.numel() > _FEW_WEIGHTS:
            return self.forward(x, y)
        if self._weight_in is None:
            self._weight_in = self.weight.t().contiguous()
        return [dense.prepare(x, self._weight_in, self._bias, self._activation or "identity", y)]

    def deactivate(self, d: Tensor, y: Tensor) -> list[Op]:
        """See `Layer`."""
        return [] if self._activation is None else [partial(_DEACTIVATE[self._activation], d, y)]

    def backward(self, d: Tensor, x: Tensor, ones: Tensor, d_x: Tensor | None, adds: bool) -> list[Op]:
        """See `Layer`."""
        d_t = d.t()
        # The product with ones sums over rows without a temporary.
        ops: list[Op] = (
            [partial(self._grad_weight.addmm_, d_t, x), partial(self._grad_bias.addmv_, d_t, ones)]
            if adds
            else [partial(torch.mm, d_t, x, out=self._grad_weight), partial(torch.mv, d_t, ones, out=self._grad_bias)]
        )
        return ops if d_x is None else [*ops, partial(torch.mm, d, self.weight, out=d_x), *self.deactivate(d_x, x)]


class ConvLayer:
    """A convolution's tensors and their gradients, with a ReLU after it; images are flat, channels last."""

    def __init__(self, layer: nn.Conv2d, before: Shape, after: Shape) -> None:
        """Keep views of the parameters and of their `p.grad`, as `LinearLayer`; image shapes are `(C, h, w)`."""
        assert layer.bias is not None
        assert layer.weight.grad is not None and layer.bias.grad is not None, "flatten the parameters first"
        self._weight, self._bias = layer.weight.detach(), layer.bias.detach()  # [O, C, k, k], [O]
        self.grads = layer.weight.grad, layer.bias.grad
        _check_places(self._weight, self._bias, *self.grads)
        self._stride, self._before, self._after = list(layer.stride), before, after
        self.num_inputs, self.num_outputs = math.prod(before), math.prod(after)

    def refresh(self) -> None:
        """Do nothing: the library uses the weights themselves."""

    def forward(self, x: Tensor, y: Tensor) -> list[Op]:
        """See `Layer`."""
        return [partial(self._convolve, _as_images(x, self._before), _as_images(y, self._after))]

    def forward_acting(self, x: Tensor, y: Tensor) -> list[Op]:
        """See `Layer`."""
        return self.forward(x, y)

    def _convolve(self, x: Tensor, y: Tensor) -> None:
        z = torch.conv2d(x, self._weight, self._bias, self._stride)
        torch.clamp_min(z, 0.0, out=y)  # the copy to `y` also applies the ReLU

    def deactivate(self, d: Tensor, y: Tensor) -> list[Op]:
        """See `Layer`."""
        return [partial(_DEACTIVATE["relu"], d, y)]

    def backward(self, d: Tensor, x: Tensor, ones: Tensor, d_x: Tensor | None, adds: bool) -> list[Op]:
        """See `Layer`."""
        d_images = None if d_x is None else _as_images(d_x, self._before)
        return [partial(self._go_back, _as_images(d, self._after), _as_images(x, self._before), d_images, adds)]

    def _go_back(self, d: Tensor, x: Tensor, d_x: Tensor | None, adds: bool) -> None:
        asked = [d_x is not None, True, True]
        arguments = [len(self._bias)], self._stride, [0, 0], [1, 1], False, [0, 0], 1, asked
        z, d_weight, d_bias = _aten.convolution_backward(d, x, self._weight, *arguments)
        for grad, found in zip(self.grads, (d_weight, d_bias), strict=True):
            grad.add_(found) if adds else grad.copy_(found)
        if d_x is not None:  # the copy to `d_x` also applies the ReLU's backward pass
            _aten.threshold_backward.grad_input(z, x, 0.0, grad_input=d_x)


def _check_places(*tensors: Tensor) -> None:
    assert all(map(memory.begins_line, tensors)), "a parameter or its gradient does not begin at a cache line"


def _as_images(flat: Tensor, shape: Shape) -> Tensor:
    """View `[M, h * w * C]` as `[M, C, h, w]`, the library's order."""
    channels, height, width = shape
    return flat.view(-1, height, width, channels).permute(0, 3, 1, 2)


def read_layers(encoder: nn.Module) -> list[Layer]:
    """Return an encoder's layers."""
    if isinstance(encoder, MLPEncoder):
        return [LinearLayer(layer, encoder.activation) for layer in encoder.layers if isinstance(layer, nn.Linear)]
    assert isinstance(encoder, ConvEncoder)
    layers: list[Layer] = [
        ConvLayer(layer, before, after)
        for layer, (before, after) in zip(encoder.convs, pairwise(encoder.shapes), strict=True)
        if isinstance(layer, nn.Conv2d)
    ]
    return [*layers, LinearLayer(encoder.linear, "relu")]
