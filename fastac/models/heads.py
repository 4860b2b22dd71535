"""Heads: map features to a distribution over actions, one class per kind of action space.

A head owns its linear layer. `params` are the outputs of that layer: logits or means. Log-probs and entropies are
summed over action dimensions, one number per row, so losses do not depend on the space. torch.distributions is not
used: at these sizes, creating and validating its objects costs more than the network's forward pass.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Generator, Tensor, nn

from fastac.models.encoders import make_linear

# A small gain makes the first policy nearly uniform (Engstrom et al. 2020, arXiv 2005.12729).
_POLICY_GAIN = 0.01
_LOG_2PI = math.log(2.0 * math.pi)

# The logit of an illegal action: its probability is 0, and so is every gradient.
ILLEGAL = -math.inf

# Bounds of log deviations that depend on the observation. A deviation of 0.007 is almost deterministic; one of 7 is
# almost uniform in bounds of 1, squashed or clipped.
LEAST_LOG_STD, MOST_LOG_STD = -5.0, 2.0
_LOG_STD_MIDDLE, _LOG_STD_REACH = 0.5 * (MOST_LOG_STD + LEAST_LOG_STD), 0.5 * (MOST_LOG_STD - LEAST_LOG_STD)


def _sample_categorical(logits: Tensor, uniform: Tensor) -> Tensor:
    """Invert the cumulative distribution: logits `[..., A]`, uniform `[...]` in [0, 1), to `[...]` int64."""
    cdf = torch.softmax(logits, dim=-1).cumsum(dim=-1)
    drawn = (cdf <= uniform.unsqueeze(-1)).sum(dim=-1)
    # Rounding may make the last entry slightly smaller than a uniform close to 1.
    return torch.minimum(drawn, last_legal(logits))


def last_legal(logits: Tensor) -> Tensor:
    """Return the last action `[...]` whose logit `[..., A]` is not that of an illegal one."""
    places = torch.arange(logits.shape[-1], device=logits.device)
    return torch.where(logits == ILLEGAL, 0, places).amax(dim=-1)


def _log_prob_entropy_categorical(logits: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    log_probs = torch.log_softmax(logits, dim=-1)  # [..., A]
    log_prob = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    probs = log_probs.exp()
    # An action of probability 0 adds 0, not 0 times -inf.
    entropy = -(probs * log_probs.masked_fill(probs == 0.0, 0.0)).sum(dim=-1)
    return log_prob, entropy


class CategoricalHead(nn.Module):
    """Discrete actions `0 .. A-1`: params are logits `[..., A]`, actions `[...]` int64."""

    def __init__(self, input_size: int, num_actions: int) -> None:
        """Build the logits layer."""
        super().__init__()
        self.layer = make_linear(input_size, num_actions, _POLICY_GAIN)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.layer(features)
        return logits

    def draw_noise(self, leading: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw uniforms `[*leading]`."""
        return torch.rand(leading, generator=generator)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Sample actions `[...]`."""
        return _sample_categorical(params, noise)

    def mode(self, params: Tensor) -> Tensor:
        """Return the arg max."""
        return params.argmax(dim=-1)

    def log_prob_entropy(self, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-prob and entropy in nats."""
        return _log_prob_entropy_categorical(params, action)


class MultiCategoricalHead(nn.Module):
    """MultiDiscrete actions: K independent categoricals; actions `[..., K]` int64."""

    def __init__(self, input_size: int, nvec: tuple[int, ...]) -> None:
        """Build one layer for all logits, `nvec[k]` of them for component k."""
        super().__init__()
        self.nvec = nvec
        self.layer = make_linear(input_size, sum(nvec), _POLICY_GAIN)

    def forward(self, features: Tensor) -> Tensor:
        """Return all logits side by side, `[..., sum(nvec)]`."""
        logits: Tensor = self.layer(features)
        return logits

    def draw_noise(self, leading: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw uniforms `[*leading, K]`."""
        return torch.rand((*leading, len(self.nvec)), generator=generator)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Sample each component."""
        parts = zip(params.split(self.nvec, dim=-1), noise.unbind(-1), strict=True)
        return torch.stack([_sample_categorical(logits, uniform) for logits, uniform in parts], dim=-1)

    def mode(self, params: Tensor) -> Tensor:
        """Return each component's arg max."""
        return torch.stack([logits.argmax(dim=-1) for logits in params.split(self.nvec, dim=-1)], dim=-1)

    def log_prob_entropy(self, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the log-probs and entropies of the components, which are independent."""
        parts = zip(params.split(self.nvec, dim=-1), action.unbind(-1), strict=True)
        terms = [_log_prob_entropy_categorical(logits, chosen) for logits, chosen in parts]
        log_probs, entropies = zip(*terms, strict=True)
        return torch.stack(log_probs).sum(dim=0), torch.stack(entropies).sum(dim=0)


class GaussianHead(nn.Module):
    """Box actions: a diagonal Gaussian with a state-independent deviation; actions `[..., A]`.

    Samples are unbounded; the rollout stores them and their log-probs unchanged. They are clipped or squashed only on
    the way to the environment, so log-probs stay exact.
    """

    def __init__(self, input_size: int, action_size: int, log_std_init: float) -> None:
        """Build the mean layer and the `log_std` parameter `[A]`."""
        super().__init__()
        self.layer = make_linear(input_size, action_size, _POLICY_GAIN)
        self.log_std = nn.Parameter(torch.full((action_size,), log_std_init))

    def forward(self, features: Tensor) -> Tensor:
        """Return means."""
        mean: Tensor = self.layer(features)
        return mean

    def draw_noise(self, leading: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw standard normals `[*leading, A]`."""
        return torch.randn((*leading, self.log_std.shape[0]), generator=generator)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Shift and scale the noise."""
        return params + self.log_std.exp() * noise

    def mode(self, params: Tensor) -> Tensor:
        """Return the means."""
        return params

    def log_prob_entropy(self, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the log-probs and entropies of the dimensions, which are independent."""
        z = (action - params) * (-self.log_std).exp()  # [..., A]
        log_prob = (-0.5 * (z.square() + _LOG_2PI) - self.log_std).sum(dim=-1)
        entropy = (0.5 * (1.0 + _LOG_2PI) + self.log_std).sum()
        return log_prob, entropy.expand(log_prob.shape)


class DependentGaussianHead(nn.Module):
    """Box actions: a diagonal Gaussian whose deviation depends on the observation; actions `[..., A]`.

    Params are `[..., 2A]`: A means, then A inputs of the log deviations. A tanh with slope 1 in the middle bounds log
    deviations between -5 and 2. A hard clip would have no gradient outside the bounds, so a policy could not
    return from there.
    """

    def __init__(self, input_size: int, action_size: int, log_std_init: float) -> None:
        """Build one layer for both; its bias sets all initial log deviations close to `log_std_init`."""
        super().__init__()
        if not LEAST_LOG_STD < log_std_init < MOST_LOG_STD:
            raise ValueError(
                f"log_std_init is {log_std_init}, expected a number above {LEAST_LOG_STD:g} and below "
                f"{MOST_LOG_STD:g} with dependent_std, which holds log deviations between these."
            )
        self.layer = make_linear(input_size, 2 * action_size, _POLICY_GAIN)
        share = (log_std_init - _LOG_STD_MIDDLE) / _LOG_STD_REACH
        with torch.no_grad():
            self.layer.bias[action_size:] = _LOG_STD_MIDDLE + _LOG_STD_REACH * math.atanh(share)

    def forward(self, features: Tensor) -> Tensor:
        """Return means and the inputs of the log deviations."""
        params: Tensor = self.layer(features)
        return params

    def draw_noise(self, leading: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw standard normals `[*leading, A]`."""
        return torch.randn((*leading, self.layer.out_features // 2), generator=generator)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Shift and scale the noise."""
        mean, log_std = self.split(params)
        return mean + log_std.exp() * noise

    def mode(self, params: Tensor) -> Tensor:
        """Return the means."""
        return self.split(params)[0]

    def log_prob_entropy(self, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the log-probs and entropies of the dimensions, which are independent."""
        mean, log_std = self.split(params)
        z = (action - mean) * (-log_std).exp()  # [..., A]
        log_prob = (-0.5 * (z.square() + _LOG_2PI) - log_std).sum(dim=-1)
        return log_prob, (0.5 * (1.0 + _LOG_2PI) + log_std).sum(dim=-1)

    def split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and log deviations, `[..., A]` each."""
        mean, free = params.chunk(2, dim=-1)
        return mean, _LOG_STD_MIDDLE + _LOG_STD_REACH * torch.tanh((free - _LOG_STD_MIDDLE) / _LOG_STD_REACH)


# All have the same five methods: forward, draw_noise, sample, mode and log_prob_entropy.
Head: TypeAlias = CategoricalHead | MultiCategoricalHead | GaussianHead | DependentGaussianHead
