"""The kernels in readable torch, in any float dtype and on any device: what the fast twins must equal.

Shapes: `T` steps, `N` envs, time first; `M` rows of a batch; `A` actions, or sizes of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_LOG_2PI = math.log(2.0 * math.pi)


def gae_reference(
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Estimate advantages by generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    Args:
        reward: `[T, N]`.
        value: `[T+1, N]`; row T is the value of the observation after the last step.
        terminated: `[T, N]` bool: no value follows.
        truncated: `[T, N]` bool: the value of row t+1 is the final observation's.
        gamma: discount factor.
        gae_lambda: 0 gives the TD error, 1 the Monte Carlo advantage.

    Returns:
        advantage and return, each `[T, N]`. Rows that were not valid hold numbers without meaning.
    """
    advantage = reward.new_zeros(reward.shape)  # [T, N]
    following = reward.new_zeros(reward.shape[1:])  # [N], the advantage of row t+1
    for t in reversed(range(reward.shape[0])):
        next_value = torch.where(terminated[t], 0.0, value[t + 1])  # [N]
        following = torch.where(terminated[t] | truncated[t], 0.0, following)
        following = reward[t] + gamma * next_value - value[t] + gamma * gae_lambda * following
        advantage[t] = following
    return advantage, advantage + value[:-1]


def moments_reference(row: Tensor, valid: Tensor) -> tuple[float, float, float]:
    """Return count, mean and M2 (the sum of squared deviations from the mean) of the valid elements; 0 of none."""
    chosen = row[valid].double()
    if chosen.numel() == 0:
        return 0.0, 0.0, 0.0
    mean = chosen.mean()
    return float(chosen.numel()), float(mean), float((chosen - mean).square().sum())


def gae(
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    gamma: float,
    gae_lambda: float,
    advantage: Tensor,
    return_: Tensor,
    moments: Tensor,
) -> None:
    """Write the advantages and returns of `gae_reference`, and their moments over valid rows.

    Args:
        reward: `[T, N]`.
        value: `[T+1, N]`.
        terminated: `[T, N]` bool.
        truncated: `[T, N]` bool.
        valid: `[T, N]` bool.
        gamma: discount factor.
        gae_lambda: 0 gives the TD error, 1 the Monte Carlo advantage.
        advantage: `[T, N]`, written.
        return_: `[T, N]`, written.
        moments: `[5]` float64, written: number of valid rows, mean and M2 of the advantage, mean and
            M2 of the return. M2 is the sum of squared deviations, exactly 0 where all are equal.
    """
    estimates = gae_reference(reward, value, terminated, truncated, gamma, gae_lambda)
    advantage.copy_(estimates[0])
    return_.copy_(estimates[1])
    count, *of_advantage = moments_reference(advantage, valid)
    _, *of_return = moments_reference(return_, valid)
    moments.copy_(torch.tensor([count, *of_advantage, *of_return], dtype=torch.float64))


def batch_moments(advantage: Tensor, valid: Tensor, moments: Tensor) -> None:
    """Write the number of valid rows, mean and M2 of `advantage` `[M]` to `moments` `[3]` float64.

    M2 is the sum of squared deviations, exactly 0 where all are equal. `valid` is `[M]` bool.
    """
    moments.copy_(torch.tensor(moments_reference(advantage, valid), dtype=torch.float64))


def _entropy(log_probs: Tensor) -> Tensor:
    probs = log_probs.exp()
    # An action of probability 0 adds 0, not 0 times -inf.
    return -(probs * log_probs.masked_fill(probs == 0.0, 0.0)).sum(dim=-1)


def sample_categorical(logits: Tensor, uniform: Tensor, action: Tensor, log_prob: Tensor, entropy: Tensor) -> None:
    """Sample an action per row, with its log-prob and the entropy of its distribution, in nats.

    The cumulative distribution is inverted: the action is the number of its entries that are not
    above `uniform`. The last entry is left out: rounding may leave it just below a uniform close to 1.
    A NaN among a row's logits makes its log-prob and entropy NaN and its action one that exists.

    Args:
        logits: `[N, A]`.
        uniform: `[N]`, in [0, 1).
        action: `[N]` int64, written.
        log_prob: `[N]`, written.
        entropy: `[N]`, written.
    """
    log_probs = torch.log_softmax(logits, dim=-1)  # [N, A]
    cdf = torch.softmax(logits, dim=-1).cumsum(dim=-1)  # [N, A]
    action.copy_((cdf[:, :-1] <= uniform.unsqueeze(-1)).sum(dim=-1))
    log_prob.copy_(log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1))
    entropy.copy_(_entropy(log_probs))


def _surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_coef: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return per row `[M]`: the policy loss, Schulman's k3 estimate of the KL divergence, and whether it is clipped."""
    if clip_coef is None:
        zero = torch.zeros_like(log_prob)
        return -log_prob * advantage, zero, zero
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_coef, 1.0 + clip_coef)
    loss = -torch.minimum(ratio * advantage, clipped * advantage)
    return loss, ratio - 1.0 - log_ratio, ((ratio - 1.0).abs() > clip_coef).to(log_prob.dtype)


def _terms(
    log_prob: Tensor,
    entropy: Tensor,
    value: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    return_: Tensor,
    inverse_count: float,
    shift: float,
    scale: float,
    clip_coef: float | None,
) -> Tensor:
    """Return `[5]`: policy loss, value loss, entropy, KL and clip fraction of rows that are all valid."""
    effective = ((advantage.double() - shift) * scale).to(advantage.dtype)  # [M]
    policy_loss, approx_kl, clipped = _surrogate(log_prob, old_log_prob, effective, clip_coef)
    rows = torch.stack([policy_loss, (value - return_).square(), entropy, approx_kl.detach(), clipped])  # [5, M]
    return rows.sum(dim=1) * inverse_count


def _finish(
    added: Tensor,
    vf_coef: float,
    ent_coef: float,
    leaves: tuple[Tensor, ...],
    terms: Tensor,
) -> tuple[Tensor, ...]:
    """Add to `terms`; return the gradients of the total with respect to `leaves`."""
    terms += added.detach()
    total = added[0] + vf_coef * added[1] - ent_coef * added[2]
    return torch.autograd.grad(total, leaves)


def categorical_loss(
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
    d_logits: Tensor,
    d_value: Tensor,
    terms: Tensor,
) -> None:
    """Compute the A2C or PPO loss of categorical actions, and its gradient.

    A batch may come in chunks: `inverse_count` is of the whole batch, and `terms` adds up. Rows that
    are not valid may hold anything; a NaN in a valid one shows in `terms`.

    Args:
        logits: `[M, A]`.
        value: `[M]`, the critic's estimates.
        action: `[M]` int64.
        old_log_prob: `[M]`, of the actions under the policy that acted; not read without `clip_coef`.
        advantage: `[M]`, constant; what counts is (advantage - shift) * scale.
        return_: `[M]`, the critic's target, constant.
        valid: `[M]` bool.
        inverse_count: 1 / number of valid rows in the whole batch, the weight of a row.
        shift: mean of the advantage where it is normalised, or 0.
        scale: inverse deviation of the advantage where it is normalised, or 1.
        vf_coef: weight of the value loss.
        ent_coef: weight of the entropy.
        clip_coef: PPO's clipping range; None for A2C and REINFORCE, whose ratio is not clipped.
        d_logits: `[M, A]`, written: d total / d logits, where
            total = policy_loss + vf_coef * value_loss - ent_coef * entropy; 0 where not valid.
        d_value: `[M]`, written, likewise.
        terms: `[5]` float64, added to: policy_loss, value_loss, entropy, approx_kl, clip_fraction.
    """
    d_logits.zero_()
    d_value.zero_()
    with torch.enable_grad():
        leaves = logits[valid].detach().requires_grad_(), value[valid].detach().requires_grad_()
        log_probs = torch.log_softmax(leaves[0], dim=-1)  # [M, A]
        log_prob = log_probs.gather(-1, action[valid].unsqueeze(-1)).squeeze(-1)  # [M]
        entropy = _entropy(log_probs)  # [M]
        constants = old_log_prob[valid], advantage[valid], return_[valid]
        added = _terms(log_prob, entropy, leaves[1], *constants, inverse_count, shift, scale, clip_coef)
        d_logits[valid], d_value[valid] = _finish(added, vf_coef, ent_coef, leaves, terms)


def gaussian_loss(
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
    d_mean: Tensor,
    d_log_std: Tensor,
    d_value: Tensor,
    terms: Tensor,
) -> None:
    """Compute the A2C or PPO loss of diagonal Gaussian actions, and its gradient.

    As `categorical_loss`, except for:

    Args:
        mean: `[M, A]`.
        log_std: `[A]`, log of the standard deviations, the same in all rows.
        value: see `categorical_loss`.
        action: `[M, A]`, of the dtype of `mean`.
        old_log_prob: see `categorical_loss`.
        advantage: see `categorical_loss`.
        return_: see `categorical_loss`.
        valid: see `categorical_loss`.
        inverse_count: see `categorical_loss`.
        shift: see `categorical_loss`.
        scale: see `categorical_loss`.
        vf_coef: see `categorical_loss`.
        ent_coef: see `categorical_loss`.
        clip_coef: see `categorical_loss`.
        d_mean: `[M, A]`, written.
        d_log_std: `[A]`, added to.
        d_value: see `categorical_loss`.
        terms: see `categorical_loss`.
    """
    d_mean.zero_()
    d_value.zero_()
    with torch.enable_grad():
        inputs = mean[valid], log_std, value[valid]
        leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
        z = (action[valid] - leaves[0]) * (-leaves[1]).exp()  # [M, A]
        log_prob = (-0.5 * (z.square() + _LOG_2PI) - leaves[1]).sum(dim=-1)  # [M]
        entropy = (0.5 * (1.0 + _LOG_2PI) + leaves[1]).sum().expand(log_prob.shape)  # [M]
        constants = old_log_prob[valid], advantage[valid], return_[valid]
        added = _terms(log_prob, entropy, leaves[2], *constants, inverse_count, shift, scale, clip_coef)
        d_mean[valid], added_d_log_std, d_value[valid] = _finish(added, vf_coef, ent_coef, leaves, terms)
    d_log_std += added_d_log_std


DENSE_ACTIVATIONS = ("identity", "relu", "tanh")


def prepare_dense(x: Tensor, weight: Tensor, bias: Tensor, activation: str, y: Tensor) -> Callable[[], object]:
    """Return a call that writes `y = activation(x @ weight + bias)`, for tensors that stay where they are.

    Args:
        x: `[N, D]`.
        weight: `[D, H]`, which is the transpose of torch's.
        bias: `[H]`.
        activation: one of `DENSE_ACTIVATIONS`.
        y: `[N, H]`, written by every call.
    """
    activate = {"identity": lambda z: z, "relu": torch.relu, "tanh": torch.tanh}[activation]
    return lambda: y.copy_(activate(x @ weight + bias))


def find_episodes(
    reward: Tensor,
    valid: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    life_lost: Tensor,
    running_return: Tensor,
    running_length: Tensor,
    return_: Tensor,
    length: Tensor,
) -> int:
    """Add a rollout to every env's episode so far, and write down those that end, in order of time, then env.

    Args:
        reward: `[T, N]`; counted where valid.
        valid: `[T, N]` bool.
        terminated: `[T, N]` bool.
        truncated: `[T, N]` bool.
        life_lost: `[T, N]` bool: terminated only because a life was lost, so that the episode goes on.
        running_return: `[N]` float64, of the episodes so far, updated.
        running_length: `[N]` int64, likewise.
        return_: `[T * N]` float64; the first entries are written.
        length: `[T * N]` int64, likewise.

    Returns:
        How many episodes ended.
    """
    found = 0
    for t in range(reward.shape[0]):
        running_return += torch.where(valid[t], reward[t].double(), 0.0)
        running_length += valid[t]
        done = (terminated[t] & ~life_lost[t]) | truncated[t]  # [N]
        ended = int(done.sum())
        return_[found : found + ended] = running_return[done]
        length[found : found + ended] = running_length[done]
        running_return[done] = 0.0
        running_length[done] = 0
        found += ended
    return found


def stack_frames(frames: Tensor, age: Tensor, index: Tensor, stacks: Tensor) -> None:
    """Build the stacks that some rows of a rollout are observed as, out of frames that are stored once.

    Args:
        frames: `[S - 1 + T, N, *frame]` uint8; row t of the rollout is frame `S - 1 + t`.
        age: `[T, N]` int64: how many frames of its episode came before a row's own.
        index: `[M]` int64, `t * N + n` of each row.
        stacks: `[M, S, *frame]` uint8, written: the newest frame last, zero before the episode's first.
    """
    size, num_envs = stacks.shape[1], frames.shape[1]
    t, n = index // num_envs, index % num_envs  # [M]
    for lag in range(size):
        is_there = (age[t, n] >= lag).view(-1, *(1,) * (frames.dim() - 2))  # [M, 1, ...]
        stacks[:, size - 1 - lag] = frames[t + size - 1 - lag, n] * is_there


def scale_images(images: Tensor, out: Tensor, scale: float) -> None:
    """Make floats of images, channels last: what a convolution reads.

    Args:
        images: `[M, C, P]` uint8, one plane of P pixels after the other; images whose channels are last
            already are one plane.
        out: `[M, P, C]`, written: images * scale.
        scale: of every number.
    """
    torch.mul(images.transpose(1, 2), scale, out=out)


def adam_step(
    param: Tensor,
    grad: Tensor,
    average: Tensor,
    square: Tensor,
    grad_scale: float,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    count: int,
) -> None:
    """Take a step of Adam (Kingma and Ba 2015, arXiv 1412.6980), operation for operation as torch.optim.Adam.

    Args:
        param: `[P]`, updated.
        grad: `[P]`; what counts is grad * grad_scale.
        average: `[P]`, of gradients, 0 before the first step, updated.
        square: `[P]`, average of their squares, likewise.
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


def rmsprop_step(
    param: Tensor,
    grad: Tensor,
    square: Tensor,
    grad_scale: float,
    learning_rate: float,
    alpha: float,
    eps: float,
    eps_in_root: bool,
) -> None:
    """Take a step of RMSprop (Hinton 2012), operation for operation as torch.optim.RMSprop.

    Args:
        param: `[P]`, updated.
        grad: `[P]`; what counts is grad * grad_scale.
        square: `[P]`, average of its squares, updated.
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
