"""What is minimised: a batch and what the model says about it, in; the gradient at the model's outputs, out.

An objective writes the gradient with respect to the distribution's parameters and to the value. Where that goes from
there, by autograd or by a backward pass of our own, is no concern of it: a new loss is a `PolicyLoss` (see
`fastac.learning.losses`), and `PlainObjective` makes an objective of it for every head and model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastac.kernels import Surrogate, categorical_loss, gaussian_loss
from fastac.learning.losses import PolicyLoss
from fastac.models import GaussianHead
from fastac.rollout import Batch

TERMS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")


@dataclass(frozen=True, slots=True)
class Coefs:
    """What turns a batch into one number to minimise.

    Attributes:
        inverse_count: 1 over the valid rows of the whole batch, the other workers' among them.
        shift: taken off every advantage; then
        scale: multiplies it. 0 and 1 leave it as estimated.
        vf_coef: weight of the value loss.
        ent_coef: weight of the entropy.
        clip_coef: the clipping range, for losses that clip.
    """

    inverse_count: float
    shift: float
    scale: float
    vf_coef: float
    ent_coef: float
    clip_coef: float

    @property
    def numbers(self) -> tuple[float, float, float, float, float, float]:
        """All, in the order in which the kernels take them."""
        return self.inverse_count, self.shift, self.scale, self.vf_coef, self.ent_coef, self.clip_coef


class Objective(Protocol):
    """Joins what the model says and what the batch holds."""

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
        """Write the gradient at the model's outputs.

        Args:
            params: `[M, P]`, the distribution's parameters as the head gives them.
            value: `[M]`.
            batch: of as many rows.
            coefs: the weights.
            d_params: `[M, P]`, is written.
            d_value: `[M]`, is written.
            terms: `[5]` float64, see `TERMS`; is added to. So are the gradients of the head's own parameters.
        """


class Gradient(Protocol):
    """Differentiates the objective of a batch."""

    def __call__(self, batch: Batch, coefs: Coefs, is_fresh: bool) -> Tensor:
        """Write the gradient into that of the parameters; return the terms `[5]` float64, as named in `TERMS`.

        Args:
            batch: the rows, on the CPU.
            coefs: the objective.
            is_fresh: the batch is the rollout just collected, and the parameters are those that acted.
        """


class Scored(Protocol):
    """A head that scores actions."""

    def log_prob_entropy(self, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probs and entropies `[...]` of actions."""


class PlainObjective:
    """Any head and any loss, with torch's operators and autograd: what the kernels are held to."""

    def __init__(self, head: Scored, loss: PolicyLoss) -> None:
        """Take the head and the algorithm's loss."""
        self._head, self._loss = head, loss

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
        """See `Objective`."""
        params, value = params.detach().requires_grad_(), value.detach().requires_grad_()
        log_prob, entropy = self._head.log_prob_entropy(params, batch.action)
        # In float64: the rounding of equal float32 advantages would otherwise be scaled up to size one.
        advantage = ((batch.advantage.double() - coefs.shift) * coefs.scale).float()
        weight = batch.valid * coefs.inverse_count
        found = self._loss(
            log_prob,
            entropy,
            value,
            batch.log_prob,
            advantage,
            batch.return_,
            weight.float(),
            coefs.vf_coef,
            coefs.ent_coef,
            coefs.clip_coef,
        )
        found.total.backward()
        for leaf, d in ((params, d_params), (value, d_value)):
            d.zero_() if leaf.grad is None else d.copy_(leaf.grad)  # a loss need not use both
        terms.add_(torch.stack([getattr(found, name).detach().double() for name in TERMS]))


class CategoricalObjective:
    """Logits, with a kernel, which computes the policy gradient or PPO's clipped surrogate."""

    def __init__(self, surrogate: Surrogate) -> None:
        """Say which."""
        self._surrogate = surrogate

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
        """See `Objective`."""
        rows = (batch.action, batch.log_prob, batch.advantage, batch.return_, batch.valid)
        categorical_loss(params, value, *rows, self._surrogate, *coefs.numbers, d_params, d_value, terms)


class GaussianObjective:
    """Means and a state-independent deviation, with a kernel: see `CategoricalObjective`."""

    def __init__(self, head: GaussianHead, surrogate: Surrogate) -> None:
        """Take the head, whose `log_std` has a gradient already: the optimiser's, which comes first."""
        self._surrogate = surrogate
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
        """See `Objective`."""
        rows = (batch.action, batch.log_prob, batch.advantage, batch.return_, batch.valid)
        gaussian_loss(
            params,
            self._log_std,
            value,
            *rows,
            self._surrogate,
            *coefs.numbers,
            d_params,
            self._d_log_std,
            d_value,
            terms,
        )
