"""Steps of optimisers over one flat vector of parameters."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.numba_tools import FUSED, ZERO, Floats, Number, U, jit


@kernel("P")
def adam_step(
    param: Annotated[Tensor, "float32 P"],
    grad: Annotated[Tensor, "float32 P"],
    average: Annotated[Tensor, "float32 P"],
    square: Annotated[Tensor, "float32 P"],
    grad_scale: float,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    count: int,
) -> None:
    """Take a step of Adam (Kingma and Ba 2015, arXiv 1412.6980), operation for operation as torch.optim.Adam.

    Args:
        param: updated.
        grad: what counts is grad * grad_scale.
        average: of gradients, 0 before the first step, updated.
        square: average of their squares, likewise.
        grad_scale: what clips the gradient, or 1.
        learning_rate: step size.
        beta1: share of `average` that is kept.
        beta2: share of `square` that is kept.
        eps: added to the root of `square`.
        count: number of steps taken, with this one, from 1: corrects averages that began at 0.
    """
    scaled = grad * grad_scale  # [P]
    average.lerp_(scaled, 1.0 - beta1)
    square.mul_(beta2).addcmul_(scaled, scaled, value=1.0 - beta2)
    root = square.sqrt().div_(math.sqrt(1.0 - beta2**count)).add_(eps)  # [P]
    param.addcdiv_(average, root, value=-learning_rate / (1.0 - beta1**count))


@kernel("P")
def rmsprop_step(
    param: Annotated[Tensor, "float32 P"],
    grad: Annotated[Tensor, "float32 P"],
    square: Annotated[Tensor, "float32 P"],
    grad_scale: float,
    learning_rate: float,
    alpha: float,
    eps: float,
    eps_in_root: bool,
) -> None:
    """Take a step of RMSprop (Hinton 2012), operation for operation as torch.optim.RMSprop.

    Args:
        param: updated.
        grad: what counts is grad * grad_scale.
        square: average of its squares, updated.
        grad_scale: what clips the gradient, or 1.
        learning_rate: step size.
        alpha: share of `square` that is kept.
        eps: keeps the divisor from 0.
        eps_in_root: sqrt(square + eps) divides, as in TensorFlow 1, and not sqrt(square) + eps.
    """
    scaled = grad * grad_scale  # [P]
    square.mul_(alpha).addcmul_(scaled, scaled, value=1.0 - alpha)
    root = (square + eps).sqrt() if eps_in_root else square.sqrt().add_(eps)  # [P]
    param.addcdiv_(scaled, root, value=-learning_rate)


# ---- Numba ------------------------------------------------------------------------------------------

# One pass over memory for torch's seven. Every element is read once and written once, which is what lets
# processes step vectors that they share: each pass would fetch every cache line that another one wrote.
# a * b + c is rounded once where torch's AVX2 and AVX-512 code does, and only there: a product that has to be
# rounded by itself is taken outside of what is `FUSED`. The statistics equal torch's bit for bit, and so do the
# parameters but for the root: ours is the nearest float32, that of a torch with MKL 1 ulp beside it for 0.6 % of
# numbers, which changes those steps by at most 4 ulp of the step.


@jit(FUSED)
def _lerp(start: float, end: float, weight: float) -> Number:
    return start + weight * (end - start)


@jit(FUSED)
def _add_square(total: float, number: float, weight: float) -> Number:
    return total + weight * number * number


@jit()
def _adam(
    param: Floats,
    grad: Floats,
    average: Floats,
    square: Floats,
    grad_scale: float,
    weight1: float,
    beta2: float,
    weight2: float,
    correction: float,
    eps: float,
    rate: float,
    size: int,
) -> None:
    for k in range(size):
        scaled = grad[k] * grad_scale
        mean = _lerp(average[k], scaled, weight1)
        power = _add_square(square[k] * beta2, scaled, weight2)
        average[k], square[k] = mean, power
        param[k] += rate * mean / (math.sqrt(power) / correction + eps)


@adam_step.numba
def _adam_step_numba(
    size: int,
    param: Floats,
    grad: Floats,
    average: Floats,
    square: Floats,
    grad_scale: float,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    count: int,
) -> None:
    steps = np.float64(count)
    _adam(
        param,
        grad,
        average,
        square,
        np.float32(grad_scale),
        np.float32(1.0 - beta1),
        np.float32(beta2),
        np.float32(1.0 - beta2),
        np.float32(math.sqrt(1.0 - math.pow(beta2, steps))),
        np.float32(eps),
        np.float32(-learning_rate / (1.0 - math.pow(beta1, steps))),
        U(size),
    )


@jit()
def _rmsprop(
    param: Floats,
    grad: Floats,
    square: Floats,
    grad_scale: float,
    alpha: float,
    weight: float,
    eps_inside: float,
    eps_outside: float,
    rate: float,
    size: int,
) -> None:
    """One of both epsilons is 0, so that one loop without a branch does both forms."""
    for k in range(size):
        scaled = grad[k] * grad_scale
        power = _add_square(square[k] * alpha, scaled, weight)
        square[k] = power
        param[k] += rate * scaled / (math.sqrt(power + eps_inside) + eps_outside)


@rmsprop_step.numba
def _rmsprop_step_numba(
    size: int,
    param: Floats,
    grad: Floats,
    square: Floats,
    grad_scale: float,
    learning_rate: float,
    alpha: float,
    eps: float,
    eps_in_root: bool,
) -> None:
    epsilon = np.float32(eps)
    _rmsprop(
        param,
        grad,
        square,
        np.float32(grad_scale),
        np.float32(alpha),
        np.float32(1.0 - alpha),
        epsilon if eps_in_root else ZERO,
        ZERO if eps_in_root else epsilon,
        np.float32(-learning_rate),
        U(size),
    )
