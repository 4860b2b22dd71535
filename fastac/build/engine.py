"""Chooses the actor and the gradient for a model, by its modules, head and device."""

from __future__ import annotations

import math

import torch

from fastac.config import AlgoName, Config
from fastac.contract import Actor
from fastac.kernels import Surrogate
from fastac.learning.autograd import AutogradGradient
from fastac.learning.fused import (
    CategoricalSampler,
    FusedActor,
    FusedGradient,
    FusedNetwork,
    GaussianSampler,
    PlainSampler,
    Sampler,
    StagedActor,
    StagedGradient,
    UpdateBuffers,
    is_as_written,
    is_fusable,
)
from fastac.learning.losses import PolicyLoss, clipped_surrogate, policy_gradient
from fastac.learning.objectives import CategoricalObjective, GaussianObjective, Gradient, Objective, PlainObjective
from fastac.models import ActorCritic, CategoricalHead, GaussianHead, Head
from fastac.rollout import FlatMinibatches, GraphActor, ModelActor, Rollout

_LOSSES: dict[AlgoName, PolicyLoss] = {
    "a2c": policy_gradient,
    "a3c": policy_gradient,
    "reinforce": policy_gradient,
    "ppo": clipped_surrogate,
}
# The losses that have kernels, with the kernels' names for them.
_SURROGATES: dict[PolicyLoss, Surrogate] = {policy_gradient: "policy_gradient", clipped_surrogate: "clipped"}


class EngineBuilder:
    """Builds the actor and the gradient of each shard of a worker, over one model.

    The first update reuses the activations from acting if its batch is the whole rollout.

    Attributes:
        nbytes: memory that those built so far keep; that of autograd's graphs is unknown and not counted.
    """

    def __init__(self, config: Config, model: ActorCritic, device: torch.device) -> None:
        """Choose by the model's modules, its head and the device; `config` is that of one shard."""
        self._config, self._model, self._device = config, model, device
        clip_value_coef = math.inf if config.algo.clip_value_coef is None else config.algo.clip_value_coef
        self._objective = build_objective(model.head, _LOSSES[config.algo.algo], clip_value_coef)
        is_fused = is_fusable(model) and not (model.state_size and device.type != "cpu")  # cores: kernels for the CPU
        self._network = FusedNetwork(model) if is_fused else None
        self._rows = config.batch_size // config.algo.num_minibatches
        self._buffers: UpdateBuffers | None = None
        self.nbytes = 0

    def build(self, rollout: Rollout, generator: torch.Generator) -> tuple[Actor, Gradient]:
        """Build both for a rollout; `generator` samples the actions."""
        if self._network is None:
            return self._build_autograd(rollout, generator)
        sampler = build_sampler(self._model.head, rollout.num_envs)
        if self._device.type != "cpu":
            (whole,) = FlatMinibatches(1, generator, self._config.algo.clip_value_coef is not None).split(rollout)
            staged = StagedGradient(self._network, self._objective, whole.rows(0, self._rows))
            self.nbytes += staged.nbytes
            return StagedActor(self._network, sampler, rollout, generator), staged
        keep_activations = self._config.keeps_forward
        actor = FusedActor(self._network, sampler, rollout, generator, keep_activations)
        kept = actor.activations if keep_activations else None
        if self._buffers is None:  # shards learn one after the other
            goes_forward = kept is None or self._config.algo.num_epochs > 1
            self._buffers = UpdateBuffers.allocate(self._network, self._rows, goes_forward)
            self.nbytes += self._buffers.nbytes
        self.nbytes += actor.nbytes
        return actor, FusedGradient(self._network, self._objective, kept, self._buffers)

    def _build_autograd(self, rollout: Rollout, generator: torch.Generator) -> tuple[Actor, Gradient]:
        model, device = self._model, self._device
        if not self._config.keeps_forward:
            return ModelActor(model, rollout, generator, device), AutogradGradient(model, self._objective, device)
        actor = GraphActor(model, model, model.head, rollout, generator, device)
        return actor, AutogradGradient(model, self._objective, device, actor.graphs)


def build_objective(head: Head, loss: PolicyLoss, clip_value_coef: float = math.inf) -> Objective:
    """Build the objective: with a kernel if there is one for exactly this head and loss, else with autograd."""
    if _has_kernel(head, loss):
        if isinstance(head, CategoricalHead):
            return CategoricalObjective(_SURROGATES[loss], clip_value_coef)
        if isinstance(head, GaussianHead):
            return GaussianObjective(head, _SURROGATES[loss], clip_value_coef)
    return PlainObjective(head, loss, clip_value_coef)


def _has_kernel(head: Head, loss: PolicyLoss) -> bool:
    """Return whether a kernel computes this loss; the head's type must match exactly, as subclasses may differ."""
    return loss in _SURROGATES and type(head) in (CategoricalHead, GaussianHead) and is_as_written(head)


def build_sampler(head: Head, num_envs: int) -> Sampler:
    """Build the sampler of a fused network's actions."""
    if not is_as_written(head):
        return PlainSampler(head)
    if isinstance(head, CategoricalHead) and type(head) is CategoricalHead:
        return CategoricalSampler(head, num_envs)
    if isinstance(head, GaussianHead) and type(head) is GaussianHead:
        return GaussianSampler(head)
    return PlainSampler(head)
