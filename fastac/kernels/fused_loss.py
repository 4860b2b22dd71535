"""The loss kernels as functions that autograd can differentiate, once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from fastac.kernels.dispatch import categorical_loss, gaussian_loss


class _FusedLoss(torch.autograd.Function):
    """Computes the loss and its gradient together; backward only scales the gradient."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, kernel: Callable[..., None], vf_coef: float, ent_coef: float, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return total and terms; `kernel` takes inputs, their gradients and terms."""
        gradients = [torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs]
        terms = inputs[0].new_zeros(5, dtype=torch.float64)
        kernel(*(tensor.contiguous() for tensor in inputs), *gradients, terms)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(terms)
        total = terms[0] + vf_coef * terms[1] - ent_coef * terms[2]
        return total.to(inputs[0].dtype), terms

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_total: Tensor, _d_terms: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what forward found."""
        # torch's type for `ctx` is that of forward's, which cannot read what was saved.
        gradients: tuple[Tensor, ...] = ctx.saved_tensors  # type: ignore[attr-defined]
        return None, None, None, *(d_total * gradient for gradient in gradients)


def _apply(kernel: Callable[..., None], vf_coef: float, ent_coef: float, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    # `apply` has no types of its own: it returns what forward does.
    total, terms = _FusedLoss.apply(kernel, vf_coef, ent_coef, *inputs)  # type: ignore[no-untyped-call]
    return total, terms


def fused_categorical_loss(
    logits: Tensor,
    value: Tensor,
    action: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    return_: Tensor,
    valid: Tensor,
    inverse_count: float,
    shift: float,
    scale: float,
    vf_coef: float,
    ent_coef: float,
    clip_coef: float | None,
) -> tuple[Tensor, Tensor]:
    """Compute `categorical_loss`, which documents the arguments, differentiable in `logits` and `value`.

    Returns:
        total (a scalar that carries the gradient) and terms `[5]` float64.
    """

    def kernel(logits: Tensor, value: Tensor, d_logits: Tensor, d_value: Tensor, terms: Tensor) -> None:
        rows = action, old_log_prob, advantage, return_, valid
        numbers = inverse_count, shift, scale, vf_coef, ent_coef
        categorical_loss(logits, value, *rows, *numbers, clip_coef, d_logits, d_value, terms)

    return _apply(kernel, vf_coef, ent_coef, logits, value)


def fused_gaussian_loss(
    mean: Tensor,
    log_std: Tensor,
    value: Tensor,
    action: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    return_: Tensor,
    valid: Tensor,
    inverse_count: float,
    shift: float,
    scale: float,
    vf_coef: float,
    ent_coef: float,
    clip_coef: float | None,
) -> tuple[Tensor, Tensor]:
    """Compute `gaussian_loss`, which documents the arguments, differentiable in `mean`, `log_std` and `value`.

    Returns:
        total (a scalar that carries the gradient) and terms `[5]` float64.
    """

    def kernel(
        mean: Tensor, log_std: Tensor, value: Tensor, d_mean: Tensor, d_log_std: Tensor, d_value: Tensor, terms: Tensor
    ) -> None:
        rows = action, old_log_prob, advantage, return_, valid
        numbers = inverse_count, shift, scale, vf_coef, ent_coef
        gaussian_loss(mean, log_std, value, *rows, *numbers, clip_coef, d_mean, d_log_std, d_value, terms)

    return _apply(kernel, vf_coef, ent_coef, mean, log_std, value)
