"""The numerical kernels of the hot loop: one file per family, one signature per kernel.

Kernels take and write arrays and know nothing about rollouts, configs or models. The reference of a kernel is its
documentation; fuzz tests compare every fast form with it. `fastac.kernels.kernel` explains how to add one.
"""

from fastac.kernels.categorical_loss import categorical_loss
from fastac.kernels.episodes import find_episodes, note_episodes
from fastac.kernels.frames import pixel_moments, scale_images, stack_frames, standardize_images
from fastac.kernels.gae import batch_moments, compute_gae, compute_moments, gae, merge_moments, weigh_rows
from fastac.kernels.gaussian_loss import gaussian_loss
from fastac.kernels.gradients import SQUARES_BLOCK, clip_gradient, num_blocks, sum_gradients, sum_squares
from fastac.kernels.kernel import cache_folder, compile_kernels
from fastac.kernels.layer_gradients import Derivative, deactivate, heads_backward
from fastac.kernels.layers import (
    Activation,
    copy_row,
    dense,
    standardize,
    take_columns,
    tanh,
    transpose,
    write_columns,
)
from fastac.kernels.losses import Surrogate
from fastac.kernels.matrices import multiply_columns, multiply_rows
from fastac.kernels.optimizers import adam_step, rmsprop_step
from fastac.kernels.program import Op, Program, join_calls
from fastac.kernels.recurrent import gru_backward, gru_forward, lstm_backward, lstm_forward
from fastac.kernels.rows import as_bytes, copy_bytes, find_nonfinite, gather_rows, prepare_copy
from fastac.kernels.sampling import greedy_categorical, mask_logits, sample_categorical, sample_gaussian
from fastac.kernels.statistics import column_moments, discounted_moments

__all__ = [
    "SQUARES_BLOCK",
    "Activation",
    "Derivative",
    "Op",
    "Program",
    "Surrogate",
    "adam_step",
    "as_bytes",
    "batch_moments",
    "cache_folder",
    "categorical_loss",
    "clip_gradient",
    "column_moments",
    "compute_gae",
    "compute_moments",
    "copy_bytes",
    "copy_row",
    "deactivate",
    "dense",
    "discounted_moments",
    "find_episodes",
    "find_nonfinite",
    "gae",
    "gather_rows",
    "gaussian_loss",
    "greedy_categorical",
    "gru_backward",
    "gru_forward",
    "heads_backward",
    "join_calls",
    "lstm_backward",
    "lstm_forward",
    "mask_logits",
    "merge_moments",
    "multiply_columns",
    "multiply_rows",
    "note_episodes",
    "num_blocks",
    "pixel_moments",
    "prepare_copy",
    "rmsprop_step",
    "sample_categorical",
    "sample_gaussian",
    "scale_images",
    "stack_frames",
    "standardize",
    "standardize_images",
    "sum_gradients",
    "sum_squares",
    "take_columns",
    "tanh",
    "transpose",
    "weigh_rows",
    "write_columns",
]

compile_kernels()
