"""The forward and backward pass of an `ActorCritic` of linear layers, on buffers allocated once.

At 64 environments a step is twenty operations of a few microseconds, so what counts is what is not
done: no graph is recorded, nothing is allocated, and every view and transpose is made beforehand
(slicing a tensor costs as much as a small product). A `Tape` holds the activations of some rows, a
`Pass` the views of a part of it, ready to run.

Shapes: `R` rows of a tape, `M` of a pass, `D` observation, `H` width of a layer, `P` distribution parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from fastac.models import ActorCritic, IdentityCore, MLPEncoder, NoObsNormalizer

Activate: TypeAlias = Callable[[], object]
# (gradient, activations) -> the gradient before the activation, in place.
Deactivate: TypeAlias = Callable[[Tensor, Tensor], object]

_aten = torch.ops.aten


def is_fusable(model: ActorCritic) -> bool:
    """Return whether a model is made of what this room knows: linear layers and no memory."""
    return all(isinstance(t.encoder, MLPEncoder) and isinstance(t.core, IdentityCore) for t in model.trunks)


def _tanh(y: Tensor) -> Activate:
    if y.is_cuda:
        return partial(torch.tanh, y, out=y)
    view = y.numpy()
    return partial(np.tanh, view, view)  # on AVX2 five times as fast as torch's


_ACTIVATE: dict[type[nn.Module], Callable[[Tensor], Activate]] = {
    nn.ReLU: lambda y: partial(torch.relu_, y),
    nn.Tanh: _tanh,
    nn.ELU: lambda y: partial(nn.functional.elu_, y),
}
# A derivative in terms of the activation's own output, which is all that a tape keeps.
_DEACTIVATE: dict[type[nn.Module], Deactivate] = {
    nn.ReLU: lambda d, y: _aten.threshold_backward.grad_input(d, y, 0.0, grad_input=d),
    nn.Tanh: lambda d, y: _aten.tanh_backward.grad_input(d, y, grad_input=d),
    nn.ELU: lambda d, y: _aten.elu_backward.grad_input(d, 1.0, 1.0, 1.0, True, y, grad_input=d),
}


class _Layer:
    """A linear layer's tensors and those of its gradient, without autograd's attention."""

    def __init__(self, layer: nn.Linear) -> None:
        assert layer.weight.grad is not None and layer.bias.grad is not None, "flatten the parameters first"
        self.weight, self.bias = layer.weight.detach(), layer.bias.detach()  # [H, D], [H]
        self.weight_t = self.weight.t()
        self.grad_weight, self.grad_bias = layer.weight.grad, layer.bias.grad

    def forward(self, x: Tensor, y: Tensor) -> None:
        """Write `y` `[M, H]`."""
        torch.addmm(self.bias, x, self.weight_t, out=y)

    def accumulate(self, d: Tensor, x: Tensor, ones: Tensor) -> None:
        """Add the gradient that `d` `[M, H]` makes with the input `x` `[M, D]`; `ones` `[M]`."""
        d_t = d.t()
        self.grad_weight.addmm_(d_t, x)
        self.grad_bias.addmv_(d_t, ones)  # a sum over rows without a temporary


class Trunk(NamedTuple):
    """The hidden layers of one trunk, and what comes between them."""

    layers: list[_Layer]
    activation: type[nn.Module]


class FusedNetwork:
    """An `ActorCritic`'s layers; it shares their parameters and gradients."""

    def __init__(self, model: ActorCritic) -> None:
        """Look at a model whose parameters have gradients and stay where they are (see `fastac.apply`)."""
        assert is_fusable(model)
        encoders = [trunk.get_submodule("encoder") for trunk in model.trunks]
        self.trunks = [_read_trunk(encoder) for encoder in encoders]
        self.policy, self.critic = _Layer(model.head.layer), _Layer(model.value_head)
        self.normalizer = model.obs_normalizer
        self.sizes = [layer.weight.shape[0] for layer in self.trunks[0].layers]  # H by layer, the same in all trunks
        self.num_params = self.policy.weight.shape[0]
        self.device = self.policy.weight.device

    def empty(self, *shape: int) -> Tensor:
        """Allocate where the network is."""
        return torch.empty(shape, device=self.device)


def _read_trunk(encoder: nn.Module) -> Trunk:
    assert isinstance(encoder, MLPEncoder)
    layers = [_Layer(layer) for layer in encoder.layers if isinstance(layer, nn.Linear)]
    return Trunk(layers, type(encoder.layers[1]) if layers else nn.ReLU)


class Tape:
    """The activations of R rows.

    Attributes:
        hidden: by trunk and layer, `[R, H]`.
        params: `[R, P]`.
        value: `[R, 1]`.
        obs: `[R, D]` normalised, or None where observations are used as they are.
    """

    def __init__(self, network: FusedNetwork, rows: int, obs_size: int) -> None:
        """Allocate."""
        self.hidden = [[network.empty(rows, size) for size in network.sizes] for _ in network.trunks]
        self.params, self.value = network.empty(rows, network.num_params), network.empty(rows, 1)
        is_raw = isinstance(network.normalizer, NoObsNormalizer)
        self.obs = None if is_raw else network.empty(rows, obs_size)

    @property
    def nbytes(self) -> int:
        """Memory of all tensors."""
        tensors = [self.params, self.value, *(y for trunk in self.hidden for y in trunk)]
        return sum(tensor.nbytes for tensor in tensors) + (0 if self.obs is None else self.obs.nbytes)


class Scratch:
    """What a backward pass over at most R rows needs besides the tape; one serves every pass.

    Attributes:
        hidden: by layer, `[R, H]`: gradients, used by one trunk after the other.
        params: `[R, P]`, the objective's gradient.
        value: `[R, 1]`, the objective's gradient.
        ones: `[R]`.
    """

    def __init__(self, network: FusedNetwork, rows: int) -> None:
        """Allocate."""
        self.hidden = [network.empty(rows, size) for size in network.sizes]
        self.params, self.value = network.empty(rows, network.num_params), network.empty(rows, 1)
        self.ones = torch.ones(rows, device=network.device)

    @property
    def nbytes(self) -> int:
        """Memory of all tensors."""
        return sum(tensor.nbytes for tensor in [*self.hidden, self.params, self.value, self.ones])


class Pass:
    """A part of a tape, ready to run forward.

    Attributes:
        params: `[M, P]`.
        value: `[M]`.
    """

    def __init__(self, network: FusedNetwork, tape: Tape, begin: int, end: int) -> None:
        """Make the views of rows `begin` to `end`."""
        self._network = network
        self._obs = None if tape.obs is None else tape.obs[begin:end]
        self.hidden = [[y[begin:end] for y in trunk] for trunk in tape.hidden]
        self._activate = [
            [_ACTIVATE[trunk.activation](y) for y in outputs]
            for trunk, outputs in zip(network.trunks, self.hidden, strict=True)
        ]
        self.params, self._value = tape.params[begin:end], tape.value[begin:end]
        self.value = self._value.squeeze(-1)

    def forward(self, obs: Tensor) -> None:
        """Run both actor and critic on `obs` `[M, D]`, raw."""
        x = self.normalize(obs)
        features = [self._run(index, x) for index in range(len(self.hidden))]
        self._network.policy.forward(features[0], self.params)
        self._network.critic.forward(features[-1], self._value)

    def forward_critic(self, obs: Tensor) -> None:
        """Run the critic alone; the rows of a separate actor stay as they were."""
        self._network.critic.forward(self._run(len(self.hidden) - 1, self.normalize(obs)), self._value)

    def normalize(self, obs: Tensor) -> Tensor:
        """Return the network's input, kept in the tape where it is not `obs` itself."""
        return obs if self._obs is None else self._obs.copy_(self._network.normalizer(obs))

    def input(self, obs: Tensor) -> Tensor:
        """Return what `forward(obs)` fed to the network."""
        return obs if self._obs is None else self._obs

    def _run(self, index: int, x: Tensor) -> Tensor:
        """Run one trunk and return its features `[M, H]`."""
        for layer, y, activate in zip(
            self._network.trunks[index].layers, self.hidden[index], self._activate[index], strict=True
        ):
            layer.forward(x, y)
            activate()
            x = y
        return x


class BackwardPass(Pass):
    """A part of a tape, ready to run forward and backward.

    Attributes:
        d_params: `[M, P]`, the objective's gradient, to be written before `backward`.
        d_value: `[M]`, likewise.
    """

    def __init__(self, network: FusedNetwork, tape: Tape, begin: int, end: int, scratch: Scratch) -> None:
        """Make the views; `scratch` holds at least as many rows."""
        super().__init__(network, tape, begin, end)
        num = end - begin
        self._d_hidden = [d[:num] for d in scratch.hidden]
        self.d_params, self._d_value = scratch.params[:num], scratch.value[:num]
        self.d_value = self._d_value.squeeze(-1)
        self._ones = scratch.ones[:num]

    def backward(self, obs: Tensor) -> None:
        """Add the parameters' gradients; the tape holds `forward(obs)`, and `d_params`, `d_value` are written."""
        x, network = self.input(obs), self._network
        for index, (trunk, outputs) in enumerate(zip(network.trunks, self.hidden, strict=True)):
            heads: list[tuple[_Layer, Tensor]] = []
            if index == 0:
                heads.append((network.policy, self.d_params))
            if index == len(network.trunks) - 1:
                heads.append((network.critic, self._d_value))
            self._backward_heads(heads, outputs[-1] if outputs else x)
            self._backward_trunk(trunk, outputs, x)

    def _backward_heads(self, heads: list[tuple[_Layer, Tensor]], features: Tensor) -> None:
        """Add the heads' gradients and leave that of their features in the last hidden buffer."""
        for number, (head, d_out) in enumerate(heads):
            head.accumulate(d_out, features, self._ones)
            if not self._d_hidden:  # the heads read the observations
                continue
            if number == 0:
                torch.mm(d_out, head.weight, out=self._d_hidden[-1])
            else:
                self._d_hidden[-1].addmm_(d_out, head.weight)

    def _backward_trunk(self, trunk: Trunk, outputs: list[Tensor], x: Tensor) -> None:
        """Go from the last hidden buffer back to the observations."""
        deactivate = _DEACTIVATE[trunk.activation]
        for depth in reversed(range(len(outputs))):
            d, layer = self._d_hidden[depth], trunk.layers[depth]
            deactivate(d, outputs[depth])
            layer.accumulate(d, outputs[depth - 1] if depth else x, self._ones)
            if depth:
                torch.mm(d, layer.weight, out=self._d_hidden[depth - 1])
