"""The numerical kernels of the hot loop: each one readable reference and fast twins, one signature.

A kernel knows nothing of rollouts, configs or models: arrays in, arrays out. `reference` defines and
documents each; tests hold every fast twin to it by fuzzing.
"""

from fastac.kernels.dispatch import (
    adam_step,
    batch_moments,
    cache_folder,
    categorical_loss,
    find_episodes,
    gae,
    gaussian_loss,
    prepare_dense,
    rmsprop_step,
    sample_categorical,
    scale_images,
    stack_frames,
)
from fastac.kernels.reference import gae_reference, moments_reference

__all__ = [
    "adam_step",
    "batch_moments",
    "cache_folder",
    "categorical_loss",
    "find_episodes",
    "gae",
    "gae_reference",
    "gaussian_loss",
    "moments_reference",
    "prepare_dense",
    "rmsprop_step",
    "sample_categorical",
    "scale_images",
    "stack_frames",
]
