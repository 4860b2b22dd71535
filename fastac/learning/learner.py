"""One learner for A2C, PPO and REINFORCE: takes a rollout, updates the parameters, returns metrics.

Algorithms differ only in settings: objective, epochs, minibatches, lambda, baseline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastac.config import Config
from fastac.contract import Alone, Group, NonFiniteError, Phases, StateTree, read_branch, read_count
from fastac.kernels import batch_moments, gae
from fastac.learning.objectives import TERMS, Coefs, Gradient
from fastac.learning.optimizer import Optimizer
from fastac.learning.schedules import anneal
from fastac.rollout import Batch, Minibatches, Rollout

_EPS = 1e-8  # added to the standard deviation when normalising advantages


@dataclass(frozen=True, slots=True)
class Moments:
    """Number of rows, their mean, and the sum of squared deviations from it (M2)."""

    count: float
    mean: float
    m2: float

    @property
    def var(self) -> float:
        """Population variance."""
        return self.m2 / self.count if self.count else 0.0


def merge_moments(parts: NDArray[np.generic]) -> Moments:
    """Merge the moments `[K, 3]` of disjoint rows (Chan, Golub and LeVeque 1979)."""
    count, mean, m2 = parts[0].tolist()
    for more, its_mean, its_m2 in parts[1:].tolist():
        if more:
            total, delta = count + more, its_mean - mean
            m2 += its_m2 + delta * delta * count * more / total
            mean += delta * more / total
            count = total
    return Moments(count, mean, m2)


class Learner:
    """Computes advantages and updates the model on one rollout.

    Attributes:
        updates: optimiser steps taken since the run began.
        rows: number of valid rows in the last rollout, summed over all workers.
    """

    def __init__(
        self,
        config: Config,
        gradient: Gradient,
        minibatches: Minibatches,
        optimizer: Optimizer,
        group: Group | None = None,
    ) -> None:
        """Store the parts; only settings are read from `config`."""
        self._algo, self._optim = config.algo, config.optim
        self._gradient, self._minibatches, self._optimizer = gradient, minibatches, optimizer
        self._group = group or Alone()
        self._moments = torch.zeros(5, dtype=torch.float64)
        self.updates = 0
        self.rows = 0

    def learn(self, rollout: Rollout, reward: Tensor, done_fraction: float, phases: Phases) -> dict[str, float]:
        """Update the model on one rollout.

        Args:
            rollout: the collected rollout.
            reward: `[T, N]`, the rewards to learn from (raw, or normalised).
            done_fraction: env_steps / total_env_steps, 0 to 1, for schedules.
            phases: the elapsed time is added to it.

        Returns:
            Means over the updates, see `Report.losses`.

        Raises:
            NonFiniteError: a loss term or the gradient norm is not finite; the parameters are unchanged by that
                update.
        """
        begin = perf_counter()
        advantages, returns = self._estimate(rollout, reward)
        middle = perf_counter()
        learning_rate = anneal(self._optim.learning_rate_schedule, self._optim.learning_rate, done_fraction)
        is_whole = self._algo.num_minibatches == 1
        totals, count = np.zeros(len(_METRICS)), 0
        for epoch in range(self._algo.num_epochs):
            for batch in self._minibatches.split(rollout):
                coefs = self._coefs(advantages if is_whole else self._moments_of(batch), done_fraction)
                totals += self._update(batch, coefs, learning_rate, is_fresh=is_whole and epoch == 0)
                count += 1
        metrics: dict[str, float] = dict(zip(_METRICS, (totals / count).tolist(), strict=True))
        # 1 - Var[return - value] / Var[return]: 1 for a perfect critic, 0 for one no better than a constant.
        metrics["explained_variance"] = 1.0 - advantages.m2 / returns.m2 if returns.m2 > 0.0 else math.nan
        metrics["learning_rate"] = learning_rate
        if self._algo.algo == "ppo":  # also logged by SB3
            critic, entropy = coefs.vf_coef * metrics["value_loss"], coefs.ent_coef * metrics["entropy"]
            metrics["loss"], metrics["clip_range"] = metrics["policy_loss"] + critic - entropy, coefs.clip_coef
        self.rows = int(advantages.count)
        phases.advantage_s += middle - begin
        phases.update_s += perf_counter() - middle
        return metrics

    def _estimate(self, rollout: Rollout, reward: Tensor) -> tuple[Moments, Moments]:
        """Fill the rollout's advantages and returns; return their moments over all workers' valid rows."""
        terminated, gamma = rollout.terminated, self._algo.gamma
        if not self._algo.baseline:
            rollout.value.zero_()  # plain REINFORCE: the advantage is the return
        elif rollout.out_of_band.any():
            # SAME_STEP/DISABLED: V(final obs) is not in value[t+1]. Add gamma*V to the reward and treat the row as
            # terminal (the time-out trick of rsl_rl); delta is the same.
            reward = reward + gamma * rollout.final_value
            terminated = terminated | rollout.out_of_band
        gae(
            reward,
            rollout.value,
            terminated,
            rollout.truncated,
            rollout.valid,
            gamma,
            self._algo.gae_lambda,
            rollout.advantage,
            rollout.return_,
            self._moments,
        )
        everyones = self._group.gather(self._moments.numpy())  # [K, 5]
        return merge_moments(everyones[:, :3]), merge_moments(everyones[:, [0, 3, 4]])

    def _moments_of(self, batch: Batch) -> Moments:
        """Return the moments of a minibatch's advantages, over all workers' minibatches."""
        batch_moments(batch.advantage.flatten(), batch.valid.flatten(), self._moments[:3])
        return merge_moments(self._group.gather(self._moments[:3].numpy()))

    def _coefs(self, advantages: Moments, done_fraction: float) -> Coefs:
        algo, optim = self._algo, self._optim
        return Coefs(
            inverse_count=1.0 / max(advantages.count, 1.0),
            shift=advantages.mean if algo.normalize_advantage else 0.0,
            scale=1.0 / (math.sqrt(advantages.var) + _EPS) if algo.normalize_advantage else 1.0,
            vf_coef=algo.vf_coef if algo.baseline else 0.0,
            ent_coef=anneal(optim.ent_coef_schedule, algo.ent_coef, done_fraction),
            clip_coef=anneal(optim.clip_coef_schedule, algo.clip_coef, done_fraction),
        )

    def _update(self, batch: Batch, coefs: Coefs, learning_rate: float, is_fresh: bool) -> NDArray[np.float64]:
        """Apply one update and return the values of `_METRICS`."""
        terms = self._group.gather(self._gradient(batch, coefs, is_fresh).numpy()).sum(axis=0)
        if not math.isfinite(terms.sum()):
            name = next(name for name, value in zip(TERMS, terms.tolist(), strict=True) if not math.isfinite(value))
            raise NonFiniteError(f"update {self.updates + 1}: {name} is not finite")
        grad_norm = self._optimizer.step(learning_rate)
        if not math.isfinite(grad_norm):
            raise NonFiniteError(f"update {self.updates + 1}: grad_norm is {grad_norm}")
        self.updates += 1
        return np.append(terms, grad_norm)

    def get_state(self) -> StateTree:
        """Return the optimiser's slots and the update count."""
        return {"optimizer": self._optimizer.get_state(), "updates": self.updates}

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""
        self._optimizer.set_state(read_branch(state, "optimizer"))
        self.updates = read_count(state, "updates")


_METRICS = (*TERMS, "grad_norm")
