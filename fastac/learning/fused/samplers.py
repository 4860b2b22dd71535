"""Samplers without autograd for each kind of head, on buffers of a fused network."""

from __future__ import annotations

from functools import partial

import torch
from torch import Generator, Tensor

from fastac.kernels import Op, sample_categorical, sample_gaussian
from fastac.models import CategoricalHead, GaussianHead, Head


class PlainSampler:
    """Copies the results of any head's own sampling into place."""

    def __init__(self, head: Head) -> None:
        """Store the head."""
        self._head = head

    def draw_noise(self, leading: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw the head's noise."""
        return self._head.draw_noise(leading, generator)

    def prepare(self, params: Tensor, noise: Tensor, action: Tensor, log_prob: Tensor) -> Op:
        """See `Sampler`."""
        return partial(self._sample, params, noise, action, log_prob)

    @torch.no_grad()
    def _sample(self, params: Tensor, noise: Tensor, action: Tensor, log_prob: Tensor) -> None:
        action.copy_(self._head.sample(params, noise))
        log_prob.copy_(self._head.log_prob_entropy(params, action)[0])


class CategoricalSampler(PlainSampler):
    """A single kernel computes actions and log-probs from logits."""

    def __init__(self, head: CategoricalHead, num_envs: int) -> None:
        """Store the head; allocate entropies of up to `num_envs` rows, which the kernel writes and acting ignores."""
        super().__init__(head)
        self._entropy = torch.empty(num_envs, device=head.layer.weight.device)

    def prepare(self, params: Tensor, noise: Tensor, action: Tensor, log_prob: Tensor) -> Op:
        """See `Sampler`."""
        return sample_categorical.prepare(params, noise, action, log_prob, self._entropy[: len(params)])


class GaussianSampler(PlainSampler):
    """A single kernel computes actions and log-probs from means, with deviations that are parameters."""

    def __init__(self, head: GaussianHead) -> None:
        """Store the head."""
        super().__init__(head)
        self._log_std = head.log_std.detach()

    def prepare(self, params: Tensor, noise: Tensor, action: Tensor, log_prob: Tensor) -> Op:
        """See `Sampler`."""
        return sample_gaussian.prepare(params, self._log_std, noise, action, log_prob)
