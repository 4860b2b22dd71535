"""Builds the network for the environments' spaces: trunks, a head for the action space, and normalisers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import singledispatch
from typing import TypeAlias, cast, get_args

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space
from torch import Tensor, nn

from fastac.config import EncoderName, ModelConfig
from fastac.contract import HasSpaces
from fastac.envs import is_image, observation_dtype
from fastac.envs.failure import describe
from fastac.envs.importing import find_thing, is_unnamed, name_of
from fastac.envs.rows import FlatBox
from fastac.models import (
    ActorCritic,
    CategoricalHead,
    ConvEncoder,
    Core,
    DependentGaussianHead,
    GaussianHead,
    GRUCore,
    Head,
    IdentityCore,
    ImageNormalizer,
    KeyedEncoder,
    LSTMCore,
    MLPEncoder,
    MultiCategoricalHead,
    NoObsNormalizer,
    ObsNormalizer,
    Shape,
    Trunk,
    is_planar,
    pick_net,
)
from fastac.models.encoders import ConvName

# Builds an encoder for an observation space; the module maps `[..., *obs_shape]` to `[..., D]`.
EncoderFactory: TypeAlias = Callable[["Space[np.ndarray]"], nn.Module]


def name_encoder(encoder: str | EncoderFactory | None) -> tuple[str | None, EncoderFactory | None]:
    """Return the name that a configuration records for an encoder, and the encoder itself if the name is not enough.

    Raises:
        ValueError: neither a name nor a function, or an already built module.
    """
    if encoder is None or isinstance(encoder, str):
        return encoder, None
    _check_unbuilt(encoder)
    if not callable(encoder):
        raise ValueError(f"encoder is {encoder!r}, expected a name, or a function that returns an nn.Module.")
    name = name_of(encoder)
    return name, encoder if is_unnamed(name) else None


def _check_unbuilt(encoder: object) -> None:
    """Reject a module instead of a function: every trunk of every worker needs its own."""
    if isinstance(encoder, nn.Module):
        raise ValueError(
            f"encoder is a {type(encoder).__name__} that was built already, expected a function from an observation "
            "space to a module: build it in one, such as lambda space: torch.nn.Linear(space.shape[0], 64)."
        )


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Give torch this number of threads, whatever the number of cores; one is fastest for small networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Building a model seeds torch's global stream, so only one thread may build at a time.
_seeding = threading.RLock()  # reentrant: the user's encoder may build a model


def build_model(
    config: ModelConfig, envs: HasSpaces, seed: int = 0, encoder: EncoderFactory | None = None
) -> ActorCritic:
    """Build the network for the environments' spaces, initialised from `seed`, without changing torch's CPU stream.

    Raises:
        ValueError: settings that do not fit the spaces, or an encoder that fails or does not fit the observations.
    """
    row = envs.single_observation_space
    assert isinstance(row, Box)  # envs/ accepts nothing else
    space = _seen_space(row)
    if config.dependent_std and not isinstance(envs.single_action_space, Box):
        raise ValueError(
            f"dependent_std is True, expected False: the action space is {envs.single_action_space}, and only the "
            "actions of a Box have a deviation."
        )
    make = encoder or _find_encoder(config)
    if make and isinstance(row, FlatBox) and row.reading.critic_keys:
        raise ValueError(
            f"critic_keys is {row.reading.critic_keys}, expected (): the encoder is {name_of(make)}, and an encoder of "
            "your own reads all keys."
        )
    if (config.actor_sizes, config.critic_sizes) != (None, None) and (make or is_image(space)):
        raise ValueError(
            f"actor_sizes is {config.actor_sizes} and critic_sizes is {config.critic_sizes}, expected None and None: "
            f"they are sizes of an mlp, and the encoder is {name_of(make) if make else 'one for images'}."
        )
    with _seeding, torch.random.fork_rng(devices=[]), torch_threads(1):
        torch.manual_seed(seed)
        parts = _split_sizes(config)
        trunks = [_build_trunk(part, make, space, is_actors=len(parts) == 2 and part is parts[0]) for part in parts]
        head = build_head(envs.single_action_space, trunks[0].core.output_size, config)
        normalizer = _build_normalizer(config, space) if config.normalize_obs else NoObsNormalizer()
        # Always in evaluation mode. Dropout or batch statistics would make the forward pass of an update differ from
        # the one that acted, and evaluations would change the model.
        mask_size = row.reading.mask_size if isinstance(row, FlatBox) else 0
        image_shape = _to_shape(space) if isinstance(row, FlatBox) and is_image(space) else None
        return ActorCritic(trunks, head, normalizer, mask_size, image_shape).eval()


def _seen_space(row: Box) -> Box:
    """Return the space of what encoders see of a row: without its mask, and an image in its shape."""
    if not isinstance(row, FlatBox):
        return row
    if row.image is not None:
        return row.image
    return FlatBox(row.original, replace(row.reading, mask_size=0)) if row.reading.mask_size else row


def _to_shape(space: Box) -> Shape:
    rows, columns, last = space.shape
    return rows, columns, last


def _build_normalizer(config: ModelConfig, space: Box) -> ObsNormalizer | NoObsNormalizer:
    """Build the normaliser: of every pixel for an image alone, else of all numbers but those of images."""
    if is_image(space):
        shape = _to_shape(space)
        return ImageNormalizer(shape, is_planar(shape), _pixel_scale(config, space))
    if not isinstance(space, FlatBox):
        return ObsNormalizer(space.shape)
    return ObsNormalizer((space.num_flat,), space.has_images) if space.num_flat else NoObsNormalizer()


def _split_sizes(config: ModelConfig) -> list[ModelConfig]:
    """Return the configuration of each trunk, with its own hidden sizes: one if it is shared, else actor and critic."""
    if config.shared_trunk:
        return [config]
    sizes = (config.actor_sizes, config.critic_sizes)
    return [replace(config, hidden_sizes=config.hidden_sizes if own is None else own) for own in sizes]


def build_encoder(config: ModelConfig, space: Box, is_actors: bool = False) -> nn.Module:
    """Build the configured encoder for an observation space; the actor's own does not read what is the critic's.

    Raises:
        ValueError: the encoder does not support such observations, or not this image size.
    """
    if isinstance(space, FlatBox) and (space.has_images or space.reading.critic_keys):
        return _build_keyed(config, space, is_actors)
    if not is_image(space):
        if config.encoder not in ("auto", "mlp"):
            raise ValueError(
                f"encoder is {config.encoder!r}, expected 'mlp' or 'auto': observations are vectors of "
                f"{space.shape[0]} numbers."
            )
        return MLPEncoder(space.shape[0], config.hidden_sizes, config.activation)
    return _build_conv(config, space, 1.0 if config.normalize_obs else _pixel_scale(config, space))


def _build_keyed(config: ModelConfig, space: FlatBox, is_actors: bool) -> KeyedEncoder:
    """Build an encoder for every image, and an MLP for all other keys together."""
    read = [part for part in space.parts if not (is_actors and part.is_critics)]
    flat, images = [part for part in read if part.kind != "image"], [part for part in read if part.kind == "image"]
    parts: list[tuple[slice, tuple[int, ...], nn.Module]] = []
    if flat:
        columns = slice(flat[0].begin, flat[-1].end)
        size = flat[-1].end - flat[0].begin
        parts.append((columns, (size,), MLPEncoder(size, config.hidden_sizes, config.activation)))
    for part in images:
        image = part.leaf.space
        assert isinstance(image, Box)
        encoder = _build_conv(config, image, _pixel_scale(config, image))
        parts.append((slice(part.begin, part.end), image.shape, encoder))
    return KeyedEncoder(parts)


def _build_conv(config: ModelConfig, space: Box, scale: float) -> ConvEncoder:
    obs_shape = _to_shape(space)
    if config.encoder == "mlp":
        raise ValueError(
            f"encoder is 'mlp', expected nature, a3c, minatar or auto: observations are images {list(obs_shape)}."
        )
    net = pick_net(obs_shape) if config.encoder == "auto" else cast(ConvName, config.encoder)
    return ConvEncoder(obs_shape, net, scale)


def _pixel_scale(config: ModelConfig, image: Box) -> float:
    """Return the factor for an image's numbers."""
    is_byte = image.dtype == np.uint8 and bool((image.high == 255).all())
    return config.pixel_scale or (1.0 / 255.0 if is_byte else 1.0)


def _find_encoder(config: ModelConfig) -> EncoderFactory | None:
    """Return the user's function named in the configuration, or None for one of fastac's encoders.

    Raises:
        ValueError: it cannot be imported, or is an already built module.
    """
    if config.encoder in get_args(EncoderName):
        return None
    found = find_thing("encoder", config.encoder)
    _check_unbuilt(found)
    return cast(EncoderFactory, found)


def _build_trunk(config: ModelConfig, make: EncoderFactory | None, space: Box, is_actors: bool) -> Trunk:
    """Build an encoder, with the user's function if there is one, and its core."""
    probe = torch.from_numpy(np.zeros((2, *space.shape), observation_dtype(space)))
    encoder, features = _build_own(make, space, probe) if make else _build_named(config, space, is_actors, probe)
    if features.dim() != 2 or features.shape[0] != 2:
        raise ValueError(f"the encoder maps {list(probe.shape)} to {list(features.shape)}, expected [2, D].")
    size = features.shape[1]
    return Trunk(encoder, _build_core(config, size))


def _build_core(config: ModelConfig, size: int) -> Core:
    if config.core == "lstm":
        return LSTMCore(size, config.lstm_size)
    return GRUCore(size, config.lstm_size) if config.core == "gru" else IdentityCore(size)


def _build_named(config: ModelConfig, space: Box, is_actors: bool, probe: Tensor) -> tuple[nn.Module, Tensor]:
    encoder = build_encoder(config, space, is_actors)
    return encoder, encoder(probe)


def _build_own(make: EncoderFactory, space: Box, probe: Tensor) -> tuple[nn.Module, Tensor]:
    """Call the user's function to build an encoder; return also the encoder's output for `probe`.

    Raises:
        ValueError: the function raised any exception, did not return a module, or its module returned no tensor.
    """
    try:
        encoder: object = make(space)
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"it returned {encoder!r:.60}")
        features: object = encoder(probe)
        if not isinstance(features, Tensor):
            raise TypeError(f"its module returned a {type(features).__name__}")
    except Exception as error:
        dims = ", ".join(map(str, space.shape))
        raise ValueError(
            f"encoder {name_of(make)} failed for observations of shape {space.shape}: {describe(error)}; expected a "
            f"function from an observation space to a module that maps [..., {dims}] to [..., D]."
        ) from error
    return encoder, features


@singledispatch
def build_head(space: object, input_size: int, config: ModelConfig) -> Head:
    """Build the head for an action space.

    Raises:
        ValueError: unsupported space, or a `log_std_init` that the head cannot represent.
    """
    raise ValueError(f"the action space is {space}, expected a Discrete, MultiDiscrete, MultiBinary or Box.")


@build_head.register
def _(space: Discrete, input_size: int, config: ModelConfig) -> CategoricalHead:
    return CategoricalHead(input_size, int(space.n))


@build_head.register
def _(space: MultiDiscrete, input_size: int, config: ModelConfig) -> MultiCategoricalHead:
    return MultiCategoricalHead(input_size, tuple(int(n) for n in space.nvec))


@build_head.register
def _(space: MultiBinary, input_size: int, config: ModelConfig) -> MultiCategoricalHead:
    return MultiCategoricalHead(input_size, (2,) * space.shape[0])


@build_head.register
def _(space: Box, input_size: int, config: ModelConfig) -> GaussianHead | DependentGaussianHead:
    kind = DependentGaussianHead if config.dependent_std else GaussianHead
    return kind(input_size, int(np.prod(space.shape)), config.log_std_init)
