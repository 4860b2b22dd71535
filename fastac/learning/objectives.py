"""Objectives: compute the gradient at the model's outputs from those outputs and a batch.

An objective writes the gradient with respect to the distribution parameters and the value. It does not matter to
the objective whether autograd or a hand-written backward pass continues from there. A new loss is a `PolicyLoss`
(see `fastac.learning.losses`); `PlainObjective` turns it into an objective for every head and model.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from fastac.kernels import Op, Surrogate, categorical_loss, gaussian_loss
from fastac.learning.losses import PolicyLoss
from fastac.models import GaussianHead
from fastac.rollout import Batch

TERMS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")


class Coefs:
    """Coefficients of an objective: the weights of a batch's rows and terms. They change between updates.

    Attributes:
        weights: `[3]` float64: 1 / number of valid rows in the whole batch, summed over all workers; shift and scale of
            advantages: the advantage used is (advantage - shift) * scale, and (0, 1) means not normalised.
        schedule: `[3]` float64: weight of the value loss, weight of the entropy, and the clipping range of clipped
            losses.
    """

    def __init__(self) -> None:
        """Allocate; nothing is weighted yet."""
        self.weights, self.schedule = (torch.zeros(3, dtype=torch.float64) for _ in range(2))

    @property
    def numbers(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Where each coefficient is, in the order in which the kernels take them."""
        inverse_count, shift, scale = self.weights.split(1)
        vf_coef, ent_coef, clip_coef = self.schedule.split(1)
        return inverse_count, shift, scale, vf_coef, ent_coef, clip_coef


class Objective(Protocol):
    """Computes the gradient at the model's outputs for a batch."""

    def prepare(
        self,
        params: Tensor,
        value: Tensor,
        batch: Batch,
        coefs: Coefs,
        d_params: Tensor,
        d_value: Tensor,
        terms: Tensor,
    ) -> Op:
        """Return the call that writes the gradient at the model's outputs.

        Args:
            params: `[M, P]`, the distribution parameters returned by the head.
            value: `[M]`.
            batch: M rows.
            coefs: the coefficients, read by each call.
            d_params: `[M, P]`, written.
            d_value: `[M]`, written.
            terms: `[5]` float64, see `TERMS`; added to. Gradients of the head's own parameters are added to as well.
        """


class Gradient(Protocol):
    """Differentiates the objective of a batch."""

    def prepare(self, batch: Batch, coefs: Coefs, terms: Tensor, is_fresh: bool) -> list[Op]:
        """Return the calls that compute the gradient of the parameters, for a batch that will not move.

        Every `p.grad` is a view of one flat vector made by `optimizer.flatten`. The gradient is written there. Calls
        for another batch use the same buffers, so the calls of one batch must not be mixed with those of another.

        Args:
            batch: the rows, on the CPU.
            coefs: the coefficients of the objective, read by each run.
            terms: `[5]` float64, written, as named in `TERMS`.
            is_fresh: the batch is the last rollout, and the parameters have not changed since it was collected.
        """


class Scored(Protocol):
    """A head that computes log-probs and entropies of actions."""

    def log_prob_entropy(self, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probs and entropies `[...]` of actions."""


class PlainObjective:
    """Any head and any loss with torch operators and autograd; tests compare the kernels with it."""

    def __init__(self, head: Scored, loss: PolicyLoss, clip_value_coef: float = math.inf) -> None:
        """Store the head, the algorithm's loss, and how far a value may move before its loss is clipped."""
        self._head, self._loss, self._clip_value_coef = head, loss, clip_value_coef

    def prepare(
        self,
        params: Tensor,
        value: Tensor,
        batch: Batch,
        coefs: Coefs,
        d_params: Tensor,
        d_value: Tensor,
        terms: Tensor,
    ) -> Op:
        """See `Objective`."""
        return partial(self._differentiate, params, value, batch, coefs, d_params, d_value, terms)

    def _differentiate(
        self,
        params: Tensor,
        value: Tensor,
        batch: Batch,
        coefs: Coefs,
        d_params: Tensor,
        d_value: Tensor,
        terms: Tensor,
    ) -> None:
        params, value = params.detach().requires_grad_(), value.detach().requires_grad_()
        log_prob, entropy = self._head.log_prob_entropy(params, batch.action)
        # float64, because scaling would magnify the float32 rounding error of equal advantages to about 1.
        inverse_count, shift, scale = coefs.weights.tolist()
        advantage = ((batch.advantage.double() - shift) * scale).float()
        weight, (vf_coef, ent_coef, clip_coef) = batch.valid * inverse_count, coefs.schedule.tolist()
        found = self._loss(
            log_prob,
            entropy,
            value,
            batch.log_prob,
            advantage,
            batch.return_,
            weight.float(),
            vf_coef,
            ent_coef,
            clip_coef,
            batch.value,
            self._clip_value_coef,
        )
        found.total.backward()
        for leaf, d in ((params, d_params), (value, d_value)):
            d.zero_() if leaf.grad is None else d.copy_(leaf.grad)  # a loss may ignore one of them
        terms.add_(torch.stack([getattr(found, name).detach().double() for name in TERMS]))


class CategoricalObjective:
    """Categorical actions: a kernel computes the policy gradient or PPO's clipped surrogate."""

    def __init__(self, surrogate: Surrogate, clip_value_coef: float = math.inf) -> None:
        """Choose the surrogate, and how far a value may move before its loss is clipped."""
        self._surrogate, self._clip_value_coef = surrogate, clip_value_coef

    def prepare(
        self,
        params: Tensor,
        value: Tensor,
        batch: Batch,
        coefs: Coefs,
        d_params: Tensor,
        d_value: Tensor,
        terms: Tensor,
    ) -> Op:
        """See `Objective`."""
        return categorical_loss.prepare(
            params,
            value,
            *_rows(batch),
            self._surrogate,
            *coefs.numbers,
            self._clip_value_coef,
            d_params,
            d_value,
            terms,
        )


class GaussianObjective:
    """Gaussian actions with a state-independent deviation, computed by a kernel; see `CategoricalObjective`."""

    def __init__(self, head: GaussianHead, surrogate: Surrogate, clip_value_coef: float = math.inf) -> None:
        """Store the head, the surrogate, and how far a value may move before its loss is clipped.

        Build the optimizer first: its `flatten` makes every `p.grad` a view of one flat vector, and the objective
        keeps the view of `log_std`.
        """
        self._surrogate, self._clip_value_coef = surrogate, clip_value_coef
        assert head.log_std.grad is not None, "flatten the parameters first"
        self._log_std, self._d_log_std = head.log_std.detach(), head.log_std.grad

    def prepare(
        self,
        params: Tensor,
        value: Tensor,
        batch: Batch,
        coefs: Coefs,
        d_params: Tensor,
        d_value: Tensor,
        terms: Tensor,
    ) -> Op:
        """See `Objective`."""
        return gaussian_loss.prepare(
            params,
            self._log_std,
            value,
            *_rows(batch),
            self._surrogate,
            *coefs.numbers,
            self._clip_value_coef,
            d_params,
            self._d_log_std,
            d_value,
            terms,
        )


def _rows(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what the kernels take of a batch."""
    old_value = batch.return_ if batch.value is None else batch.value  # nothing reads it if values are not clipped
    return batch.action, batch.log_prob, old_value, batch.advantage, batch.return_, batch.valid
