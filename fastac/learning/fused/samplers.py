"""Samplers without autograd for each kind of head, on buffers of a fused network."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fastac.kernels import sample_categorical
from fastac.models import CategoricalHead, Head


class PlainSampler:
    """Copies the results of any head's own sampling into place."""

    def __init__(self, head: Head) -> None:
        """Store the head."""
        self._head = head

    def draw_noise(self, leading: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw the head's noise."""
        return self._head.draw_noise(leading, generator)

    @torch.no_grad()
    def sample(self, params: Tensor, noise: Tensor, action: Tensor, log_prob: Tensor) -> None:
        """See `Sampler`."""
        action.copy_(self._head.sample(params, noise))
        log_prob.copy_(self._head.log_prob_entropy(params, action)[0])


class CategoricalSampler(PlainSampler):
    """A single kernel computes actions and log-probs from logits."""

    def __init__(self, head: CategoricalHead, num_envs: int) -> None:
        """Store the head; allocate entropies `[N]`, which the kernel writes and acting ignores."""
        super().__init__(head)
        self._entropy = torch.empty(num_envs, device=head.layer.weight.device)

    def sample(self, params: Tensor, noise: Tensor, action: Tensor, log_prob: Tensor) -> None:
        """See `Sampler`."""
        sample_categorical(params, noise, action, log_prob, self._entropy)
