"""A network for the environments' spaces: trunks, a head by action space, normalisers; and weights loaded into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import singledispatch
from typing import TypeAlias, cast, get_args

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space
from torch import nn

from fastac.config import EncoderName, ModelConfig
from fastac.contract import HasSpaces
from fastac.envs import is_image, observation_dtype
from fastac.envs.importing import find_thing, is_unnamed, name_of
from fastac.models import (
    ActorCritic,
    CategoricalHead,
    ConvEncoder,
    DependentGaussianHead,
    GaussianHead,
    Head,
    IdentityCore,
    LSTMCore,
    MLPEncoder,
    MultiCategoricalHead,
    NoObsNormalizer,
    ObsNormalizer,
    Trunk,
    pick_net,
)
from fastac.models.encoders import ConvName

# Builds an encoder for observations of a space; the module maps `[..., *obs_shape]` to `[..., D]`.
EncoderFactory: TypeAlias = Callable[["Space[np.ndarray]"], nn.Module]


def name_encoder(encoder: str | EncoderFactory | None) -> tuple[str | None, EncoderFactory | None]:
    """Return how a configuration records an encoder, and itself where the name is not enough.

    Raises:
        ValueError: it is neither a name nor a function.
    """
    if encoder is None or isinstance(encoder, str):
        return encoder, None
    if not callable(encoder):
        raise ValueError(f"encoder is {encoder!r}, expected a name, or a function that returns an nn.Module.")
    name = name_of(encoder)
    return name, encoder if is_unnamed(name) else None


@contextmanager
def single_thread() -> Iterator[None]:
    """Give torch one thread: faster for small networks, and results do not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build_model(
    config: ModelConfig, envs: HasSpaces, seed: int = 0, encoder: EncoderFactory | None = None
) -> ActorCritic:
    """Build the network for the environments' spaces, initialised from `seed` without touching torch's CPU stream.

    Raises:
        ValueError: settings that do not go with the spaces, or an encoder of other observations.
    """
    space = envs.single_observation_space
    assert isinstance(space, Box)  # envs/ let nothing else through
    if config.normalize_obs and is_image(space):
        raise ValueError(
            f"normalize_obs is True, expected False: observations are images {list(space.shape)}, and only vectors "
            "are normalised by their statistics."
        )
    if config.dependent_std and not isinstance(envs.single_action_space, Box):
        raise ValueError(
            f"dependent_std is True, expected False: the action space is {envs.single_action_space}, and only the "
            "actions of a Box have a deviation."
        )
    with torch.random.fork_rng(devices=[]), single_thread():
        torch.manual_seed(seed)
        make = encoder or (lambda _: build_encoder(config, space))
        trunks = [_build_trunk(config, make(space), space) for _ in range(1 if config.shared_trunk else 2)]
        head = build_head(envs.single_action_space, trunks[0].core.output_size, config)
        normalizer = ObsNormalizer(space.shape) if config.normalize_obs else NoObsNormalizer()
        # In evaluation mode for good: with dropout, or statistics of the batch, the forward that learns
        # would differ from the one that acted, and evaluations would change the model.
        return ActorCritic(trunks, head, normalizer).eval()


def build_encoder(config: ModelConfig, space: Box) -> nn.Module:
    """Build the encoder for an observation space.

    Raises:
        ValueError: the encoder is for other observations, or for larger images, or cannot be imported.
    """
    if config.encoder not in get_args(EncoderName):
        return cast(EncoderFactory, find_thing("encoder", config.encoder))(space)
    if not is_image(space):
        if config.encoder not in ("auto", "mlp"):
            raise ValueError(
                f"encoder is {config.encoder!r}, expected 'mlp' or 'auto': observations are vectors of "
                f"{space.shape[0]} numbers."
            )
        return MLPEncoder(space.shape[0], config.hidden_sizes, config.activation)
    rows, columns, last = space.shape
    obs_shape = rows, columns, last
    if config.encoder == "mlp":
        raise ValueError(
            f"encoder is 'mlp', expected nature, a3c, minatar or auto: observations are images {list(obs_shape)}."
        )
    net = pick_net(obs_shape) if config.encoder == "auto" else cast(ConvName, config.encoder)
    is_byte = space.dtype == np.uint8 and bool((space.high == 255).all())
    return ConvEncoder(obs_shape, net, 1.0 / 255.0 if is_byte else 1.0)


def _build_trunk(config: ModelConfig, encoder: nn.Module, space: Box) -> Trunk:
    probe = np.zeros((2, *space.shape), observation_dtype(space))
    features = encoder(torch.from_numpy(probe))
    if features.dim() != 2 or features.shape[0] != 2:
        raise ValueError(f"the encoder maps {list(probe.shape)} to {list(features.shape)}, expected [2, D].")
    size = features.shape[1]
    core = LSTMCore(size, config.lstm_size) if config.core == "lstm" else IdentityCore(size)
    return Trunk(encoder, core)


@singledispatch
def build_head(space: object, input_size: int, config: ModelConfig) -> Head:
    """Build the head for an action space.

    Raises:
        ValueError: a space without a head, or a `log_std_init` that the head cannot hold.
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
