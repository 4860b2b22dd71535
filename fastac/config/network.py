"""The settings of the policy's network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fastac.config.values import check, check_choice

EncoderName = Literal["auto", "mlp", "nature", "a3c", "minatar"]
ActivationName = Literal["relu", "tanh", "elu", "gelu", "silu"]
CoreName = Literal["identity", "lstm", "gru"]


@dataclass(frozen=True)
class ModelConfig:
    """Encoder -> core -> heads, and the normalisers that are saved with them."""

    encoder: str = "auto"
    """Encoder: auto; mlp; for images nature (Mnih 2015), a3c (Mnih 2016), minatar (small images); module:name."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Widths of an mlp's hidden layers; the lecture uses 128 128."""
    actor_sizes: tuple[int, ...] | None = None
    """Widths of the actor's own hidden layers if trunks are not shared; None: hidden_sizes."""
    critic_sizes: tuple[int, ...] | None = None
    """Widths of the critic's own hidden layers if trunks are not shared; None: hidden_sizes."""
    activation: ActivationName = "relu"
    """Nonlinearity between layers."""
    shared_trunk: bool = True
    """One trunk for actor and critic (as in the lecture), instead of one network each."""
    core: CoreName = "identity"
    """Core after the encoder: identity (feed-forward), lstm or gru (recurrent)."""
    lstm_size: int = 128
    """Hidden units of an lstm or gru core."""
    log_std_init: float = 0.0
    """Initial log standard deviation of Gaussian actions."""
    dependent_std: bool = False
    """Box actions: compute the standard deviation from the observation, instead of learning it as a parameter."""
    normalize_obs: bool = False
    """Standardise observations with running statistics saved in the model; an image alone pixel by pixel."""
    normalize_reward: bool = False
    """Scale rewards by the running standard deviation of the discounted return."""
    pixel_scale: float | None = None
    """Factor for images (standardised: the start); None: 1/255 for bytes up to 255, else 1; 0.1 for symbols to 10."""

    def __post_init__(self) -> None:
        """Validate the section."""
        names = get_args(EncoderName)
        is_name = self.encoder in names or ":" in self.encoder
        check(is_name, "encoder", self.encoder, f"one of {', '.join(names)}, or module:function")
        for name in ("hidden_sizes", "actor_sizes", "critic_sizes"):
            sizes = getattr(self, name)
            check(all(s >= 1 for s in sizes or ()), name, sizes, "sizes of at least 1")
            if name != "hidden_sizes" and self.shared_trunk:
                check(sizes is None, name, sizes, "None with shared_trunk True: give --shared-trunk False")
        check_choice("activation", self.activation, ActivationName)
        check_choice("core", self.core, CoreName)
        check(self.lstm_size >= 1, "lstm_size", self.lstm_size, "at least 1")
        check(-20.0 <= self.log_std_init <= 2.0, "log_std_init", self.log_std_init, "a number from -20 to 2")
        if self.pixel_scale is not None:
            check(0.0 < self.pixel_scale < math.inf, "pixel_scale", self.pixel_scale, "above 0, or None")

    @property
    def is_recurrent(self) -> bool:
        """Whether the core has a state, so that minibatches are whole sequences."""
        return self.core != "identity"
