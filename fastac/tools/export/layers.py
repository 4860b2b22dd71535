"""A policy as arrays and a list of layers, which a reader without torch can follow."""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray
from torch import Tensor, nn

from fastac.config import JsonValue
from fastac.envs.masks import count_choices
from fastac.envs.spaces import SquashedBox
from fastac.models import (
    ConvEncoder,
    DependentGaussianHead,
    GaussianHead,
    GRUCore,
    IdentityCore,
    ImageNormalizer,
    KeyedEncoder,
    LSTMCore,
    MLPEncoder,
    ObsNormalizer,
    Trunk,
)
from fastac.models.heads import LEAST_LOG_STD, MOST_LOG_STD
from fastac.models.normalizers import CLIP
from fastac.tools.export.signature import Signature
from fastac.tools.policy import TrainedPolicy

_Json = dict[str, JsonValue]


def describe_layers(policy: TrainedPolicy, signature: Signature) -> tuple[_Json, dict[str, NDArray[np.generic]]]:
    """Return the list of layers, which names the arrays, and the arrays.

    Raises:
        ValueError: the encoder is the user's own.
    """
    book = _Book()
    model = policy.model
    seen = model.image_shape or policy.row_space.shape or ()
    layers: _Json = {
        "inputs": [_describe_input(book, column.port.name, column.categories) for column in signature.columns],
        "mask_size": model.mask_size,
        "normalizer": _describe_normalizer(book, model.obs_normalizer, signature.columns[-1].end, seen),
        "trunks": [_describe_trunk(book, trunk, seen) for trunk in model.trunks],
        "head": _describe_linear(book, model.head.layer),
        "value": _describe_linear(book, model.value_head),
        "action": _describe_action(book, policy),
    }
    return layers, book.arrays


class _Book:
    """Collects arrays under names."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[np.generic]] = {}

    def add(self, array: Tensor | NDArray[np.generic]) -> str:
        name = f"array_{len(self.arrays)}"
        found = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
        self.arrays[name] = np.array(found, order="C")
        return name


def _describe_input(book: _Book, name: str, categories: tuple[NDArray[np.int64], NDArray[np.int64]] | None) -> _Json:
    if categories is None:
        return {"name": name, "one_hot": None}
    which, values = categories
    return {"name": name, "one_hot": {"which": book.add(which), "values": book.add(values)}}


def _describe_normalizer(book: _Book, normalizer: nn.Module, width: int, seen: tuple[int, ...]) -> _Json | None:
    """Mean, scale and limit of every column; those that are not standardised have no limit."""
    if not isinstance(normalizer, ObsNormalizer):
        return None
    mean, scale = (part.numpy(force=True) for part in normalizer.constants())
    if isinstance(normalizer, ImageNormalizer):  # planes have the same statistics
        mean, scale = (np.broadcast_to(part, seen).reshape(-1) for part in (mean, scale))
    behind = np.ones(width - len(mean), np.float32)  # images, which have a scale of their own
    return {
        "mean": book.add(np.concatenate([mean, 0.0 * behind])),
        "scale": book.add(np.concatenate([scale, behind])),
        "limit": book.add(np.concatenate([np.full(len(mean), CLIP, np.float32), np.inf * behind])),
    }


def _describe_trunk(book: _Book, trunk: nn.Module, row_shape: tuple[int, ...]) -> _Json:
    assert isinstance(trunk, Trunk)
    encoder = trunk.encoder
    parts: list[tuple[slice, tuple[int, ...], nn.Module]] = [(slice(0, int(np.prod(row_shape))), row_shape, encoder)]
    if isinstance(encoder, KeyedEncoder):
        parts = [(*place, part) for place, part in zip(encoder.places, encoder.encoders, strict=True)]
    elif isinstance(encoder, MLPEncoder):
        parts = [(slice(None), (-1,), encoder)]
    return {
        "encoders": [
            {
                "begin": part.start or 0,
                "end": part.stop,
                "shape": list(shape),
                "layers": _describe_encoder(book, module),
            }
            for part, shape, module in parts
        ],
        "core": _describe_core(book, trunk.core),
    }


def _describe_encoder(book: _Book, encoder: nn.Module) -> list[JsonValue]:
    if isinstance(encoder, MLPEncoder):
        return [
            _describe_linear(book, layer) if isinstance(layer, nn.Linear) else {"kind": encoder.activation}
            for layer in encoder.layers
        ]
    if not isinstance(encoder, ConvEncoder):
        raise ValueError(
            f"the encoder is a {type(encoder).__name__}, expected one of fastac's own for npz: export onnx or "
            "torchscript."
        )
    layers: list[JsonValue] = [{"kind": "image", "is_planar": encoder.is_planar, "scale": encoder.scale}]
    for conv in encoder.convs:
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        weights = {"weight": book.add(conv.weight), "bias": book.add(conv.bias)}
        layers += [{"kind": "conv", "stride": conv.stride[0], **weights}, {"kind": "relu"}]
    return [*layers, {"kind": "flatten"}, _describe_linear(book, encoder.linear), {"kind": "relu"}]


def _describe_linear(book: _Book, layer: nn.Linear) -> _Json:
    return {"kind": "linear", "weight": book.add(layer.weight), "bias": book.add(layer.bias)}


def _describe_core(book: _Book, core: nn.Module) -> _Json | None:
    if isinstance(core, IdentityCore):
        return None
    assert isinstance(core, LSTMCore | GRUCore)
    names = ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
    weights: _Json = {name: book.add(getattr(core.cell, name)) for name in names}
    return {"kind": "lstm" if isinstance(core, LSTMCore) else "gru", "state_size": core.state_size, **weights}


def _describe_action(book: _Book, policy: TrainedPolicy) -> _Json:
    space, head = policy.action_space, policy.model.head
    if not isinstance(space, Box):
        start = space.start if isinstance(space, Discrete | MultiDiscrete) else 0
        return {"kind": "choices", "sizes": list(count_choices(space)), "start": book.add(np.asarray(start))}
    bounds: _Json = {"low": book.add(space.low), "high": book.add(space.high)}
    assert isinstance(head, GaussianHead | DependentGaussianHead)
    middle = reach = None
    log_std = book.add(head.log_std) if isinstance(head, GaussianHead) else None
    if isinstance(head, DependentGaussianHead):
        middle, reach = 0.5 * (MOST_LOG_STD + LEAST_LOG_STD), 0.5 * (MOST_LOG_STD - LEAST_LOG_STD)
    kind = "squashed" if isinstance(space, SquashedBox) else "clipped"
    return {"kind": kind, "log_std": log_std, "middle": middle, "reach": reach, **bounds}
