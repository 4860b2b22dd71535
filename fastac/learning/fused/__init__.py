"""Networks of fastac's own layers without autograd: acting leaves its activations behind, learning starts from them.

The readable twin is `ActorCritic` under autograd, which tests hold this to.
"""

from fastac.learning.fused.actor import FusedActor, Sampler
from fastac.learning.fused.fusable import is_as_written, is_fusable
from fastac.learning.fused.gradient import FusedGradient, FusedObjective
from fastac.learning.fused.heads import (
    CategoricalFusedObjective,
    CategoricalSampler,
    GaussianFusedObjective,
    PlainFusedObjective,
    PlainSampler,
)
from fastac.learning.fused.network import Activations, FusedNetwork
from fastac.learning.fused.staged import StagedActor, StagedGradient

__all__ = [
    "Activations",
    "CategoricalFusedObjective",
    "CategoricalSampler",
    "FusedActor",
    "FusedGradient",
    "FusedNetwork",
    "FusedObjective",
    "GaussianFusedObjective",
    "PlainFusedObjective",
    "PlainSampler",
    "Sampler",
    "StagedActor",
    "StagedGradient",
    "is_as_written",
    "is_fusable",
]
