"""Optimiser steps over one flat vector of parameters."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.numba_tools import FUSED, ZERO, Floats, Number, U, jit
from fastac.kernels.specification import Real


@kernel("P", is_step=True)
def adam_step(
    param: Annotated[Tensor, "float32 P"],
    grad: Annotated[Tensor, "float32 P"],
    average: Annotated[Tensor, "float32 P"],
    square: Annotated[Tensor, "float32 P"],
    grad_scale: Real,
    learning_rate: Real,
    beta1: float,
    beta2: float,
    eps: float,
    count: Real,
) -> None:
    """Apply one step of Adam (Kingma and Ba 2015, arXiv 1412.6980), operation by operation like torch.optim.Adam.

    Args:
        param: updated.
        grad: the gradient used is grad * grad_scale.
        average: moving average of gradients, 0 before the first step, updated.
        square: moving average of squared gradients, 0 before the first step, updated.
        grad_scale: the clipping factor, or 1; NaN takes no step.
        learning_rate: step size.
        beta1: share of `average` that is kept.
        beta2: share of `square` that is kept.
        eps: added to the root of `square`.
        count: number of steps including this one; corrects the bias of averages that start at 0.
    """
    if math.isnan(grad_scale):
        return
    rate, steps = float(learning_rate), float(count)
    scaled = grad * float(grad_scale)  # [P]
    average.lerp_(scaled, 1.0 - beta1)
    square.mul_(beta2).addcmul_(scaled, scaled, value=1.0 - beta2)
    root = square.sqrt().div_(math.sqrt(1.0 - beta2**steps)).add_(eps)  # [P]
    param.addcdiv_(average, root, value=-rate / (1.0 - beta1**steps))


@kernel("P", is_step=True)
def rmsprop_step(
    param: Annotated[Tensor, "float32 P"],
    grad: Annotated[Tensor, "float32 P"],
    square: Annotated[Tensor, "float32 P"],
    grad_scale: Real,
    learning_rate: Real,
    alpha: float,
    eps: float,
    eps_in_root: bool,
) -> None:
    """Apply one step of RMSprop (Hinton 2012), operation by operation like torch.optim.RMSprop.

    Args:
        param: updated.
        grad: the gradient used is grad * grad_scale.
        square: moving average of squared gradients, updated.
        grad_scale: the clipping factor, or 1; NaN takes no step.
        learning_rate: step size.
        alpha: share of `square` that is kept.
        eps: keeps the divisor from 0.
        eps_in_root: divide by sqrt(square + eps), as in TensorFlow 1, instead of sqrt(square) + eps.
    """
    if math.isnan(grad_scale):
        return
    scaled = grad * float(grad_scale)  # [P]
    square.mul_(alpha).addcmul_(scaled, scaled, value=1.0 - alpha)
    root = (square + eps).sqrt() if eps_in_root else square.sqrt().add_(eps)  # [P]
    param.addcdiv_(scaled, root, value=-float(learning_rate))


# ---- Numba ------------------------------------------------------------------------------------------

# One pass over memory instead of torch's seven. Every element is read once and written once. This also lets processes
# step shared vectors: each further pass would fetch all cache lines that another process has written.
# a * b + c is rounded once exactly where torch's AVX2 and AVX-512 code does so: a product that must be rounded
# separately is computed outside of `FUSED` functions. The statistics equal torch's bit for bit. So do the parameters,
# except for the square root: ours is correctly rounded, and torch with MKL is 1 ulp off for 0.6 % of numbers, which
# changes those steps by at most 4 ulp of the step.


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
    count: float,
) -> None:
    if math.isnan(grad_scale):
        return
    _adam(
        param,
        grad,
        average,
        square,
        np.float32(grad_scale),
        np.float32(1.0 - beta1),
        np.float32(beta2),
        np.float32(1.0 - beta2),
        np.float32(math.sqrt(1.0 - math.pow(beta2, count))),
        np.float32(eps),
        np.float32(-learning_rate / (1.0 - math.pow(beta1, count))),
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
    """Apply either form in one loop without branches: one of the two epsilons is 0."""
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
    if math.isnan(grad_scale):
        return
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
