"""Running normalisation of observations (a layer of the model) and of rewards (for learning only).

Statistics are float64. They are updated between rollouts, from valid rows only, and constant within a rollout, so
acting and learning see the same inputs. They are buffers, so they are saved with the weights, and evaluation cannot
change them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastac.contract import Group
from fastac.kernels import column_moments, discounted_moments, pixel_moments

_EPS = 1e-8
_PIXEL_EPS = 0.01**2  # of a scaled pixel's variance: one that has not changed yet is not divided by zero
CLIP = 10  # limit of normalised values


class RunningMoments(nn.Module):
    """Mean and variance of all rows so far (Chan, Golub and LeVeque 1979), float64."""

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Start with mean 0, variance 1 and count 0."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def merge(self, name: str, parts: NDArray[np.float64], group: Group) -> None:
        """Merge the moments of new rows: those of this worker's shards, as `dump` has them, and the other workers'.

        Args:
            name: identifies these statistics in the group.
            parts: `[L, 1 + 2 * D]`, by shard of this worker.
            group: all shards.
        """
        self.load(group.merge_statistics(name, self.dump(), parts, merge_moments))

    def dump(self) -> NDArray[np.float64]:
        """Return count, mean and variance, `[1 + 2 * D]`."""
        return np.concatenate([part.cpu().numpy().reshape(-1) for part in (self.count, self.mean, self.var)])

    def load(self, moments: NDArray[np.float64]) -> None:
        """Load an array from `dump`."""
        begin_var = 1 + self.mean.numel()
        parts = moments[:1], moments[1:begin_var], moments[begin_var:]
        for kept, part in zip((self.count, self.mean, self.var), parts, strict=True):
            if kept.is_cuda:
                kept.copy_(torch.from_numpy(part).view(kept.shape))
            else:
                kept.numpy()[...] = part.reshape(kept.shape)  # a tenth of torch's time


def merge_moments(known: NDArray[np.float64], part: NDArray[np.float64]) -> NDArray[np.float64]:
    """Merge counts, means and variances of disjoint rows, `[1 + 2 * D]` each (Chan, Golub and LeVeque 1979)."""
    if not part[0]:
        return known
    if not known[0]:
        return part.copy()
    total = known[0] + part[0]
    (mean, var), (its_mean, its_var) = known[1:].reshape(2, -1), part[1:].reshape(2, -1)
    delta = its_mean - mean
    square_sum = var * known[0] + its_var * part[0] + delta**2 * (known[0] * part[0] / total)
    return np.concatenate([[total], mean + delta * (part[0] / total), square_sum / total])


class ObsNormalizer(nn.Module):
    """Standardises observations and clips them to +-10; the shape `[..., *obs_shape]` is unchanged.

    Of rows with images behind the numbers, only the first columns are standardised; images have a scale.
    """

    def __init__(self, obs_shape: tuple[int, ...], has_images: bool = False) -> None:
        """Start as the identity (except for the clipping); with `has_images`, rows are wider than `obs_shape` `[D]`."""
        super().__init__()
        self.moments, self._has_images = RunningMoments(obs_shape), has_images
        self._width = obs_shape[0] if has_images else 0

    def forward(self, obs: Tensor) -> Tensor:
        """Normalise with the current statistics."""
        mean, scale = self.constants()
        if not self._has_images:
            return ((obs - mean) * scale).clamp(-CLIP, CLIP)
        standard = ((obs[..., : self._width] - mean) * scale).clamp(-CLIP, CLIP)
        return torch.cat([standard, obs[..., self._width :].float()], dim=-1)

    def constants(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the factor that `forward` currently applies, float32 `[*obs_shape]` each."""
        return self.moments.mean.float(), (self.moments.var + _EPS).rsqrt().float()

    def update(self, parts: Sequence[tuple[Tensor, Tensor]], group: Group) -> None:
        """Add observations to the statistics, and those of the other workers.

        Args:
            parts: by shard of this worker, `obs` `[T, N, *obs_shape]`, on the CPU, perhaps with images and masks behind
                them, and which rows count, `[T, N]`.
            group: all shards.
        """
        moments = torch.empty(len(parts), 1 + 2 * self.moments.mean.numel(), dtype=torch.float64)
        for (obs, valid), part in zip(parts, moments, strict=True):
            self._measure(obs.flatten(0, 1).flatten(1), valid.flatten(), part)
        self.moments.merge("obs", moments.numpy(), group)

    def _measure(self, rows: Tensor, valid: Tensor, moments: Tensor) -> None:
        """Write the moments `[1 + 2 * D]` of the rows `[M, D or more]` that count `[M]`."""
        width = self.moments.mean.numel()
        if rows.shape[1] > width:
            rows = rows[:, :width].contiguous()
        column_moments(rows.float(), valid, moments)  # no copy if they are float32


class ImageNormalizer(ObsNormalizer):
    """Standardises every pixel of images by its own statistics and clips it to +-10.

    What seldom moves, such as a ball of a few pixels before a background, becomes large, and the background becomes
    zero. Channels that are planes (`[C, H, W]`, such as stacked frames) have the same statistics.
    """

    def __init__(self, obs_shape: tuple[int, int, int], is_planar: bool, scale: float) -> None:
        """Start with mean 0 and deviation `1 / scale`.

        Args:
            obs_shape: `(C, H, W)` with `is_planar`, else `(H, W, C)`.
            is_planar: whether channels are planes.
            scale: factor that pixels would have without statistics; a deviation counts as at least 0.01 / scale.
        """
        super().__init__(obs_shape[1:] if is_planar else obs_shape)
        self._size, self._scale = math.prod(obs_shape), scale
        self.moments.var.fill_(scale**-2)

    def forward(self, obs: Tensor) -> Tensor:
        """Normalise images `[..., *obs_shape]` with the current statistics."""
        mean, factor = self.constants()
        return ((obs - mean) * factor).clamp(-CLIP, CLIP)

    def constants(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the factor of every pixel, float32 `[H, W]` or `[H, W, C]`."""
        return self.moments.mean.float(), (self.moments.var + _PIXEL_EPS * self._scale**-2).rsqrt().float()

    def _measure(self, rows: Tensor, valid: Tensor, moments: Tensor) -> None:
        """See `ObsNormalizer`; rows are single frames, or whole observations with perhaps a mask behind them."""
        pixels = self.moments.mean.numel()
        if rows.shape[1] > self._size:
            rows = rows[:, : self._size].contiguous()
        planes = rows.reshape(-1, pixels)
        counts = valid.repeat_interleave(len(planes) // len(valid))
        if planes.dtype == torch.uint8:
            pixel_moments(planes, counts, moments)
        else:
            column_moments(planes.float(), counts, moments)


class RewardNormalizer(nn.Module):
    """Divides rewards by the running standard deviation of the discounted return, and clips them to +-10.

    Attributes:
        moments: of the discounted returns, of all shards.
        running: `[N]` float64, the discounted return of the running episode of each env of a shard.
    """

    running: Tensor

    def __init__(self, num_envs: int, gamma: float, moments: RunningMoments | None = None) -> None:
        """Start with a deviation of 1; shards of one worker have the same `moments`."""
        super().__init__()
        self.gamma = gamma
        self.moments = moments or RunningMoments(())
        self.register_buffer("running", torch.zeros(num_envs, dtype=torch.float64))
        self._scaled = torch.empty(0)

    def measure(self, reward: Tensor, valid: Tensor, done: Tensor) -> NDArray[np.float64]:
        """Go on with the returns by a rollout's rewards `[T, N]`; return the moments of its rows, for `merge`."""
        part = torch.empty(3, dtype=torch.float64)
        discounted_moments(reward, valid, done, self.gamma, self.running, part)
        return part.numpy()

    def forward(self, reward: Tensor) -> Tensor:
        """Return the rewards `[T, N]` scaled; the next call overwrites them if its rewards have the same shape."""
        self._scaled = _same_shape(self._scaled, reward)
        return torch.mul(reward, (self.moments.var + _EPS).rsqrt().float(), out=self._scaled).clamp_(-CLIP, CLIP)

    def restart_episodes(self) -> None:
        """Reset the running returns; the statistics stay."""
        self.running.zero_()


def _same_shape(kept: Tensor, wanted: Tensor) -> Tensor:
    """Return `kept`, or a new tensor if `wanted` has another shape: calls are prepared for memory that stays."""
    return kept if kept.shape == wanted.shape else torch.empty_like(wanted)


class RewardClipper(nn.Module):
    """Clips rewards to [-1, 1] (Mnih et al. 2015), so one learning rate fits games with very different scores."""

    def __init__(self) -> None:
        """Allocate nothing yet."""
        super().__init__()
        self._clipped = torch.empty(0)

    def forward(self, reward: Tensor) -> Tensor:
        """Return a clipped copy of `reward`; the next call overwrites it if its rollout has the same shape."""
        self._clipped = _same_shape(self._clipped, reward)
        return torch.clamp(reward, -1.0, 1.0, out=self._clipped)

    def restart_episodes(self) -> None:
        """Do nothing."""


class NoObsNormalizer(nn.Module):
    """Leaves observations unchanged."""

    def forward(self, obs: Tensor) -> Tensor:
        """Return `obs`."""
        return obs

    def update(self, parts: Sequence[tuple[Tensor, Tensor]], group: Group) -> None:
        """Do nothing."""


class NoRewardNormalizer(nn.Module):
    """Leaves rewards unchanged."""

    def forward(self, reward: Tensor) -> Tensor:
        """Return `reward`."""
        return reward

    def restart_episodes(self) -> None:
        """Do nothing."""


RewardScaler: TypeAlias = RewardNormalizer | RewardClipper | NoRewardNormalizer
