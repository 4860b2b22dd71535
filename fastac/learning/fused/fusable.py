"""Checks whether a model consists only of modules that this package can compute; if not, autograd runs it.

A subclass, a hook or a parametrization may compute anything, and a frozen or shared parameter needs another gradient
than the fused passes write. So every module is checked by exact type.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from fastac.models import (
    ActorCritic,
    CategoricalHead,
    ConvEncoder,
    DependentGaussianHead,
    GaussianHead,
    GRUCore,
    IdentityCore,
    ImageNormalizer,
    LSTMCore,
    MLPEncoder,
    MultiCategoricalHead,
    NoObsNormalizer,
    ObsNormalizer,
    RunningMoments,
    Shape,
    Trunk,
    make_activation,
)

# Expected names of submodules and parameters for each type; None if submodules are numbered.
_PARTS: dict[type[nn.Module], set[str] | None] = {
    ActorCritic: {"obs_normalizer", "trunks", "head", "value_head"},
    Trunk: {"encoder", "core"},
    IdentityCore: set(),
    LSTMCore: {"cell"},
    GRUCore: {"cell"},
    MLPEncoder: {"layers"},
    ConvEncoder: {"convs", "linear"},
    CategoricalHead: {"layer"},
    MultiCategoricalHead: {"layer"},
    GaussianHead: {"layer", "log_std"},
    DependentGaussianHead: {"layer"},
    NoObsNormalizer: set(),
    ObsNormalizer: {"moments"},
    ImageNormalizer: {"moments"},
    RunningMoments: set(),
    nn.Linear: {"weight", "bias"},
    nn.Conv2d: {"weight", "bias"},
    nn.LSTMCell: {"weight_ih", "weight_hh", "bias_ih", "bias_hh"},
    nn.GRUCell: {"weight_ih", "weight_hh", "bias_ih", "bias_hh"},
    nn.ReLU: set(),
    nn.Tanh: set(),
    nn.ELU: set(),
    nn.GELU: set(),
    nn.SiLU: set(),
    nn.Sequential: None,
    nn.ModuleList: None,
}


def is_fusable(model: ActorCritic) -> bool:
    """Return whether a model has only unmodified fastac encoders, cores and heads."""
    modules = list(model.modules())
    params = [p for _, p in model.named_parameters(remove_duplicate=False)]
    return (
        not torch_module._has_any_global_hook()
        and all(is_as_written(module) and _has_its_parts(module) for module in modules)
        and all(map(_is_trainable, params))
        and len(params) == len(set(params))
        and _are_known([trunk.get_submodule("encoder") for trunk in model.trunks])
        and not (isinstance(model.obs_normalizer, ImageNormalizer) and _scales(model))
        and _are_known_cores([trunk.get_submodule("core") for trunk in model.trunks])
    )


def _scales(model: ActorCritic) -> bool:
    """Return whether an encoder multiplies pixels, which the fused network does not do after standardising them."""
    return any(isinstance(module, ConvEncoder) and module.scale != 1.0 for module in model.modules())


def is_as_written(module: nn.Module) -> bool:
    """Return whether a module behaves as its class defines: no hooks and no methods set on the instance."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return not any(hooks) and not any(callable(getattr(type(module), name, None)) for name in vars(module))


def _has_its_parts(module: nn.Module) -> bool:
    """Return whether a module is exactly of a known type, with the submodules and parameters of that type."""
    if type(module) not in _PARTS:
        return False
    children, expected = dict(module.named_children()), _PARTS[type(module)]
    found = {*children, *(name for name, _ in module.named_parameters(recurse=False))}
    return found == (set(map(str, range(len(children)))) if expected is None else expected)


def _is_trainable(param: Tensor) -> bool:
    """Return whether a parameter gets a gradient that no hook changes."""
    return param.requires_grad and not param._backward_hooks and not param._post_accumulate_grad_hooks


def _are_known(encoders: list[nn.Module]) -> bool:
    """Return whether all encoders read the same inputs and have the standard layers, order and settings."""
    first = encoders[0]
    if isinstance(first, MLPEncoder):
        return all(map(_is_known_mlp, encoders))
    return isinstance(first, ConvEncoder) and all(
        isinstance(encoder, ConvEncoder) and _is_known_conv(encoder) and _sees(encoder) == _sees(first)
        for encoder in encoders
    )


def _is_known_mlp(encoder: nn.Module) -> bool:
    if not isinstance(encoder, MLPEncoder):
        return False
    layers, activations = list(encoder.layers)[::2], list(encoder.layers)[1::2]
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    usual = repr(make_activation(encoder.activation))  # includes the activation's settings
    return (
        len(linears) == len(layers) == len(activations)
        and all(before.out_features == after.in_features for before, after in pairwise(linears))
        and all(repr(activation) == usual for activation in activations)
    )


def _is_known_conv(encoder: ConvEncoder) -> bool:
    sizes = list(pairwise(encoder.shapes))
    return len(sizes) == len(encoder.convs) and all(
        isinstance(conv, nn.Conv2d) and _maps(conv, *before_after)
        for conv, before_after in zip(encoder.convs, sizes, strict=True)
    )


def _maps(conv: nn.Conv2d, before: Shape, after: Shape) -> bool:
    """Return whether a convolution maps `before` to `after` `(C, h, w)` with settings that the fused layers support."""
    channels, *sides = before
    made = [(s - kernel) // stride + 1 for s, kernel, stride in zip(sides, conv.kernel_size, conv.stride, strict=True)]
    settings = (conv.in_channels, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return settings == (channels, (0, 0), (1, 1), 1, "zeros") and (conv.out_channels, *made) == after


def _are_known_cores(cores: list[nn.Module]) -> bool:
    """Return whether all cores are alike, and recurrent ones have their own cell."""
    return all(repr(core) == repr(cores[0]) and _is_known_core(core) for core in cores)


def _is_known_core(core: nn.Module) -> bool:
    if isinstance(core, LSTMCore | GRUCore):
        states, cell = (2, nn.LSTMCell) if isinstance(core, LSTMCore) else (1, nn.GRUCell)
        size = core.cell.hidden_size
        return type(core.cell) is cell and (core.output_size, core.state_size) == (size, states * size)
    return isinstance(core, IdentityCore)


def _sees(encoder: ConvEncoder) -> tuple[str, list[Shape], bool, float]:
    """Return the properties that encoders must share to read the same prepared images."""
    return repr(encoder), encoder.shapes, encoder.is_planar, encoder.scale
