"""Models: encoder -> core -> heads; log-probs and entropies of heads are summed to `[T, N]`."""

from fastac.models.actor_critic import ActorCritic, Trunk
from fastac.models.cores import Core, GRUCore, IdentityCore, LSTMCore
from fastac.models.encoders import ConvEncoder, KeyedEncoder, MLPEncoder, Shape, is_planar, make_activation, pick_net
from fastac.models.heads import CategoricalHead, DependentGaussianHead, GaussianHead, Head, MultiCategoricalHead
from fastac.models.loading import load_module
from fastac.models.normalizers import (
    ImageNormalizer,
    NoObsNormalizer,
    NoRewardNormalizer,
    ObsNormalizer,
    RewardClipper,
    RewardNormalizer,
    RewardScaler,
    RunningMoments,
    merge_moments,
)

__all__ = [
    "ActorCritic",
    "CategoricalHead",
    "ConvEncoder",
    "Core",
    "DependentGaussianHead",
    "GRUCore",
    "GaussianHead",
    "Head",
    "IdentityCore",
    "ImageNormalizer",
    "KeyedEncoder",
    "LSTMCore",
    "MLPEncoder",
    "MultiCategoricalHead",
    "NoObsNormalizer",
    "NoRewardNormalizer",
    "ObsNormalizer",
    "RewardClipper",
    "RewardNormalizer",
    "RewardScaler",
    "RunningMoments",
    "Shape",
    "Trunk",
    "is_planar",
    "load_module",
    "make_activation",
    "merge_moments",
    "pick_net",
]
