"""From a batch to the gradient of its objective: by autograd, for any model.

`fastac.learning.fused` does the same without autograd for the models that fastac builds without memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastac.contract import Trainable
from fastac.kernels import fused_categorical_loss, fused_gaussian_loss
from fastac.learning.losses import PolicyLoss
from fastac.rollout import Batch, Graphs

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
        clip_coef: PPO's clipping range, for losses that clip.
    """

    inverse_count: float
    shift: float
    scale: float
    vf_coef: float
    ent_coef: float
    clip_coef: float

    @property
    def weights(self) -> tuple[float, float, float, float, float]:
        """All but the last, in the order in which the kernels take them."""
        return self.inverse_count, self.shift, self.scale, self.vf_coef, self.ent_coef


class Gradient(Protocol):
    """Differentiates the objective of a batch."""

    def __call__(self, batch: Batch, coefs: Coefs, is_fresh: bool) -> Tensor:
        """Write the gradient into that of the parameters; return the terms `[5]` float64, as named in `TERMS`.

        Args:
            batch: the rows, on the CPU.
            coefs: the objective.
            is_fresh: the batch is the rollout just collected, and the parameters are those that acted.
        """


class Objective(Protocol):
    """Joins what the model says and what the batch holds."""

    def __call__(self, params: Tensor, value: Tensor, batch: Batch, coefs: Coefs) -> tuple[Tensor, Tensor]:
        """Return the total, with its gradient, and the terms `[5]` float64.

        Args:
            params: `[..., P]`, the distribution's parameters as the head gives them.
            value: `[...]`.
            batch: of the same leading shape.
            coefs: the weights.
        """


class Scored(Protocol):
    """A head that scores actions."""

    def log_prob_entropy(self, params: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probs and entropies `[...]` of actions."""


class AutogradGradient:
    """Runs the model forward, where acting left nothing behind, and autograd backward."""

    def __init__(
        self, model: Trainable, objective: Objective, device: torch.device, graphs: Graphs | None = None
    ) -> None:
        """Take the model, which is on `device`, and the graphs that acting leaves behind, if it does."""
        self._model, self._objective, self._device, self._graphs = model, objective, device, graphs

    def __call__(self, batch: Batch, coefs: Coefs, is_fresh: bool) -> Tensor:
        """See `Gradient`."""
        batch = batch.to(self._device)
        if is_fresh and self._graphs is not None:
            params = torch.stack(self._graphs.params).view(*batch.valid.shape, -1)  # [T, N, P] or [M, P]
            value = torch.stack(self._graphs.value).view(batch.valid.shape)
        else:
            params, value, _ = self._model(batch.obs, batch.state, batch.start)
        total, terms = self._objective(params, value, batch, coefs)
        self._model.zero_grad(set_to_none=False)
        total.backward()
        return terms.cpu()


class PlainObjective:
    """Any head, term by term with torch's operators: what the fused objectives are held to."""

    def __init__(self, head: Scored, loss: PolicyLoss) -> None:
        """Take the head and the algorithm's loss."""
        self._head, self._loss = head, loss

    def __call__(self, params: Tensor, value: Tensor, batch: Batch, coefs: Coefs) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        log_prob, entropy = self._head.log_prob_entropy(params, batch.action)
        # In float64: the rounding of equal float32 advantages would otherwise be scaled up to size one.
        advantage = ((batch.advantage.double() - coefs.shift) * coefs.scale).float()
        weight = batch.valid * coefs.inverse_count
        terms = self._loss(
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
        return terms.total, torch.stack([getattr(terms, name).detach().double() for name in TERMS])


class CategoricalObjective:
    """Logits, with the fused kernel, which computes the policy gradient or PPO's clipped surrogate."""

    def __init__(self, clips: bool) -> None:
        """Say which: whether it clips."""
        self._clips = clips

    def __call__(self, params: Tensor, value: Tensor, batch: Batch, coefs: Coefs) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        clip_coef = coefs.clip_coef if self._clips else None
        return fused_categorical_loss(params.flatten(0, -2), value.flatten(), *_flat(batch), *coefs.weights, clip_coef)


class GaussianObjective:
    """Means and a state-independent deviation, with the fused kernel: see `CategoricalObjective`."""

    def __init__(self, log_std: Tensor, clips: bool) -> None:
        """Take the head's parameter `[A]`."""
        self._log_std, self._clips = log_std, clips

    def __call__(self, params: Tensor, value: Tensor, batch: Batch, coefs: Coefs) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        rows = (params.flatten(0, -2), self._log_std, value.flatten(), *_flat(batch))
        return fused_gaussian_loss(*rows, *coefs.weights, coefs.clip_coef if self._clips else None)


def _flat(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what the kernels read, `[M, ...]`."""
    action = batch.action.flatten(0, batch.valid.dim() - 1)
    rows = (batch.log_prob, batch.advantage, batch.return_, batch.valid)
    log_prob, advantage, return_, valid = (part.flatten() for part in rows)
    return action, log_prob, advantage, return_, valid
