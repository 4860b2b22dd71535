"""Chooses the actor and the gradient for a model, by its modules, head and device."""

from __future__ import annotations

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


def build_engine(
    config: Config, model: ActorCritic, rollout: Rollout, generator: torch.Generator, device: torch.device
) -> tuple[Actor, Gradient, int]:
    """Build the actor and the gradient of a model; return also the bytes that they keep.

    The first update reuses the activations from acting if its batch is the whole rollout.
    """
    keep_activations = config.keeps_forward
    loss = _LOSSES[config.algo.algo]
    objective = build_objective(model.head, loss)
    if not is_fusable(model) or (model.state_size and device.type != "cpu"):  # the kernels of cores are for the CPU
        return _build_autograd(model, objective, rollout, generator, device, keep_activations)
    network, sampler = FusedNetwork(model), build_sampler(model.head, rollout.num_envs)
    rows = config.batch_size // config.algo.num_minibatches
    if device.type != "cpu":
        (whole,) = FlatMinibatches(1, generator).split(rollout)
        staged = StagedGradient(network, objective, whole.rows(0, rows))
        return StagedActor(network, sampler, rollout, generator), staged, staged.nbytes
    fused = FusedActor(network, sampler, rollout, generator, keep_activations)
    kept, goes_forward = fused.activations if keep_activations else None, config.algo.num_epochs > 1
    gradient = FusedGradient(network, objective, kept, rows, goes_forward)
    return fused, gradient, fused.nbytes + gradient.nbytes


def _build_autograd(
    model: ActorCritic,
    objective: Objective,
    rollout: Rollout,
    generator: torch.Generator,
    device: torch.device,
    keep_activations: bool,
) -> tuple[Actor, Gradient, int]:
    """Build both for any model; the memory of autograd's graphs is unknown and not counted."""
    if not keep_activations:
        return ModelActor(model, rollout, generator, device), AutogradGradient(model, objective, device), 0
    actor = GraphActor(model, model, model.head, rollout, generator, device)
    return actor, AutogradGradient(model, objective, device, actor.graphs), 0


def build_objective(head: Head, loss: PolicyLoss) -> Objective:
    """Build the objective: with a kernel if there is one for exactly this head and loss, else with autograd."""
    if _has_kernel(head, loss):
        if isinstance(head, CategoricalHead):
            return CategoricalObjective(_SURROGATES[loss])
        if isinstance(head, GaussianHead):
            return GaussianObjective(head, _SURROGATES[loss])
    return PlainObjective(head, loss)


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
