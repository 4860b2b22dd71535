"""Networks of fastac's own layers without autograd: acting leaves its activations behind, learning starts from them.

The readable twin is `ActorCritic` under autograd, which tests hold this to.
"""

from fastac.fused.actor import FusedActor, Sampler
from fastac.fused.fusable import is_as_written, is_fusable
from fastac.fused.gradient import FusedGradient, FusedObjective
from fastac.fused.heads import (
    CategoricalFusedObjective,
    CategoricalSampler,
    GaussianFusedObjective,
    PlainFusedObjective,
    PlainSampler,
)
from fastac.fused.network import FusedNetwork, Tape
from fastac.fused.staged import StagedActor, StagedGradient

__all__ = [
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
    "Tape",
    "is_as_written",
    "is_fusable",
]
