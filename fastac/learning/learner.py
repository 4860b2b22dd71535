"""One learner for A2C, PPO and REINFORCE: takes rollouts, updates the parameters, returns metrics.

Algorithms differ only in settings: objective, epochs, minibatches, lambda, baseline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from operator import is_
from time import perf_counter
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastac.config import Config
from fastac.contract import Alone, Group, NonFiniteError, Phases, StateTree, read_amount, read_branch, read_count
from fastac.kernels import Op, batch_moments, gae, join_calls, merge_moments, weigh_rows
from fastac.learning.objectives import TERMS, Coefs, Gradient
from fastac.learning.optimizer import Optimizer
from fastac.learning.schedules import adapt_rate, anneal
from fastac.rollout import Batch, Minibatches, Preview, Rollout

Moments: TypeAlias = tuple[float, float, float]  # number of rows, mean, and sum of squared deviations from it


class Learner:
    """Computes advantages and updates the model on the rollouts of this process's shards, together with the others.

    Attributes:
        updates: optimiser steps taken since the run began.
        rows: number of valid rows in the last rollouts, summed over all shards.
    """

    def __init__(
        self,
        config: Config,
        gradients: Sequence[Gradient],
        minibatches: Sequence[Minibatches],
        optimizer: Optimizer,
        group: Group | None = None,
    ) -> None:
        """Store the parts; only settings are read from `config`.

        Args:
            config: the algorithm and the schedules.
            gradients: one for each of this process's shards, L.
            minibatches: likewise.
            optimizer: updates the parameters.
            group: this process's shards among all; None: they are all.
        """
        self._algo, self._optim = config.algo, config.optim
        self._gradients, self._minibatches, self._optimizer = gradients, minibatches, optimizer
        self._group = group or Alone(len(gradients))
        # [L, 5] each: moments of the shards' rows, and loss terms.
        self._moments, self._parts = (torch.zeros(len(gradients), 5, dtype=torch.float64) for _ in range(2))
        self._coefs = Coefs()
        # Of every minibatch of an epoch, its place in these [L, M * 5] and, of all shards, in these [M, S, 5].
        num = self._algo.num_minibatches
        self._previews = torch.zeros(len(gradients), 5 * num, dtype=torch.float64)
        self._gather_previews, self._everyones_previews = self._group.prepare_gather(self._previews)
        shards = len(self._everyones_previews)
        self._by_batch = torch.zeros(num, shards, 5, dtype=torch.float64)
        self._weigh_batch = [self._prepare_weights(part) for part in self._by_batch]
        self._looks: list[Op] = []  # the calls that fill them
        gather, self._everyones = self._group.prepare_gather(self._moments)  # [S, 5]
        weigh = weigh_rows.prepare(self._everyones, self._algo.normalize_advantage, self._coefs.weights)
        self._weigh = join_calls([*gather, weigh])
        self._given: list[Tensor] = []  # what the calls of an estimate read
        self._estimates: list[Op] = []
        self._metrics = torch.zeros(len(_METRICS), dtype=torch.float64)  # of an update
        # The learning rates at the start of the run, the critic's last if it has its own, and those of now.
        starts = self._optim.learning_rate, self._optim.critic_learning_rate
        self._start_rates = np.array([rate for rate in starts if rate is not None])
        self._rates = torch.zeros(len(self._start_rates), dtype=torch.float64)
        self._is_adaptive = self._optim.learning_rate_schedule == "adaptive"
        self._rate_share = 1.0  # of those at the start, changed if they are adaptive
        # Views, since making one takes a microsecond.
        self._views = self._metrics.numpy(), self._coefs.schedule.numpy(), self._rates.numpy()
        # The calls of an update, by the batches; they are made once, since batches do not move.
        self._prepared: dict[tuple[int | bool, ...], tuple[tuple[Batch, ...], list[Op]]] = {}
        self._rollouts: Sequence[Rollout] = ()  # that they read
        self.updates = 0
        self.rows = 0

    def learn(
        self, rollouts: Sequence[Rollout], rewards: Sequence[Tensor], done_fraction: float, phases: Phases
    ) -> dict[str, float]:
        """Update the model on one rollout of each shard.

        Args:
            rollouts: the collected rollouts.
            rewards: `[T, N]` each, the rewards to learn from (raw, or normalised).
            done_fraction: env_steps / total_env_steps, 0 to 1, for schedules.
            phases: the elapsed time is added to it.

        Returns:
            Means over the updates, see `Report.losses`.

        Raises:
            NonFiniteError: a loss term or the gradient norm is not finite; the parameters are unchanged by that
                update.
        """
        begin = perf_counter()
        advantages, returns = self._estimate(rollouts, rewards)
        middle = perf_counter()
        self._schedule(done_fraction)
        if len(rollouts) != len(self._rollouts) or not all(map(is_, rollouts, self._rollouts)):
            self._rollouts, self._prepared, self._looks = tuple(rollouts), {}, []
        is_whole = self._algo.num_minibatches == 1
        totals, count = np.zeros(len(_METRICS)), 0
        for epoch in range(self._algo.num_epochs):
            is_fresh = is_whole and epoch == 0
            previews = [part.begin_epoch(rollout) for part, rollout in zip(self._minibatches, rollouts, strict=True)]
            self._look_ahead(previews)
            each = [part.batches() for part in self._minibatches]
            for number, batches in enumerate(zip(*each, strict=True)):
                if not is_whole:
                    self._weigh_batch[number]()
                totals += self._update(batches, is_fresh)
                count += 1
            if not self._heed_kl(is_fresh):
                break
        metrics: dict[str, float] = dict(zip(_METRICS, (totals / count).tolist(), strict=True))
        # 1 - Var[return - value] / Var[return]: 1 for a perfect critic, 0 for one no better than a constant.
        metrics["explained_variance"] = 1.0 - advantages[2] / returns[2] if returns[2] > 0.0 else math.nan
        _, schedule, rates = self._views
        metrics["learning_rate"] = float(rates[0])
        if self._algo.algo == "ppo":  # also logged by SB3
            vf_coef, ent_coef, clip_coef = schedule.tolist()
            critic, entropy = vf_coef * metrics["value_loss"], ent_coef * metrics["entropy"]
            metrics["loss"], metrics["clip_range"] = metrics["policy_loss"] + critic - entropy, clip_coef
        if self._algo.target_kl is not None:
            metrics["epochs"] = epoch + 1.0
        self.rows = int(advantages[0])
        phases.advantage_s += middle - begin
        phases.update_s += perf_counter() - middle
        return metrics

    def _schedule(self, done_fraction: float) -> None:
        """Set the coefficients and the learning rates for this part of the run."""
        algo, optim = self._algo, self._optim
        _, schedule, rates = self._views
        schedule[0] = algo.vf_coef if algo.baseline else 0.0
        schedule[1] = anneal(optim.ent_coef_schedule, algo.ent_coef, done_fraction)
        schedule[2] = anneal(optim.clip_coef_schedule, algo.clip_coef, done_fraction)
        rates[:] = self._start_rates * anneal(optim.learning_rate_schedule, self._rate_share, done_fraction)

    def _heed_kl(self, is_fresh: bool) -> bool:
        """Compare the KL of the epoch's last minibatch with the target; return whether to go on with the next epoch.

        It is that of the parameters before the last update, summed over all shards, so all workers do the same. Epochs
        end as in CleanRL (Huang et al. 2022): with the first one whose KL exceeds the target. An adaptive learning rate
        changes between epochs, see `adapt_rate`, and then no epoch is left out. Before a rollout's first update
        (`is_fresh`) the KL is 0 and says nothing.
        """
        target, (metrics, _, rates) = self._algo.target_kl, self._views
        if target is None or is_fresh:
            return True
        kl = float(metrics[_KL])
        if not self._is_adaptive:
            return kl <= target
        self._rate_share = adapt_rate(float(rates[0]), kl, target) / self._optim.learning_rate
        rates[:] = self._start_rates * self._rate_share
        return True

    def _prepare_weights(self, moments: Tensor) -> Op:
        """Return the call that weighs a minibatch's rows, from the moments of all shards, `[S, 5]`."""
        algo, weights = self._algo, self._coefs.weights
        if algo.advantage_scope == "minibatch":
            return weigh_rows.prepare(moments, algo.normalize_advantage, weights)
        # Only the number of rows is the minibatch's; the rollout's shift and scale stay.
        own = torch.zeros_like(weights)
        weigh = weigh_rows.prepare(moments, False, own)

        def weigh_batch() -> None:
            weigh()
            weights[0] = own[0]

        return weigh_batch

    def _estimate(self, rollouts: Sequence[Rollout], rewards: Sequence[Tensor]) -> tuple[Moments, Moments]:
        """Fill the rollouts' advantages and returns; return their moments over all shards' valid rows.

        The weights of batches that are whole rollouts follow from them.
        """
        taken = [self._take(rollout, reward) for rollout, reward in zip(rollouts, rewards, strict=True)]
        given = [part for parts in taken for part in parts]
        if len(given) != len(self._given) or not all(map(is_, given, self._given)):  # they are mostly the same
            settings, estimates = (self._algo.gamma, self._algo.gae_lambda), list[Op]()
            for rollout, parts, moments in zip(rollouts, taken, self._moments, strict=True):
                estimates.append(gae.prepare(*parts, *settings, rollout.advantage, rollout.return_, moments))
            self._given, self._estimates = given, join_calls([*estimates, *self._weigh])
        for op in self._estimates:
            op()
        everyones = self._everyones.tolist()
        of_return = [(count, mean, m2) for count, _, _, mean, m2 in everyones]
        return merge_moments([parts[:3] for parts in everyones]), merge_moments(of_return)

    def _take(self, rollout: Rollout, reward: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return what advantages are estimated from."""
        terminated = rollout.terminated
        if not self._algo.baseline:
            rollout.value.zero_()  # plain REINFORCE: the advantage is the return
        elif rollout.out_of_band.numpy().any():
            # SAME_STEP/DISABLED: V(final obs) is not in value[t+1]. Add gamma*V to the reward and treat the row as
            # terminal (the time-out trick of rsl_rl); delta is the same.
            reward = reward + self._algo.gamma * rollout.final_value
            terminated = terminated | rollout.out_of_band
        return reward, rollout.value, terminated, rollout.truncated, rollout.valid

    def _look_ahead(self, previews: Sequence[Sequence[Preview]]) -> None:
        """Find the moments of all minibatches of an epoch, of all shards, in one exchange."""
        if not previews[0]:
            return
        if not self._looks:
            ops: list[Op] = []
            for shard, parts in zip(self._previews.view(len(previews), -1, 5), previews, strict=True):
                for moments, (advantage, valid) in zip(shard, parts, strict=True):
                    ops.append(batch_moments.prepare(advantage, valid, moments[:3]))
            everyones = self._everyones_previews.view(-1, *self._by_batch.shape[::2]).transpose(0, 1)
            self._looks = join_calls([*ops, *self._gather_previews, partial(self._by_batch.copy_, everyones)])
        for op in self._looks:
            op()

    def _update(self, batches: tuple[Batch, ...], is_fresh: bool) -> NDArray[np.float64]:
        """Apply one update, on a batch of each shard, and return the values of `_METRICS`."""
        for op in self._prepare(batches, is_fresh):
            op()
        metrics, *_ = self._views
        if not math.isfinite(metrics.sum()):
            found = zip(_METRICS, metrics.tolist(), strict=True)
            name, value = next((name, value) for name, value in found if not math.isfinite(value))
            raise NonFiniteError(f"update {self.updates + 1}: {name} is {value}, expected a finite number")
        self.updates += 1
        return metrics

    def _prepare(self, batches: tuple[Batch, ...], is_fresh: bool) -> list[Op]:
        """Return the calls of an update."""
        key = (*map(id, batches), is_fresh)
        known = self._prepared.get(key)
        if known is None:  # the batches are kept too, so that no other batch gets their ids
            known = self._prepared[key] = batches, self._make_calls(batches, is_fresh)
        return known[1]

    def _make_calls(self, batches: tuple[Batch, ...], is_fresh: bool) -> list[Op]:
        """Return the calls of an update: each shard's gradient, then the step."""
        ops: list[Op] = []
        for shard, (gradient, batch) in enumerate(zip(self._gradients, batches, strict=True)):
            ops += gradient.prepare(batch, self._coefs, self._parts[shard], is_fresh)
            ops += self._optimizer.prepare_keep(shard)
        terms, norm = self._metrics.split([len(TERMS), 1])
        return join_calls([*ops, *self._optimizer.prepare(self._parts, terms, norm, self._rates)])

    def get_state(self) -> StateTree:
        """Return the optimiser's slots and the update count, and how far an adaptive learning rate has come."""
        share = {"rate_share": self._rate_share} if self._is_adaptive else {}
        return {"optimizer": self._optimizer.get_state(), "updates": self.updates, **share}

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""
        self._optimizer.set_state(read_branch(state, "optimizer"))
        self.updates = read_count(state, "updates")
        if self._is_adaptive and "rate_share" in state:
            self._rate_share = read_amount(state, "rate_share")


_METRICS = (*TERMS, "grad_norm")
_KL = _METRICS.index("approx_kl")
