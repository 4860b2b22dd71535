"""Forward and backward passes of fastac's own networks without autograd; learning reuses the activations from acting.

The readable reference is `ActorCritic` under autograd; tests compare the two.
"""

from fastac.learning.fused.actor import FusedActor, Sampler
from fastac.learning.fused.fusable import is_as_written, is_fusable
from fastac.learning.fused.gradient import FusedGradient, UpdateBuffers
from fastac.learning.fused.network import Activations, FusedNetwork
from fastac.learning.fused.samplers import CategoricalSampler, GaussianSampler, PlainSampler
from fastac.learning.fused.staged import StagedActor, StagedGradient

__all__ = [
    "Activations",
    "CategoricalSampler",
    "FusedActor",
    "FusedGradient",
    "FusedNetwork",
    "GaussianSampler",
    "PlainSampler",
    "Sampler",
    "StagedActor",
    "StagedGradient",
    "UpdateBuffers",
    "is_as_written",
    "is_fusable",
]
