"""The numerical kernels of the hot loop: one file per family, one signature per kernel.

A kernel knows nothing of rollouts, configs or models: arrays in, arrays out. Its reference documents it; tests hold
every fast form to it by fuzzing. `fastac.kernels.kernel` says how to add one.
"""

from fastac.kernels.categorical_loss import categorical_loss
from fastac.kernels.episodes import find_episodes
from fastac.kernels.frames import scale_images, stack_frames
from fastac.kernels.gae import batch_moments, compute_gae, compute_moments, gae
from fastac.kernels.gaussian_loss import gaussian_loss
from fastac.kernels.kernel import cache_folder, compile_kernels
from fastac.kernels.layers import Activation, prepare_dense
from fastac.kernels.losses import Surrogate
from fastac.kernels.optimizers import adam_step, rmsprop_step
from fastac.kernels.sampling import sample_categorical

__all__ = [
    "Activation",
    "Surrogate",
    "adam_step",
    "batch_moments",
    "cache_folder",
    "categorical_loss",
    "compute_gae",
    "compute_moments",
    "find_episodes",
    "gae",
    "gaussian_loss",
    "prepare_dense",
    "rmsprop_step",
    "sample_categorical",
    "scale_images",
    "stack_frames",
]

compile_kernels()
