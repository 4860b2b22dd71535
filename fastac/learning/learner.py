"""One learner for A2C, PPO and REINFORCE: takes a rollout, updates the parameters, returns metrics.

Algorithms differ only in settings: objective, epochs, minibatches, lambda, baseline.
"""

from __future__ import annotations

import math
from operator import is_
from time import perf_counter
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastac.config import Config
from fastac.contract import Alone, Group, NonFiniteError, Phases, StateTree, read_branch, read_count
from fastac.kernels import Op, batch_moments, gae, join_calls, merge_moments, weigh_rows
from fastac.learning.objectives import TERMS, Coefs, Gradient
from fastac.learning.optimizer import Optimizer
from fastac.learning.schedules import anneal
from fastac.rollout import Batch, Minibatches, Rollout

Moments: TypeAlias = tuple[float, float, float]  # number of rows, mean, and sum of squared deviations from it


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
        self._moments, self._coefs = torch.zeros(5, dtype=torch.float64), Coefs()
        gather, self._everyones = self._group.prepare_gather(self._moments)  # [K, 5]
        weigh = weigh_rows.prepare(self._everyones, self._algo.normalize_advantage, self._coefs.weights)
        self._weigh = join_calls([*gather, weigh])
        self._given: tuple[Tensor | None, ...] = (None,) * 5  # what the calls of an estimate read
        self._estimates: list[Op] = []
        self._metrics = torch.zeros(len(_METRICS), dtype=torch.float64)  # of an update
        self._learning_rate = torch.zeros(1, dtype=torch.float64)
        # Views, since making one takes a microsecond.
        self._views = self._metrics.numpy(), self._coefs.schedule.numpy(), self._learning_rate.numpy()
        # The calls of an update, by number of the batch; they are made once, since batches do not move.
        self._prepared: dict[tuple[int, bool], tuple[Batch, list[Op]]] = {}
        self._rollout: Rollout | None = None  # that they read
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
        self._schedule(done_fraction)
        is_whole = self._algo.num_minibatches == 1
        totals, count = np.zeros(len(_METRICS)), 0
        for epoch in range(self._algo.num_epochs):
            is_fresh = is_whole and epoch == 0
            for batch in self._minibatches.split(rollout):
                totals += self._update(rollout, batch, is_fresh)
                count += 1
        metrics: dict[str, float] = dict(zip(_METRICS, (totals / count).tolist(), strict=True))
        # 1 - Var[return - value] / Var[return]: 1 for a perfect critic, 0 for one no better than a constant.
        metrics["explained_variance"] = 1.0 - advantages[2] / returns[2] if returns[2] > 0.0 else math.nan
        _, schedule, rate = self._views
        metrics["learning_rate"] = float(rate[0])
        if self._algo.algo == "ppo":  # also logged by SB3
            vf_coef, ent_coef, clip_coef = schedule.tolist()
            critic, entropy = vf_coef * metrics["value_loss"], ent_coef * metrics["entropy"]
            metrics["loss"], metrics["clip_range"] = metrics["policy_loss"] + critic - entropy, clip_coef
        self.rows = int(advantages[0])
        phases.advantage_s += middle - begin
        phases.update_s += perf_counter() - middle
        return metrics

    def _schedule(self, done_fraction: float) -> None:
        """Set the coefficients and the learning rate for this part of the run."""
        algo, optim = self._algo, self._optim
        _, schedule, rate = self._views
        schedule[0] = algo.vf_coef if algo.baseline else 0.0
        schedule[1] = anneal(optim.ent_coef_schedule, algo.ent_coef, done_fraction)
        schedule[2] = anneal(optim.clip_coef_schedule, algo.clip_coef, done_fraction)
        rate[0] = anneal(optim.learning_rate_schedule, optim.learning_rate, done_fraction)

    def _estimate(self, rollout: Rollout, reward: Tensor) -> tuple[Moments, Moments]:
        """Fill the rollout's advantages and returns; return their moments over all workers' valid rows.

        The weights of a batch that is the whole rollout follow from them.
        """
        terminated, gamma = rollout.terminated, self._algo.gamma
        if not self._algo.baseline:
            rollout.value.zero_()  # plain REINFORCE: the advantage is the return
        elif rollout.out_of_band.numpy().any():
            # SAME_STEP/DISABLED: V(final obs) is not in value[t+1]. Add gamma*V to the reward and treat the row as
            # terminal (the time-out trick of rsl_rl); delta is the same.
            reward = reward + gamma * rollout.final_value
            terminated = terminated | rollout.out_of_band
        given = reward, rollout.value, terminated, rollout.truncated, rollout.valid
        written = rollout.advantage, rollout.return_, self._moments
        if not all(map(is_, given, self._given)):  # the usual tensors are the same every time
            estimate = gae.prepare(*given, gamma, self._algo.gae_lambda, *written)
            self._given, self._estimates = given, join_calls([estimate, *self._weigh])
        for op in self._estimates:
            op()
        everyones = self._everyones.tolist()
        of_return = [(count, mean, m2) for count, _, _, mean, m2 in everyones]
        return merge_moments([parts[:3] for parts in everyones]), merge_moments(of_return)

    def _update(self, rollout: Rollout, batch: Batch, is_fresh: bool) -> NDArray[np.float64]:
        """Apply one update and return the values of `_METRICS`."""
        for op in self._prepare(rollout, batch, is_fresh):
            op()
        metrics, *_ = self._views
        if not math.isfinite(metrics.sum()):
            found = zip(_METRICS, metrics.tolist(), strict=True)
            name, value = next((name, value) for name, value in found if not math.isfinite(value))
            raise NonFiniteError(f"update {self.updates + 1}: {name} is {value}, expected a finite number")
        self.updates += 1
        return metrics

    def _prepare(self, rollout: Rollout, batch: Batch, is_fresh: bool) -> list[Op]:
        """Return the calls of an update."""
        if self._rollout is not rollout:
            self._rollout, self._prepared = rollout, {}
        key = id(batch), is_fresh
        known, ops = self._prepared.get(key, (None, []))
        if known is not batch:
            terms, norm = self._metrics.split([len(TERMS), 1])
            if self._algo.num_minibatches > 1:
                ops = [batch_moments.prepare(batch.advantage.view(-1), batch.valid.view(-1), self._moments[:3])]
                ops += self._weigh
            ops += self._gradient.prepare(batch, self._coefs, terms, is_fresh)
            ops = join_calls([*ops, *self._optimizer.prepare(terms, norm, self._learning_rate)])
            self._prepared[key] = batch, ops
        return ops

    def get_state(self) -> StateTree:
        """Return the optimiser's slots and the update count."""
        return {"optimizer": self._optimizer.get_state(), "updates": self.updates}

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""
        self._optimizer.set_state(read_branch(state, "optimizer"))
        self.updates = read_count(state, "updates")


_METRICS = (*TERMS, "grad_norm")
