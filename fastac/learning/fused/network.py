"""Forward and backward passes of an `ActorCritic`, on buffers allocated once.

At 64 environments a step of small layers is twenty operations of a few microseconds, so overhead dominates. No graph
is recorded, nothing is allocated, and all views and transposes are made in advance (slicing a tensor costs as much
as a small product). `Activations` holds the activations of some rows; a `ForwardPass` holds views of a part of
them, ready to run.

Shapes: `R` rows of activations, `M` rows of a pass, `D` inputs of the first layers, `H` width of a layer, `P`
distribution parameters. With recurrence, the rows of a pass are steps of sequences, time first (see `recurrent.py`).
"""

from __future__ import annotations

from functools import partial
from itertools import chain

import torch
from torch import Tensor

from fastac import memory
from fastac.kernels import Op, join_calls, mask_logits, scale_images, standardize, standardize_images, take_columns
from fastac.learning.fused.fusable import is_fusable
from fastac.learning.fused.layers import Head, Layer, LinearLayer, bind_head, bind_heads, read_layers
from fastac.learning.fused.recurrent import RecurrentLayer, Sequences, read_cores
from fastac.models import ActorCritic, ConvEncoder, ImageNormalizer, NoObsNormalizer, ObsNormalizer
from fastac.models.normalizers import CLIP

# Activations up to this size stay in the core's own cache from acting to learning.
_CACHE_BYTES = 2**20
# Up to about this many inputs, recomputing a unit (2 flops per input at 150 GFLOP/s) is cheaper than writing its
# 4 bytes to memory and reading them back (at 8 GB/s).
_FEW_INPUTS = 64


class FusedNetwork:
    """The layers of an `ActorCritic`; parameters and gradients are shared with it.

    Attributes:
        trunks: the hidden layers of each trunk.
        cores: the recurrent core of each trunk, behind its layers; none without recurrence.
        policy: the actor's head.
        critic: the critic's head.
        sizes: H by trunk and layer.
        num_inputs: D.
        num_params: P.
        sees_images: whether observations are images.
        reads_obs: whether the first layers read raw observations.
        device: device of the network.
        other_grads: gradients of parameters that belong to no layer.
    """

    def __init__(self, model: ActorCritic) -> None:
        """Keep views of the model's parameters and of their `p.grad`.

        Build the optimizer first: its `flatten` makes every `p.grad` a view of one flat vector. The views must not
        change afterwards.
        """
        assert is_fusable(model)
        encoders = [trunk.get_submodule("encoder") for trunk in model.trunks]
        self.trunks = [read_layers(encoder) for encoder in encoders]
        self.policy, self.critic = LinearLayer(model.head.layer), LinearLayer(model.value_head)
        self.cores = read_cores(model)
        self._all_layers: list[Layer | RecurrentLayer] = [
            *chain(*self.trunks),
            *self.cores,
            self.policy,
            self.critic,
        ]
        written = {grad.data_ptr() for layer in self._all_layers for grad in layer.grads}
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        self.other_grads = [grad for grad in grads if grad.data_ptr() not in written]
        self._encoder, self._normalizer = encoders[0], model.obs_normalizer
        self.sizes = [[layer.num_outputs for layer in trunk] for trunk in self.trunks]
        readers: list[Layer | RecurrentLayer] = [*self.trunks[0], *self.cores, self.policy]
        self.num_inputs = readers[0].num_inputs
        self.num_params = self.policy.num_outputs
        self.sees_images = isinstance(self._encoder, ConvEncoder)
        self._has_masks, self._is_flat = model.mask_size > 0, model.image_shape is not None
        self.reads_obs = not (self.sees_images or self._has_masks) and isinstance(self._normalizer, NoObsNormalizer)
        self._constants = self._read_constants()  # where `refresh` copies them
        self._refresh = join_calls([op for layer in self._all_layers for op in layer.refresh()])
        self.device = self.policy.weight.device

    def refresh(self) -> None:
        """Copy weights and statistics, for all passes until the next update."""
        for op in self._refresh:
            op()
        self.refresh_statistics()

    def refresh_statistics(self) -> None:
        """Copy the statistics of observations only."""
        for kept, constant in zip(self._constants, self._read_constants(), strict=True):
            kept.copy_(constant)

    def prepare_weights(self) -> list[Op]:
        """Return the calls that copy the weights only, such as after an update from the same rollout."""
        return self._refresh

    def _read_constants(self) -> tuple[Tensor, ...]:
        """Return mean and factor of normalised observations."""
        return self._normalizer.constants() if isinstance(self._normalizer, ObsNormalizer) else ()

    def prepare(self, obs: Tensor, x: Tensor) -> list[Op]:
        """Return the calls that compute the first layers' inputs `x` `[M, D]` from raw observations `[M, *obs_shape]`.

        On the CPU they use the statistics copied by `refresh_statistics`, which are constant until the rollout was
        learned from.
        """
        if isinstance(self._encoder, ConvEncoder):
            return [self._prepare_images(self._encoder, obs, x)]
        taken = [take_columns.prepare(obs, x)] if self._has_masks else []
        if isinstance(self._normalizer, NoObsNormalizer):
            return taken
        source = x if self._has_masks else obs
        if source.dtype == torch.float32 and not source.is_cuda:
            mean, scale = self._constants
            return [*taken, standardize.prepare(source, mean, scale, CLIP, x)]
        return [*taken, partial(self._normalize, source, x)]

    def prepare_mask(self, obs: Tensor, params: Tensor) -> list[Op]:
        """Return the calls that rule out illegal actions: they write -inf to their logits `[M, P]`."""
        if not self._has_masks:
            return []
        if obs.dtype == torch.uint8:
            return [partial(mask_logits.reference, obs, params)]
        return [mask_logits.prepare(obs, params)]

    def _normalize(self, obs: Tensor, x: Tensor) -> None:
        x.copy_(self._normalizer(obs))

    def _prepare_images(self, encoder: ConvEncoder, obs: Tensor, x: Tensor) -> Op:
        """Return the call that scales or standardises images; if they are in rows, a mask may follow them there."""
        num_planes = encoder.shapes[0][0] if encoder.is_planar else 1
        rows = obs[:, : x.shape[1]] if self._is_flat else obs.flatten(1)
        images, out = rows.unflatten(1, (num_planes, -1)), x.view(len(x), -1, num_planes)  # [M, C, P], [M, P, C]
        has_bytes = obs.dtype == torch.uint8 and images.is_contiguous()
        if isinstance(self._normalizer, ImageNormalizer):
            if has_bytes and not obs.is_cuda:
                mean, factor = (constant.flatten() for constant in self._constants)
                return partial(standardize_images, images, mean, factor, float(CLIP), out)
            return partial(self._standardize_images, images, out)
        if has_bytes:
            return partial(scale_images, images, out, encoder.scale)
        return partial(torch.mul, images.transpose(1, 2), encoder.scale, out=out)

    def _standardize_images(self, images: Tensor, out: Tensor) -> None:
        mean, factor = (constant.flatten()[:, None] for constant in self._read_constants())
        torch.clamp((images.transpose(1, 2) - mean) * factor, -CLIP, CLIP, out=out)

    def leaves_first_out(self, rows: int) -> bool:
        """Return whether activations of `rows` rows should leave out the first layer."""
        kept = 4 * rows * sum(map(sum, self.sizes))  # bytes
        is_deep = min(map(len, self.sizes)) > 1
        return is_deep and not self.sees_images and self.num_inputs <= _FEW_INPUTS and kept > _CACHE_BYTES

    def empty(self, *shape: int) -> Tensor:
        """Allocate a tensor on the network's device."""
        return memory.empty(shape, device=self.device)

    def share_hidden(self, rows: int, depth: int | None = None) -> list[list[Tensor]]:
        """Allocate `[rows, H]` by trunk and layer, up to a depth; trunks share those that have the same size."""
        shared: dict[tuple[int, int], Tensor] = {}
        for sizes in self.sizes:
            for place in enumerate(sizes[:depth]):
                if place not in shared:
                    shared[place] = self.empty(rows, place[1])
        return [[shared[place] for place in enumerate(sizes[:depth])] for sizes in self.sizes]


class Activations:
    """The activations of R rows.

    Layers may be left out: their activations are lost after a pass, and all passes share one buffer for them. This is
    for a step that is not learned from, and for a first layer with few inputs, which is cheaper to recompute than to
    read from beyond the cache. Float images are left out too, because a row of them takes more memory than all its
    activations.

    Attributes:
        hidden: by trunk and layer, `[R, H]`; layers left out have as many rows as the largest pass.
        params: `[R, P]`.
        value: `[R, 1]`.
        inputs: `[R, D]`, normalised observations. For images, as many rows as the largest pass that acts. None if
            the first layers read raw observations, or if only gradient passes use images.
        cores: by trunk, what recurrent cores keep of R rows; none without recurrence.
        left_out: number of layers left out, counted from the first.
    """

    def __init__(self, network: FusedNetwork, rows: int, left_out: int = 0, pass_rows: int | None = None) -> None:
        """Allocate; `pass_rows` is the number of rows of the largest pass that acts, None if no pass acts."""
        self.hidden = [
            [*shared, *(network.empty(rows, size) for size in sizes[left_out:])]
            for shared, sizes in zip(network.share_hidden(pass_rows or rows, left_out), network.sizes, strict=True)
        ]
        self.params, self.value = network.empty(rows, network.num_params), network.empty(rows, 1)
        input_rows = pass_rows if network.sees_images else rows
        self.inputs = None if network.reads_obs or input_rows is None else network.empty(input_rows, network.num_inputs)
        self.cores = [core.allocate(rows) for core in network.cores]
        self.left_out = left_out

    @classmethod
    def for_step(cls, network: FusedNetwork, rows: int) -> Activations:
        """Allocate for acting in one pass of up to `rows` rows, without keeping activations."""
        return cls(network, rows, max(map(len, network.sizes)), rows)

    @classmethod
    def kept(cls, network: FusedNetwork, steps: int, envs: int, pass_rows: int) -> Activations:
        """Allocate for all rows of a rollout, for acting in passes of up to `pass_rows` rows and for learning."""
        return cls(network, steps * envs, int(network.leaves_first_out(steps * envs)), pass_rows)

    def hidden_rows(self, begin: int, end: int) -> list[list[Tensor]]:
        """View the activations of a pass, by trunk and layer."""
        return [
            [y[: end - begin] if depth < self.left_out else y[begin:end] for depth, y in enumerate(trunk)]
            for trunk in self.hidden
        ]

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors; shared ones are listed once per trunk."""
        cores = (tensor for core in self.cores for tensor in core.tensors)
        tensors = [self.params, self.value, *(y for trunk in self.hidden for y in trunk), *cores]
        return tensors if self.inputs is None else [*tensors, self.inputs]

    @property
    def nbytes(self) -> int:
        """Memory of all tensors in bytes."""
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in self.tensors}.values())


class GradientBuffers:
    """Buffers of a backward pass over at most R rows besides the activations; all passes share one set.

    Attributes:
        hidden: by trunk and layer, `[R, H]`: gradients; trunks share them, as one goes back after the other.
        first: by trunk, `[R, H]`, the first layer's activations if `Activations` leaves them out.
        images: `[R, D]`, the first layers' inputs if observations are images.
        core: gradients of a recurrent core; None without recurrence.
        params: `[R, P]`, the objective's gradient.
        value: `[R, 1]`, the objective's gradient.
        rows: R.
    """

    def __init__(self, network: FusedNetwork, rows: int) -> None:
        """Allocate all buffers."""
        image_rows, other_rows = (rows, 0) if network.sees_images else (0, rows)
        self.hidden = network.share_hidden(rows)
        self.first = network.share_hidden(other_rows, 1)
        self.images = network.empty(image_rows, network.num_inputs)
        self.core = network.cores[0].allocate_gradients(rows) if network.cores else None
        self.params, self.value = network.empty(rows, network.num_params), network.empty(rows, 1)
        self.rows = rows

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors; shared ones are listed once per trunk."""
        core = [] if self.core is None else self.core.tensors
        return [*chain(*self.hidden, *self.first), self.images, *core, self.params, self.value]

    @property
    def nbytes(self) -> int:
        """Memory of all tensors in bytes."""
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in self.tensors}.values())


class ForwardPass:
    """A forward pass over a range of rows of the activations.

    The pass is a list of calls whose arguments are bound in advance, for the memory of the last observations.
    Observations have the same memory in every rollout, so in practice the list is made once.

    Attributes:
        params: `[M, P]`.
        value: `[M]`.
    """

    def __init__(
        self,
        network: FusedNetwork,
        activations: Activations,
        begin: int,
        end: int,
        sequences: Sequences | None = None,
    ) -> None:
        """Make the views of rows `begin` to `end`.

        Args:
            network: the network.
            activations: the activations, written.
            begin: the first row.
            end: one past the last row.
            sequences: what the rows are, for a network with recurrent cores.
        """
        assert memory.is_aligned(*activations.tensors), "activations do not begin at a cache line"
        assert (sequences is None) == (not network.cores), "rows of a recurrent core are steps of sequences"
        self._network, self._sequences = network, sequences
        self._inputs = activations.inputs
        if activations.inputs is not None:
            self._inputs = activations.inputs[: end - begin] if network.sees_images else activations.inputs[begin:end]
        self.hidden = activations.hidden_rows(begin, end)
        self._cores = [core.rows(begin, end) for core in activations.cores]
        self.params, self._value = activations.params[begin:end], activations.value[begin:end]
        self.value = self._value.squeeze(-1)
        self._obs: Tensor | None = None  # the observations that the calls below read
        self._forward: list[Op] = []
        self._forward_actor: list[Op] = []
        self._forward_critic: list[Op] = []

    def prepare(self, obs: Tensor) -> list[Op]:
        """Return the calls of `forward` for observations that will not move."""
        self._prepare(obs)
        return self._forward

    def prepare_actor(self, obs: Tensor) -> list[Op]:
        """Return the calls of `forward_actor` for observations that will not move."""
        self._prepare(obs)
        return self._forward_actor

    def prepare_critic(self, obs: Tensor) -> list[Op]:
        """Return the calls of `forward_critic` for observations that will not move."""
        self._prepare(obs)
        return self._forward_critic

    def forward(self, obs: Tensor) -> None:
        """Run both actor and critic on `obs` `[M, *obs_shape]`, raw."""
        for op in self.prepare(obs):
            op()

    def forward_actor(self, obs: Tensor) -> None:
        """Run the actor only; a separate critic's activations and values are unchanged."""
        for op in self.prepare_actor(obs):
            op()

    def forward_critic(self, obs: Tensor) -> None:
        """Run the critic only; a separate actor's activations and parameters are unchanged."""
        for op in self.prepare_critic(obs):
            op()

    def _prepare(self, obs: Tensor) -> None:
        """Make the calls for `obs`, unless they already exist for the same memory."""
        if self._obs is None or self._obs.data_ptr() != obs.data_ptr():
            self._obs = obs
            self._bind(obs, obs if self._inputs is None else self._inputs)

    def _bind(self, obs: Tensor, x: Tensor) -> None:
        """Make the calls for `obs`; `x` is the first layers' input, or `obs` itself."""
        assert memory.is_aligned(obs), "observations do not begin at a cache line"
        network = self._network
        first: list[Op] = [] if x is obs else network.prepare(obs, x)
        trunks = [self._bind_trunk(index, x) for index in range(len(self.hidden))]
        features = [self._features(index, x) for index in range(len(self.hidden))]
        policy = [*network.policy.forward(features[0], self.params), *network.prepare_mask(obs, self.params)]
        critic = network.critic.forward(features[-1], self._value)
        # The actor's head runs before the critic's trunk: layers that are left out have one buffer for both trunks.
        self._forward = join_calls([*first, *trunks[0], *policy, *chain(*trunks[1:]), *critic])
        self._forward_actor = join_calls([*first, *trunks[0], *policy])
        self._forward_critic = join_calls([*first, *trunks[-1], *critic])

    def _bind_trunk(self, index: int, x: Tensor) -> list[Op]:
        ops: list[Op] = []
        for layer, y in zip(self._network.trunks[index], self.hidden[index], strict=True):
            ops += layer.forward(x, y)
            x = y
        if self._sequences is not None:
            ops += self._network.cores[index].forward(x, self._cores[index], self._sequences)
        return ops

    def _features(self, index: int, x: Tensor) -> Tensor:
        """Return the outputs of a trunk, which the heads read."""
        outputs = self.hidden[index]
        return self._cores[index].hidden if self._cores else outputs[-1] if outputs else x


class BackwardPass(ForwardPass):
    """A forward and backward pass over a range of rows of the activations.

    Attributes:
        d_params: `[M, P]`, the objective's gradient, to be written before `backward`.
        d_value: `[M]`, likewise.
    """

    def __init__(
        self,
        network: FusedNetwork,
        activations: Activations,
        begin: int,
        end: int,
        buffers: GradientBuffers,
        adds: bool = False,
        sequences: Sequences | None = None,
    ) -> None:
        """Make the views.

        Args:
            network: the network.
            activations: the activations; read, and written by `forward`.
            begin: the first row.
            end: one past the last row.
            buffers: for at least `end - begin` rows.
            adds: add to the gradient of the layers' parameters instead of overwriting it.
            sequences: see `ForwardPass`; then all rows are in one pass.
        """
        assert memory.is_aligned(*buffers.tensors), "a buffer of the backward pass does not begin at a cache line"
        assert not (adds and network.cores), "sequences are not cut into chunks"
        super().__init__(network, activations, begin, end, sequences=sequences)
        self._adds = adds
        num = end - begin
        self._d_hidden = [[d[:num] for d in trunk] for trunk in buffers.hidden]
        self._d_core = None if buffers.core is None else buffers.core.rows(num)
        self.d_params, self._d_value = buffers.params[:num], buffers.value[:num]
        self.d_value = self._d_value.squeeze(-1)
        assert activations.left_out <= 1, "only a first layer is computed again"
        self._leaves_first_out = activations.left_out == 1
        if self._leaves_first_out:
            for trunk, first in zip(self.hidden, buffers.first, strict=True):
                trunk[0] = first[0][:num]
        # If the activations come from acting, the float images were not kept and must be computed again.
        self._leaves_images_out = network.sees_images and activations.inputs is not None
        if network.sees_images:
            self._inputs = buffers.images[:num]
        self._backward: list[Op] = []

    def backward(self, obs: Tensor) -> None:
        """Write the layers' gradients; call `forward(obs)` and write `d_params` and `d_value` first."""
        for op in self.prepare_backward(obs):
            op()

    def prepare_backward(self, obs: Tensor) -> list[Op]:
        """Return the calls of `backward` for observations that will not move."""
        self._prepare(obs)
        return self._backward

    def _bind(self, obs: Tensor, x: Tensor) -> None:
        super()._bind(obs, x)
        network, last = self._network, len(self.hidden) - 1
        ops: list[Op] = network.prepare(obs, x) if self._leaves_images_out else []
        for index, outputs in enumerate(self.hidden):
            heads: list[Head] = [(network.policy, self.d_params)] if index == 0 else []
            heads += [(network.critic, self._d_value)] if index == last else []
            if self._leaves_first_out:
                ops += network.trunks[index][0].forward(x, outputs[0])
            ops += self._bind_trunk_backward(index, heads, [x, *outputs])
        self._backward = join_calls(ops)

    def _bind_trunk_backward(self, index: int, heads: list[Head], outputs: list[Tensor]) -> list[Op]:
        """Go back from the heads to the observations; `outputs` are the inputs of every layer and of core or heads."""
        layers, d_hidden, adds = self._network.trunks[index], self._d_hidden[index], self._adds
        ops, is_deactivated = self._bind_features_backward(index, heads, outputs[-1])
        for depth in reversed(range(len(layers))):
            layer, d, x = layers[depth], d_hidden[depth], outputs[depth]
            if not is_deactivated:
                ops += layer.deactivate(d, outputs[depth + 1], x, adds)
            ops += layer.backward(d, x, d_hidden[depth - 1] if depth else None, adds)
            is_deactivated = False
        return ops

    def _bind_features_backward(self, index: int, heads: list[Head], x: Tensor) -> tuple[list[Op], bool]:
        """Go back from the heads, through the core if there is one, to `x`, the outputs of a trunk's layers.

        The second result is whether this goes back through the activation of the last layer, too.
        """
        layers, adds = self._network.trunks[index], self._adds
        d_x = self._d_hidden[index][-1] if layers else None
        if self._d_core is not None and self._sequences is not None:
            core, kept = self._network.cores[index], self._cores[index]
            ops, _ = bind_heads(heads, None, kept.hidden, self._d_core.hidden, adds)
            return [*ops, *core.backward(self._d_core, x, kept, self._sequences, d_x)], False
        if d_x is None:
            return [op for head, d_out in heads for op in bind_head(head, d_out, x, adds)], False
        return bind_heads(heads, layers[-1], x, d_x, adds)
