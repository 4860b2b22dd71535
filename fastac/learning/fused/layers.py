"""Layers without autograd: each returns the calls of its passes, with all arguments bound in advance.

Shapes: `M` rows of a pass, `D` inputs and `H` outputs of a layer, flat; images are `[h, w, C]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from fastac import memory
from fastac.config import ActivationName
from fastac.kernels import (
    Derivative,
    Op,
    deactivate,
    dense,
    heads_backward,
    multiply_columns,
    multiply_rows,
    tanh,
    transpose,
)
from fastac.models import ConvEncoder, MLPEncoder, Shape

_aten = torch.ops.aten

# Up to about this many weights fastac's own products are as fast as the library's, and its activations much faster. The
# choice does not depend on the number of rows, so neither do the bits of a row.
_FEW_WEIGHTS = 2**14
# Up to so many inputs the gradient of a weight is computed in one pass with the derivative of the activation, and up
# to so many outputs those of the heads. Beyond, products of their own are faster. See benchmarks/LOG.md.
_FEW_INPUTS, _FEW_OUTPUTS = 24, 64


def _tanh(y: Tensor) -> Op:
    return partial(torch.tanh, y, out=y) if y.is_cuda else tanh.prepare(y)


_ACTIVATE: dict[Derivative, Callable[[Tensor], Op]] = {
    "relu": lambda y: partial(torch.relu_, y),
    "tanh": _tanh,
    "elu": lambda y: partial(nn.functional.elu_, y),
}
# (gradient, activations) -> the gradient before the activation, in place, from the activation's output. For CUDA and
# images; elsewhere a kernel does it, together with the gradients of the parameters.
_DEACTIVATE: dict[Derivative, Callable[[Tensor, Tensor], object]] = {
    "relu": lambda d, y: _aten.threshold_backward.grad_input(d, y, 0.0, grad_input=d),
    "tanh": lambda d, y: _aten.tanh_backward.grad_input(d, y, grad_input=d),
    "elu": lambda d, y: _aten.elu_backward.grad_input(d, 1.0, 1.0, 1.0, True, y, grad_input=d),
}


class Activation(NamedTuple):
    """An activation whose derivative needs its input: functions of tensors and the one to write.

    Attributes:
        forward: (inputs, outputs to write).
        backward: (gradient of the outputs, inputs, gradient of the inputs to write).
    """

    forward: Callable[[Tensor, Tensor], object]
    backward: Callable[[Tensor, Tensor, Tensor], object]


_ACTIVATIONS: dict[ActivationName, Activation] = {
    "gelu": Activation(
        lambda x, y: _aten.gelu.out(x, out=y),
        lambda d, x, d_x: _aten.gelu_backward.grad_input(d, x, grad_input=d_x),
    ),
    "silu": Activation(
        lambda x, y: _aten.silu.out(x, out=y),
        lambda d, x, d_x: _aten.silu_backward.grad_input(d, x, grad_input=d_x),
    ),
}


class Layer(Protocol):
    """One layer of a trunk.

    Attributes:
        num_inputs: D.
        num_outputs: H.
        grads: the gradients that its backward pass writes.
    """

    num_inputs: int
    num_outputs: int
    grads: tuple[Tensor, ...]

    def refresh(self) -> list[Op]:
        """Return the calls that copy the weights for `forward`; the copies are stale after every update."""

    def forward(self, x: Tensor, y: Tensor) -> list[Op]:
        """Return the calls that write `y` `[M, H]` for `x` `[M, D]`, with the weights copied by `refresh`."""

    def deactivate(self, d: Tensor, y: Tensor, x: Tensor, adds: bool) -> list[Op]:
        """Return the calls that turn `d` `[M, H]`, the gradient of the outputs `y`, into that before the activation.

        They also write the gradients of parameters that can be computed in the same pass, from `x` `[M, D]`, the
        inputs. With `adds` they add to them instead. Overwriting saves zeroing and reading: at a million parameters
        these cost as much as 5 rows.
        """

    def backward(self, d: Tensor, x: Tensor, d_x: Tensor | None, adds: bool) -> list[Op]:
        """Return the calls that write the other gradients of parameters, and the gradient of the inputs.

        Args:
            d: `[M, H]`, the gradient before the activation.
            x: `[M, D]`, the inputs.
            d_x: `[M, D]`, written: their gradient. None if not needed.
            adds: as in `deactivate`.
        """


class Affine(Protocol):
    """Whatever has a weight `[H, D]` and a bias `[H]`, such as `nn.Linear`."""

    @property
    def weight(self) -> Tensor:
        """The weight."""

    @property
    def bias(self) -> Tensor:
        """The bias."""


class LinearLayer:
    """A linear layer's tensors and their gradients.

    Attributes:
        activation: the activation after it, included in the layer.
    """

    def __init__(self, layer: Affine, activation: Derivative = "identity") -> None:
        """Keep views of the parameters and of their `p.grad`; `optimizer.flatten` must have been called before."""
        assert layer.weight.grad is not None and layer.bias.grad is not None, "flatten the parameters first"
        self.weight, self._bias = layer.weight.detach(), layer.bias.detach()  # [H, D], [H]
        self.grad_weight, self.grad_bias = layer.weight.grad, layer.bias.grad
        self.grads: tuple[Tensor, ...] = self.grad_weight, self.grad_bias
        _check_places(self.weight, self._bias, *self.grads)
        self.num_outputs, self.num_inputs = self.weight.shape
        self.activation: Derivative = activation
        # Whether the gradient of the weight is computed in the same pass as that before the activation.
        self.has_few_inputs = self.num_inputs <= _FEW_INPUTS and self.grad_weight.is_contiguous()
        # The weight for fastac's own products, [D, H]; None if the library multiplies.
        is_own = self.weight.numel() <= _FEW_WEIGHTS and not self.weight.is_cuda and self.weight.is_contiguous()
        self._weight_in = self.weight.t().contiguous() if is_own else None

    def refresh(self) -> list[Op]:
        """See `Layer`."""
        return [] if self._weight_in is None else [transpose.prepare(self.weight, self._weight_in)]

    def forward(self, x: Tensor, y: Tensor) -> list[Op]:
        """See `Layer`."""
        if self._weight_in is None:
            product: Op = partial(torch.addmm, self._bias, x, self.weight.t(), out=y)
        elif self.activation in ("identity", "relu", "tanh"):
            return [dense.prepare(x, self._weight_in, self._bias, self.activation, y)]
        else:
            product = dense.prepare(x, self._weight_in, self._bias, "identity", y)
        return [product] if self.activation == "identity" else [product, _ACTIVATE[self.activation](y)]

    def deactivate(self, d: Tensor, y: Tensor, x: Tensor, adds: bool) -> list[Op]:
        """See `Layer`."""
        if d.is_cuda:
            assert not adds, "on an accelerator all rows are one pass"
            ops: list[Op] = [] if self.activation == "identity" else [partial(_DEACTIVATE[self.activation], d, y)]
            return [*ops, partial(torch.sum, d, 0, out=self.grad_bias)]
        few, grad = (x, self.grad_weight) if self.has_few_inputs else (x[:, :0], self.grad_weight[:, :0])
        return [deactivate.prepare(d, y, few, self.activation, adds, grad, self.grad_bias)]

    def backward(self, d: Tensor, x: Tensor, d_x: Tensor | None, adds: bool) -> list[Op]:
        """See `Layer`."""
        ops: list[Op] = []
        if d.is_cuda or not self.has_few_inputs:
            ops = [self._multiply_columns(d, x, adds)]
        if d_x is None:
            return ops
        return [*ops, self._multiply_rows(d, d_x)]

    def _multiply_columns(self, d: Tensor, x: Tensor, adds: bool) -> Op:
        """Return the call that writes the gradient of the weight."""
        grad = self.grad_weight
        if self._weight_in is not None and grad.is_contiguous():
            return multiply_columns.prepare(d, x, adds, grad)
        return partial(grad.addmm_, d.t(), x) if adds else partial(torch.mm, d.t(), x, out=grad)

    def _multiply_rows(self, d: Tensor, d_x: Tensor) -> Op:
        """Return the call that writes the gradient of the inputs."""
        if self._weight_in is not None:
            return multiply_rows.prepare(d, self.weight, d_x)
        return partial(torch.mm, d, self.weight, out=d_x)


class ActivationLayer:
    """An activation that must keep its inputs, as a layer of its own; it has no parameters."""

    def __init__(self, size: int, activation: Activation) -> None:
        """Store the functions."""
        self.num_inputs = self.num_outputs = size
        self.grads: tuple[Tensor, ...] = ()
        self._activation = activation

    def refresh(self) -> list[Op]:
        """Return no calls: there are no weights."""
        return []

    def forward(self, x: Tensor, y: Tensor) -> list[Op]:
        """See `Layer`."""
        return [partial(self._activation.forward, x, y)]

    def deactivate(self, d: Tensor, y: Tensor, x: Tensor, adds: bool) -> list[Op]:
        """Return no calls: `backward` applies the derivative."""
        return []

    def backward(self, d: Tensor, x: Tensor, d_x: Tensor | None, adds: bool) -> list[Op]:
        """See `Layer`."""
        assert d_x is not None, "a linear layer comes first"
        return [partial(self._activation.backward, d, x, d_x)]


Head: TypeAlias = tuple[LinearLayer, Tensor]  # a head, and the gradient of its outputs `[M, P]`


def bind_head(head: LinearLayer, d_out: Tensor, features: Tensor, adds: bool) -> list[Op]:
    """Return the calls that write the gradients of a head's parameters."""
    return head.deactivate(d_out, d_out, features, adds) + head.backward(d_out, features, None, adds)


def bind_heads(heads: list[Head], last: Layer | None, features: Tensor, d: Tensor, adds: bool) -> tuple[list[Op], bool]:
    """Return the calls that go back through one head or two to `d` `[M, H]`, the gradient of their features.

    With few outputs this is a single kernel. If it can, it also goes back through the activation of `last`, the layer
    that made the features (None: a recurrent core); the second result is whether it does.
    """
    (first, d_first), *others = heads
    if features.is_cuda or sum(head.num_outputs for head, _ in heads) > _FEW_OUTPUTS:
        ops = [op for head, d_out in heads for op in bind_head(head, d_out, features, adds)]
        ops.append(partial(torch.mm, d_first, first.weight, out=d))
        return ops + [partial(d.addmm_, d_out, head.weight) for head, d_out in others], False
    activation: Derivative = "identity"
    d_bias, deactivates = first.grad_bias[:0], False
    if isinstance(last, LinearLayer) and not last.has_few_inputs:
        activation, d_bias, deactivates = last.activation, last.grad_bias, True
    (second, d_second), end = (others[0], None) if others else (heads[0], 0)  # a second head without outputs
    op = heads_backward.prepare(
        features,
        d_first,
        first.weight,
        d_second[:, :end],
        second.weight[:end],
        activation,
        adds,
        first.grad_weight,
        first.grad_bias,
        second.grad_weight[:end],
        second.grad_bias[:end],
        d,
        d_bias,
    )
    return [op], deactivates


class ConvLayer:
    """A convolution's tensors and their gradients, with a ReLU after it; images are flat, channels last."""

    def __init__(self, layer: nn.Conv2d, before: Shape, after: Shape, is_last: bool) -> None:
        """Keep views of the parameters and of their `p.grad`, as `LinearLayer`.

        Args:
            layer: the convolution.
            before: `(C, h, w)` of the inputs.
            after: the same of the outputs.
            is_last: no convolution follows.
        """
        assert layer.bias is not None
        assert layer.weight.grad is not None and layer.bias.grad is not None, "flatten the parameters first"
        self._weight, self._bias = layer.weight.detach(), layer.bias.detach()  # [O, C, k, k], [O]
        self.grads: tuple[Tensor, ...] = layer.weight.grad, layer.bias.grad
        _check_places(self._weight, self._bias, *self.grads)
        self._stride, self._before, self._after, self._is_last = list(layer.stride), before, after, is_last
        self.num_inputs, self.num_outputs = math.prod(before), math.prod(after)

    def refresh(self) -> list[Op]:
        """Return no calls: the library uses the weights themselves."""
        return []

    def forward(self, x: Tensor, y: Tensor) -> list[Op]:
        """See `Layer`."""
        return [partial(self._convolve, _as_images(x, self._before), _as_images(y, self._after))]

    def _convolve(self, x: Tensor, y: Tensor) -> None:
        z = torch.conv2d(x, self._weight, self._bias, self._stride)
        torch.clamp_min(z, 0.0, out=y)  # the copy to `y` also applies the ReLU

    def deactivate(self, d: Tensor, y: Tensor, x: Tensor, adds: bool) -> list[Op]:
        """See `Layer`; the convolution that follows, if any, has done it."""
        return [partial(_DEACTIVATE["relu"], d, y)] if self._is_last else []

    def backward(self, d: Tensor, x: Tensor, d_x: Tensor | None, adds: bool) -> list[Op]:
        """See `Layer`."""
        d_images = None if d_x is None else _as_images(d_x, self._before)
        return [partial(self._go_back, _as_images(d, self._after), _as_images(x, self._before), d_images, adds)]

    def _go_back(self, d: Tensor, x: Tensor, d_x: Tensor | None, adds: bool) -> None:
        asked = [d_x is not None, True, True]
        arguments = [len(self._bias)], self._stride, [0, 0], [1, 1], False, [0, 0], 1, asked
        z, d_weight, d_bias = _aten.convolution_backward(d, x, self._weight, *arguments)
        for grad, found in zip(self.grads, (d_weight, d_bias), strict=True):
            grad.add_(found) if adds else grad.copy_(found)
        if d_x is not None:  # the copy to `d_x` also applies the derivative of the ReLU that made `x`
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
        return list(_read_mlp(encoder))
    assert isinstance(encoder, ConvEncoder)
    layers: list[Layer] = [
        ConvLayer(layer, before, after, is_last=after == encoder.shapes[-1])
        for layer, (before, after) in zip(encoder.convs, pairwise(encoder.shapes), strict=True)
        if isinstance(layer, nn.Conv2d)
    ]
    return [*layers, LinearLayer(encoder.linear, "relu")]


def _read_mlp(encoder: MLPEncoder) -> Iterator[Layer]:
    for layer in encoder.layers:
        if isinstance(layer, nn.Linear):
            if encoder.activation == "gelu" or encoder.activation == "silu":
                yield LinearLayer(layer)
                yield ActivationLayer(layer.out_features, _ACTIVATIONS[encoder.activation])
            else:
                yield LinearLayer(layer, encoder.activation)
