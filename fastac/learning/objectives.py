"""Objectives: compute the gradient at the model's outputs from those outputs and a batch.

An objective writes the gradient with respect to the distribution parameters and the value. It does not matter to
the objective whether autograd or a hand-written backward pass continues from there. A new loss is a `PolicyLoss`
(see `fastac.learning.losses`); `PlainObjective` turns it into an objective for every head and model.
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
    """Coefficients of one objective: the weights of a batch's rows and terms.

    Attributes:
        inverse_count: 1 / number of valid rows in the whole batch, summed over all workers.
        shift: advantage used = (advantage - shift) * scale.
        scale: see `shift`; (0, 1) means not normalised.
        vf_coef: weight of the value loss.
        ent_coef: weight of the entropy.
        clip_coef: the clipping range, for clipped losses.
    """

    inverse_count: float
    shift: float
    scale: float
    vf_coef: float
    ent_coef: float
    clip_coef: float

    @property
    def numbers(self) -> tuple[float, float, float, float, float, float]:
        """Return all coefficients in the order in which the kernels take them."""
        return self.inverse_count, self.shift, self.scale, self.vf_coef, self.ent_coef, self.clip_coef


class Objective(Protocol):
    """Computes the gradient at the model's outputs for a batch."""

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
            params: `[M, P]`, the distribution parameters returned by the head.
            value: `[M]`.
            batch: M rows.
            coefs: the coefficients.
            d_params: `[M, P]`, written.
            d_value: `[M]`, written.
            terms: `[5]` float64, see `TERMS`; added to. Gradients of the head's own parameters are added to as well.
        """


class Gradient(Protocol):
    """Differentiates the objective of a batch."""

    def __call__(self, batch: Batch, coefs: Coefs, is_fresh: bool) -> Tensor:
        """Compute the gradient of the parameters; return the terms `[5]` float64, as named in `TERMS`.

        Every `p.grad` is a view of one flat vector made by `optimizer.flatten`. The gradient is written there.

        Args:
            batch: the rows, on the CPU.
            coefs: the coefficients of the objective.
            is_fresh: the batch is the last rollout, and the parameters have not changed since it was collected.
        """


class Scored(Protocol):
    """A head that computes log-probs and entropies of actions."""

    def log_prob_entropy(self, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probs and entropies `[...]` of actions."""


class PlainObjective:
    """Any head and any loss with torch operators and autograd; tests compare the kernels with it."""

    def __init__(self, head: Scored, loss: PolicyLoss) -> None:
        """Store the head and the algorithm's loss."""
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
        # float64, because scaling would magnify the float32 rounding error of equal advantages to about 1.
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
            d.zero_() if leaf.grad is None else d.copy_(leaf.grad)  # a loss may ignore one of them
        terms.add_(torch.stack([getattr(found, name).detach().double() for name in TERMS]))


class CategoricalObjective:
    """Categorical actions: a kernel computes the policy gradient or PPO's clipped surrogate."""

    def __init__(self, surrogate: Surrogate) -> None:
        """Choose the surrogate."""
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
    """Gaussian actions with a state-independent deviation, computed by a kernel; see `CategoricalObjective`."""

    def __init__(self, head: GaussianHead, surrogate: Surrogate) -> None:
        """Store the head and the surrogate.

        Build the optimizer first: its `flatten` makes every `p.grad` a view of one flat vector, and the objective
        keeps the view of `log_std`.
        """
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
