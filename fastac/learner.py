"""A rollout in, updated parameters and metrics out: one learner for A2C, PPO and REINFORCE.

The algorithms differ by their loss, epochs, minibatches, lambda and baseline: all data.
"""

from __future__ import annotations

import math
from time import perf_counter

import torch
from torch import Tensor

from fastac.apply import Apply
from fastac.config import Config, Schedule
from fastac.contract import NonFiniteError, Phases, StateTree, Trainable, read_branch, read_number
from fastac.kernels import gae
from fastac.losses import LossTerms, PolicyLoss, normalize_advantage
from fastac.rollout import Batch, Minibatches, Rollout


def anneal(schedule: Schedule, start: float, done_fraction: float) -> float:
    """Return `start`, or for a linear schedule what is left of it after `done_fraction` of the run."""
    return start if schedule == "constant" else start * max(0.0, 1.0 - done_fraction)


class Learner:
    """Computes advantages and takes the updates of one rollout.

    Attributes:
        updates: optimiser steps taken since the run began.
    """

    def __init__(
        self,
        config: Config,
        model: Trainable,
        loss: PolicyLoss,
        minibatches: Minibatches,
        apply: Apply,
        device: torch.device,
    ) -> None:
        """Take the parts; only settings are read from `config`."""
        self._algo, self._optim = config.algo, config.optim
        self._model, self._loss, self._minibatches, self._apply = model, loss, minibatches, apply
        self._device = device
        self.updates = 0

    def learn(self, rollout: Rollout, reward: Tensor, done_fraction: float, phases: Phases) -> dict[str, float]:
        """Update the model on one rollout.

        Args:
            rollout: as collected.
            reward: `[T, N]`, the rewards to learn from (the rollout's own, or normalised).
            done_fraction: how much of the run's budget is spent, for schedules.
            phases: gets the time.

        Returns:
            Means over the updates, see `Report.losses`.

        Raises:
            NonFiniteError: a loss term or the gradient norm is not finite; parameters are as before
                that update.
        """
        begin = perf_counter()
        self._estimate(rollout, reward)
        middle = perf_counter()
        learning_rate = anneal(self._optim.learning_rate_schedule, self._optim.learning_rate, done_fraction)
        totals = [0.0] * len(_METRICS)
        count = 0
        for _ in range(self._algo.num_epochs):
            for batch in self._minibatches.split(rollout):
                terms = self._terms(batch.to(self._device), done_fraction)
                row = self._update(terms, learning_rate)
                totals = [total + value for total, value in zip(totals, row, strict=True)]
                count += 1
        metrics = {name: total / count for name, total in zip(_METRICS, totals, strict=True)}
        metrics["explained_variance"] = explained_variance(rollout)
        metrics["learning_rate"] = learning_rate
        phases.advantage_s += middle - begin
        phases.update_s += perf_counter() - middle
        return metrics

    def _estimate(self, rollout: Rollout, reward: Tensor) -> None:
        """Fill the rollout's advantages and returns."""
        terminated, gamma = rollout.terminated, self._algo.gamma
        if not self._algo.baseline:
            rollout.value.zero_()  # plain REINFORCE: the advantage is the return
        elif rollout.out_of_band.any():
            # The value of a final observation that came out of band is folded into the reward, and
            # the episode then ends there: the same delta as bootstrapping from row t+1.
            reward = reward + gamma * rollout.final_value
            terminated = terminated | rollout.out_of_band
        gae(
            reward,
            rollout.value,
            terminated,
            rollout.truncated,
            gamma,
            self._algo.gae_lambda,
            rollout.advantage,
            rollout.return_,
        )

    def _terms(self, batch: Batch, done_fraction: float) -> LossTerms:
        log_prob, entropy, value = self._model.evaluate(batch.obs, batch.action, batch.state, batch.start)
        advantage = batch.advantage
        if self._algo.normalize_advantage:
            advantage = normalize_advantage(advantage, batch.weight)
        return self._loss(
            log_prob,
            entropy,
            value,
            batch.log_prob,
            advantage,
            batch.return_,
            batch.weight,
            self._algo.vf_coef if self._algo.baseline else 0.0,
            anneal(self._optim.ent_coef_schedule, self._algo.ent_coef, done_fraction),
            anneal(self._optim.clip_coef_schedule, self._algo.clip_coef, done_fraction),
        )

    def _update(self, terms: LossTerms, learning_rate: float) -> list[float]:
        """Step once and return the values of `_METRICS`; the only reads of tensors per update."""
        named = [terms.policy_loss, terms.value_loss, terms.entropy, terms.approx_kl, terms.clip_fraction]
        values: list[float] = torch.stack([term.detach() for term in named]).tolist()
        if not math.isfinite(sum(values)):
            name = next(name for name, value in zip(_METRICS, values, strict=False) if not math.isfinite(value))
            raise NonFiniteError(f"update {self.updates + 1}: {name} is not finite")
        grad_norm = self._apply(terms.total, learning_rate)
        if not math.isfinite(grad_norm):
            raise NonFiniteError(f"update {self.updates + 1}: grad_norm is {grad_norm}")
        self.updates += 1
        return [*values, grad_norm]

    def get_state(self) -> StateTree:
        """The optimiser's slots and the update count."""
        return {"apply": self._apply.get_state(), "updates": self.updates}

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""
        self._apply.set_state(read_branch(state, "apply"))
        self.updates = int(read_number(state, "updates"))


_METRICS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm")


def explained_variance(rollout: Rollout) -> float:
    """Return 1 - Var[return - value] / Var[return] over valid rows; NaN where returns do not vary.

    1 is a perfect critic, 0 one no better than a constant.
    """
    valid = rollout.valid.numpy()
    return_ = rollout.return_.numpy()[valid]
    residual = rollout.advantage.numpy()[valid]
    var = float(return_.var()) if return_.size else 0.0
    return 1.0 - float(residual.var()) / var if var > 0.0 else math.nan
