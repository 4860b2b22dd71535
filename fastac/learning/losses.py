"""Pure losses: compute the terms of the objective from the model's outputs for a batch.

All means are over valid rows. A2C is Mnih et al. 2016 (arXiv 1602.01783), PPO's clipped surrogate is
Schulman et al. 2017 (arXiv 1707.06347, eq. 7), REINFORCE is Williams 1992. REINFORCE uses the A2C loss on
Monte Carlo returns: the advantage differs, the formula does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Scalars of one batch; `total` carries the gradient.

    Attributes:
        total: policy_loss + vf_coef * value_loss - ent_coef * entropy.
        policy_loss: minus the (surrogate) objective.
        value_loss: mean squared error of the critic.
        entropy: mean entropy of the policy, nats.
        approx_kl: estimate of KL(old policy || current), Schulman's k3 (0 for a2c and reinforce).
        clip_fraction: share of rows whose ratio is outside the clipping range (0 for a2c and reinforce).
    """

    total: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


class PolicyLoss(Protocol):
    """The loss that an algorithm minimises."""

    def __call__(
        self,
        log_prob: Tensor,
        entropy: Tensor,
        value: Tensor,
        old_log_prob: Tensor,
        advantage: Tensor,
        return_: Tensor,
        weight: Tensor,
        vf_coef: float,
        ent_coef: float,
        clip_coef: float,
        old_value: Tensor | None,
        clip_value_coef: float,
    ) -> LossTerms:
        """Compute the terms.

        Args:
            log_prob: log-probs of the actions under the current policy.
            entropy: entropy of the current policy.
            value: the critic's estimates.
            old_log_prob: log-probs of the actions under the policy that collected them.
            advantage: estimated, constant.
            return_: the critic's target, constant.
            weight: sums to 1 over valid rows, 0 elsewhere.
            vf_coef: weight of the value loss.
            ent_coef: weight of the entropy.
            clip_coef: PPO's clipping range.
            old_value: the critic's estimates while acting; None: its loss is not clipped. All eight tensors have the
                same shape.
            clip_value_coef: how far a value may move from the old one before its loss is clipped, see `squared_error`.
        """


def policy_gradient(
    log_prob: Tensor,
    entropy: Tensor,
    value: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    return_: Tensor,
    weight: Tensor,
    vf_coef: float,
    ent_coef: float,
    clip_coef: float,
    old_value: Tensor | None = None,
    clip_value_coef: float = math.inf,
) -> LossTerms:
    """A2C and REINFORCE: minus the mean of log-prob times advantage. See `PolicyLoss`."""
    policy_loss = -(log_prob * advantage * weight).sum()
    zero = torch.zeros((), device=log_prob.device)
    value_loss = (squared_error(value, return_, old_value, clip_value_coef) * weight).sum()
    return _combine(policy_loss, value_loss, entropy, weight, vf_coef, ent_coef, zero, zero)


def clipped_surrogate(
    log_prob: Tensor,
    entropy: Tensor,
    value: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    return_: Tensor,
    weight: Tensor,
    vf_coef: float,
    ent_coef: float,
    clip_coef: float,
    old_value: Tensor | None = None,
    clip_value_coef: float = math.inf,
) -> LossTerms:
    """PPO: the minimum of the clipped and the unclipped ratio times advantage, negated. See `PolicyLoss`."""
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_coef, 1.0 + clip_coef)
    policy_loss = -(torch.minimum(ratio * advantage, clipped * advantage) * weight).sum()
    with torch.no_grad():
        approx_kl = ((ratio - 1.0 - log_ratio) * weight).sum()
        clip_fraction = (((ratio - 1.0).abs() > clip_coef) * weight).sum()
    value_loss = (squared_error(value, return_, old_value, clip_value_coef) * weight).sum()
    return _combine(policy_loss, value_loss, entropy, weight, vf_coef, ent_coef, approx_kl, clip_fraction)


def squared_error(value: Tensor, return_: Tensor, old_value: Tensor | None, clip_value_coef: float) -> Tensor:
    """Return the critic's squared error per row, or the larger one of that and the error of the clipped value.

    The clipped value is at most `clip_value_coef` from the old one. So a value that has moved farther than that towards
    its return has no gradient. As in OpenAI Baselines' ppo2, and `clip_vloss` of CleanRL (Huang et al. 2022).
    """
    error = (value - return_).square()
    if old_value is None:
        return error
    clipped = old_value + (value - old_value).clamp(-clip_value_coef, clip_value_coef)
    return torch.maximum(error, (clipped - return_).square())


def _combine(
    policy_loss: Tensor,
    value_loss: Tensor,
    entropy: Tensor,
    weight: Tensor,
    vf_coef: float,
    ent_coef: float,
    approx_kl: Tensor,
    clip_fraction: Tensor,
) -> LossTerms:
    mean_entropy = (entropy * weight).sum()
    total = policy_loss + vf_coef * value_loss - ent_coef * mean_entropy
    return LossTerms(total, policy_loss, value_loss, mean_entropy, approx_kl, clip_fraction)
