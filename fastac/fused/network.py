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
from itertools import chain
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from fastac.config import ActivationName
from fastac.kernels import prepare_dense
from fastac.models import ActorCritic, IdentityCore, MLPEncoder, NoObsNormalizer

Op: TypeAlias = Callable[[], object]  # a call with all its arguments
# (gradient, activations) -> the gradient before the activation, in place.
Deactivate: TypeAlias = Callable[[Tensor, Tensor], object]

_aten = torch.ops.aten

# A tape up to this size stays in a core's own cache from acting to learning.
_CACHE_BYTES = 2**20
# Up to about this many inputs, computing a unit again (2 flops each at 150 GFLOP/s) is cheaper than its
# 4 bytes' way to memory and back (at 8 GB/s).
_FEW_INPUTS = 64
# Where fastac's own product of matrices is faster than the library's, which computes at twice the rate and
# costs a few microseconds more: small ones, and those over hardly any inputs.
_FEW_ROWS, _FEW_PRODUCTS, _HANDFUL_INPUTS = 128, 2**19, 8


def is_fusable(model: ActorCritic) -> bool:
    """Return whether a model is made of what this room knows: linear layers and no memory."""
    return all(isinstance(t.encoder, MLPEncoder) and isinstance(t.core, IdentityCore) for t in model.trunks)


def _tanh(y: Tensor) -> Op:
    if y.is_cuda:
        return partial(torch.tanh, y, out=y)
    view = y.numpy()
    return partial(np.tanh, view, view)  # on AVX2 five times as fast as torch's


_ACTIVATE: dict[ActivationName, Callable[[Tensor], Op]] = {
    "relu": lambda y: partial(torch.relu_, y),
    "tanh": _tanh,
    "elu": lambda y: partial(nn.functional.elu_, y),
}
# A derivative in terms of the activation's own output, which is all that a tape keeps.
_DEACTIVATE: dict[ActivationName, Deactivate] = {
    "relu": lambda d, y: _aten.threshold_backward.grad_input(d, y, 0.0, grad_input=d),
    "tanh": lambda d, y: _aten.tanh_backward.grad_input(d, y, grad_input=d),
    "elu": lambda d, y: _aten.elu_backward.grad_input(d, 1.0, 1.0, 1.0, True, y, grad_input=d),
}


class _Layer:
    """A linear layer's tensors and those of its gradient, without autograd's attention."""

    def __init__(self, layer: nn.Linear) -> None:
        assert layer.weight.grad is not None and layer.bias.grad is not None, "flatten the parameters first"
        self.weight, self.bias = layer.weight.detach(), layer.bias.detach()  # [H, D], [H]
        self._grad_weight, self._grad_bias = layer.weight.grad, layer.bias.grad

        self._weight_in = torch.empty_like(self.weight.t(), memory_format=torch.contiguous_format)  # [D, H]

    def refresh(self) -> None:
        """Copy the weights for the calls that act; they are stale after every update."""
        self._weight_in.copy_(self.weight.t())

    def forward(self, x: Tensor, y: Tensor, activation: ActivationName | None) -> list[Op]:
        """Return what writes `y` `[M, H]`, activated."""
        multiply = partial(torch.addmm, self.bias, x, self.weight.t(), out=y)
        return [multiply] if activation is None else [multiply, _ACTIVATE[activation](y)]

    def forward_acting(self, x: Tensor, y: Tensor, activation: ActivationName | None) -> list[Op]:
        """Return what does the same with the weights as they were refreshed, in one call where that is faster."""
        num_inputs, num_outputs = self._weight_in.shape
        is_small = len(x) <= _FEW_ROWS and len(x) * num_inputs * num_outputs <= _FEW_PRODUCTS
        if activation == "elu" or x.is_cuda or not (is_small or num_inputs <= _HANDFUL_INPUTS):
            return self.forward(x, y, activation)
        return [prepare_dense(x, self._weight_in, self.bias, activation or "identity", y)]

    def accumulate(self, d: Tensor, x: Tensor, ones: Tensor) -> list[Op]:
        """Return what adds the gradient that `d` `[M, H]` makes with the input `x` `[M, D]`; `ones` `[M]`."""
        d_t = d.t()
        # The product with ones is a sum over rows without a temporary.
        return [partial(self._grad_weight.addmm_, d_t, x), partial(self._grad_bias.addmv_, d_t, ones)]


class Trunk(NamedTuple):
    """The hidden layers of one trunk, and what comes between them."""

    layers: list[_Layer]
    activation: ActivationName


class FusedNetwork:
    """An `ActorCritic`'s layers; it shares their parameters and gradients."""

    def __init__(self, model: ActorCritic) -> None:
        """Look at a model whose parameters have gradients and stay where they are (see `fastac.apply`)."""
        assert is_fusable(model)
        encoders = [trunk.get_submodule("encoder") for trunk in model.trunks]
        self.trunks = [_read_trunk(encoder) for encoder in encoders]
        self.policy, self.critic = _Layer(model.head.layer), _Layer(model.value_head)
        self._all_layers = [*chain(*(trunk.layers for trunk in self.trunks)), self.policy, self.critic]
        self.normalizer = model.obs_normalizer
        self.sizes = [layer.weight.shape[0] for layer in self.trunks[0].layers]  # H by layer, the same in all trunks
        self.num_params = self.policy.weight.shape[0]
        self.device = self.policy.weight.device

    def refresh(self) -> None:
        """Take the weights as they are now for acting, until the next call; costs a microsecond a layer."""
        for layer in self._all_layers:
            layer.refresh()

    def leaves_first_out(self, rows: int, obs_size: int) -> bool:
        """Return whether a tape of so many rows is better off without the first layer."""
        kept = 4 * rows * sum(self.sizes) * len(self.trunks)  # bytes
        return len(self.sizes) > 1 and obs_size <= _FEW_INPUTS and kept > _CACHE_BYTES

    def empty(self, *shape: int) -> Tensor:
        """Allocate where the network is."""
        return torch.empty(shape, device=self.device)


def _read_trunk(encoder: nn.Module) -> Trunk:
    assert isinstance(encoder, MLPEncoder)
    layers = [_Layer(layer) for layer in encoder.layers if isinstance(layer, nn.Linear)]
    return Trunk(layers, encoder.activation)


class Tape:
    """The activations of R rows.

    Layers may be left out: their activations are gone after a pass, which share one buffer for them. That
    is for a step from which nothing will be learned, and for a first layer over few observations, which
    is cheaper to compute again than to fetch from beyond the cache.

    Attributes:
        hidden: by trunk and layer, `[R, H]`, or where left out as many rows as the largest pass.
        params: `[R, P]`.
        value: `[R, 1]`.
        obs: `[R, D]` normalised, or None where observations are used as they are.
        left_out: how many layers, from the first on.
    """

    def __init__(
        self, network: FusedNetwork, rows: int, obs_size: int, left_out: int = 0, pass_rows: int | None = None
    ) -> None:
        """Allocate; `pass_rows` are those of the largest pass, if any layer is left out."""
        shared = [network.empty(pass_rows or rows, size) for size in network.sizes[:left_out]]
        self.hidden = [
            [*shared, *(network.empty(rows, size) for size in network.sizes[left_out:])] for _ in network.trunks
        ]
        self.params, self.value = network.empty(rows, network.num_params), network.empty(rows, 1)
        is_raw = isinstance(network.normalizer, NoObsNormalizer)
        self.obs = None if is_raw else network.empty(rows, obs_size)
        self.left_out = left_out

    @classmethod
    def kept(cls, network: FusedNetwork, steps: int, envs: int, obs_size: int) -> Tape:
        """Allocate for all rows of a rollout, to learn from."""
        return cls(network, steps * envs, obs_size, int(network.leaves_first_out(steps * envs, obs_size)), envs)

    def hidden_rows(self, begin: int, end: int) -> list[list[Tensor]]:
        """View the activations of a pass, by trunk and layer."""
        return [
            [y[: end - begin] if depth < self.left_out else y[begin:end] for depth, y in enumerate(trunk)]
            for trunk in self.hidden
        ]

    @property
    def nbytes(self) -> int:
        """Memory of all tensors."""
        tensors = [self.params, self.value, *(y for trunk in self.hidden for y in trunk)]
        tensors += [] if self.obs is None else [self.obs]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


class Scratch:
    """What a backward pass over at most R rows needs besides the tape; one serves every pass.

    Attributes:
        hidden: by layer, `[R, H]`: gradients, used by one trunk after the other.
        first: `[R, H]`, the first layer's activations where the tape leaves them out.
        params: `[R, P]`, the objective's gradient.
        value: `[R, 1]`, the objective's gradient.
        ones: `[R]`.
    """

    def __init__(self, network: FusedNetwork, rows: int) -> None:
        """Allocate."""
        self.hidden = [network.empty(rows, size) for size in network.sizes]
        self.first = network.empty(rows, network.sizes[0] if network.sizes else 0)
        self.params, self.value = network.empty(rows, network.num_params), network.empty(rows, 1)
        self.ones = torch.ones(rows, device=network.device)

    @property
    def nbytes(self) -> int:
        """Memory of all tensors."""
        return sum(tensor.nbytes for tensor in [*self.hidden, self.first, self.params, self.value, self.ones])


class Pass:
    """A part of a tape, ready to run forward.

    What it does is a list of calls whose arguments are made beforehand, for the observations that it was
    last given: their memory is the same in every rollout, so that in practice the list is made once.

    Attributes:
        params: `[M, P]`.
        value: `[M]`.
    """

    def __init__(self, network: FusedNetwork, tape: Tape, begin: int, end: int, acts: bool = False) -> None:
        """Make the views of rows `begin` to `end`; one that acts uses weights as they were refreshed."""
        self._network, self._acts = network, acts
        self._own_obs = None if tape.obs is None else tape.obs[begin:end]
        self.hidden = tape.hidden_rows(begin, end)
        self.params, self._value = tape.params[begin:end], tape.value[begin:end]
        self.value = self._value.squeeze(-1)
        self._obs: Tensor | None = None  # what the calls below read
        self._forward: list[Op] = []
        self._forward_critic: list[Op] = []

    def forward(self, obs: Tensor) -> None:
        """Run both actor and critic on `obs` `[M, D]`, raw."""
        self._prepare(obs)
        for op in self._forward:
            op()

    def forward_critic(self, obs: Tensor) -> None:
        """Run the critic alone; the rows of a separate actor stay as they were."""
        self._prepare(obs)
        for op in self._forward_critic:
            op()

    def _prepare(self, obs: Tensor) -> None:
        """Make the calls for `obs`, unless they are for the same memory already."""
        if self._obs is None or self._obs.data_ptr() != obs.data_ptr():
            self._obs = obs
            self._bind(obs, obs if self._own_obs is None else self._own_obs)

    def _bind(self, obs: Tensor, x: Tensor) -> None:
        """Make the calls that feed `obs`, as `x` where it is normalised, to the network."""
        network = self._network
        first: list[Op] = [] if x is obs else [partial(self._normalize, obs, x)]
        trunks = [self._bind_trunk(index, x) for index in range(len(self.hidden))]
        features = [outputs[-1] if outputs else x for outputs in self.hidden]
        policy = self._bind_layer(network.policy, features[0], self.params, None)
        critic = self._bind_layer(network.critic, features[-1], self._value, None)
        # The actor's head before the critic's trunk: a tape that leaves layers out has one buffer for both trunks.
        self._forward = [*first, *trunks[0], *policy, *chain(*trunks[1:]), *critic]
        self._forward_critic = [*first, *trunks[-1], *critic]

    def _normalize(self, obs: Tensor, x: Tensor) -> None:
        x.copy_(self._network.normalizer(obs))

    def _bind_trunk(self, index: int, x: Tensor) -> list[Op]:
        trunk, ops = self._network.trunks[index], list[Op]()
        for layer, y in zip(trunk.layers, self.hidden[index], strict=True):
            ops += self._bind_layer(layer, x, y, trunk.activation)
            x = y
        return ops

    def _bind_layer(self, layer: _Layer, x: Tensor, y: Tensor, activation: ActivationName | None) -> list[Op]:
        return (layer.forward_acting if self._acts else layer.forward)(x, y, activation)


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
        assert tape.left_out <= 1, "only a first layer is computed again"
        self._leaves_first_out = tape.left_out == 1
        if self._leaves_first_out:
            for trunk in self.hidden:
                trunk[0] = scratch.first[:num]
        self._backward: list[Op] = []

    def backward(self, obs: Tensor) -> None:
        """Add the parameters' gradients; the tape holds `forward(obs)`, and `d_params`, `d_value` are written."""
        self._prepare(obs)
        for op in self._backward:
            op()

    def _bind(self, obs: Tensor, x: Tensor) -> None:
        super()._bind(obs, x)
        last = len(self.hidden) - 1
        self._backward = []
        for index, outputs in enumerate(self.hidden):
            heads: list[tuple[_Layer, Tensor]] = [(self._network.policy, self.d_params)] if index == 0 else []
            heads += [(self._network.critic, self._d_value)] if index == last else []
            if self._leaves_first_out:
                trunk = self._network.trunks[index]
                self._backward += trunk.layers[0].forward(x, outputs[0], trunk.activation)
            self._backward += self._bind_heads(heads, outputs[-1] if outputs else x)
            self._backward += self._bind_trunk_backward(index, x)

    def _bind_heads(self, heads: list[tuple[_Layer, Tensor]], features: Tensor) -> list[Op]:
        """Add the heads' gradients and leave that of their features in the last hidden buffer."""
        ops: list[Op] = []
        for number, (head, d_out) in enumerate(heads):
            ops += head.accumulate(d_out, features, self._ones)
            if not self._d_hidden:  # the heads read the observations
                continue
            d = self._d_hidden[-1]
            write = partial(torch.mm, d_out, head.weight, out=d)
            ops.append(write if number == 0 else partial(d.addmm_, d_out, head.weight))
        return ops

    def _bind_trunk_backward(self, index: int, x: Tensor) -> list[Op]:
        """Go from the last hidden buffer back to the observations."""
        trunk, outputs, ops = self._network.trunks[index], self.hidden[index], list[Op]()
        for depth in reversed(range(len(outputs))):
            d, layer = self._d_hidden[depth], trunk.layers[depth]
            ops.append(partial(_DEACTIVATE[trunk.activation], d, outputs[depth]))
            ops += layer.accumulate(d, outputs[depth - 1] if depth else x, self._ones)
            if depth:
                ops.append(partial(torch.mm, d, layer.weight, out=self._d_hidden[depth - 1]))
        return ops
