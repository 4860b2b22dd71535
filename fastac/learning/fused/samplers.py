"""How each kind of head samples without autograd, on buffers of a fused network."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fastac.kernels import sample_categorical
from fastac.models import CategoricalHead, Head


class PlainSampler:
    """Any head's own sampling, copied into place."""

    def __init__(self, head: Head) -> None:
        """Take the head."""
        self._head = head

    def draw_noise(self, leading: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw as the head does."""
        return self._head.draw_noise(leading, generator)

    @torch.no_grad()
    def sample(self, params: Tensor, noise: Tensor, action: Tensor, log_prob: Tensor) -> None:
        """See `Sampler`."""
        action.copy_(self._head.sample(params, noise))
        log_prob.copy_(self._head.log_prob_entropy(params, action)[0])


class CategoricalSampler(PlainSampler):
    """One kernel from logits to actions and log-probs."""

    def __init__(self, head: CategoricalHead, num_envs: int) -> None:
        """Take the head; the entropies `[N]`, which acting has no use for, are overwritten every step."""
        super().__init__(head)
        self._entropy = torch.empty(num_envs, device=head.layer.weight.device)

    def sample(self, params: Tensor, noise: Tensor, action: Tensor, log_prob: Tensor) -> None:
        """See `Sampler`."""
        sample_categorical(params, noise, action, log_prob, self._entropy)
