"""How each kind of head samples and is learned from without autograd, on buffers of a fused network."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fastac.kernels import categorical_loss, gaussian_loss, sample_categorical
from fastac.learning.autograd import Coefs, Objective
from fastac.models import CategoricalHead, GaussianHead, Head
from fastac.rollout import Batch


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


class PlainFusedObjective:
    """Any head, by autograd over the objective alone: its graph ends at the head's output."""

    def __init__(self, objective: Objective) -> None:
        """Take the objective as written for autograd."""
        self._objective = objective

    def __call__(
        self,
        params: Tensor,
        value: Tensor,
        batch: Batch,
        coefs: Coefs,
        d_params: Tensor,
        d_value: Tensor,
        terms: Tensor,
    ) -> None:
        """See `FusedObjective`."""
        params, value = params.detach().requires_grad_(), value.detach().requires_grad_()
        total, these = self._objective(params, value, batch, coefs)
        total.backward()
        for leaf, d in ((params, d_params), (value, d_value)):
            d.zero_() if leaf.grad is None else d.copy_(leaf.grad)  # a loss need not use both
        terms.add_(these)


class CategoricalFusedObjective:
    """Logits, with the fused kernel, which computes the policy gradient or PPO's clipped surrogate."""

    def __init__(self, clips: bool) -> None:
        """Say which: whether it clips."""
        self._clips = clips

    def __call__(
        self,
        params: Tensor,
        value: Tensor,
        batch: Batch,
        coefs: Coefs,
        d_params: Tensor,
        d_value: Tensor,
        terms: Tensor,
    ) -> None:
        """See `FusedObjective`."""
        rows = (batch.action, batch.log_prob, batch.advantage, batch.return_, batch.valid)
        clip_coef = coefs.clip_coef if self._clips else None
        categorical_loss(params, value, *rows, *coefs.weights, clip_coef, d_params, d_value, terms)


class GaussianFusedObjective:
    """Means and a state-independent deviation, with the fused kernel: see `CategoricalFusedObjective`."""

    def __init__(self, head: GaussianHead, clips: bool) -> None:
        """Take the head, whose `log_std` has a gradient already."""
        self._clips = clips
        assert head.log_std.grad is not None, "flatten the parameters first"
        self._log_std, self._d_log_std = head.log_std.detach(), head.log_std.grad

    def __call__(
        self,
        params: Tensor,
        value: Tensor,
        batch: Batch,
        coefs: Coefs,
        d_params: Tensor,
        d_value: Tensor,
        terms: Tensor,
    ) -> None:
        """See `FusedObjective`."""
        rows = (batch.action, batch.log_prob, batch.advantage, batch.return_, batch.valid)
        gaussian_loss(
            params,
            self._log_std,
            value,
            *rows,
            *coefs.weights,
            coefs.clip_coef if self._clips else None,
            d_params,
            self._d_log_std,
            d_value,
            terms,
        )
