"""Image kernels: build stacks of frames from a rollout, and convert bytes to floats."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.numba_tools import Bytes, Floats, Ints, U, jit


@kernel("T N M S F")
def stack_frames(
    frames: Annotated[Tensor, "uint8 S-1+T N *F"],
    age: Annotated[Tensor, "int64 T N"],
    index: Annotated[Tensor, "int64 M"],
    stacks: Annotated[Tensor, "uint8 M S *F"],
) -> None:
    """Build the frame stacks observed at some rows of a rollout, in which each frame is stored once.

    Args:
        frames: row t of the rollout is frame `S - 1 + t`.
        age: number of earlier frames in the episode of each row.
        index: `t * N + n` of each row.
        stacks: written: newest frame last, zero before the episode's first frame.
    """
    size, num_envs = stacks.shape[1], frames.shape[1]
    t, n = index // num_envs, index % num_envs  # [M]
    for lag in range(size):
        is_there = (age[t, n] >= lag).view(-1, *(1,) * (frames.dim() - 2))  # [M, 1, ...]
        stacks[:, size - 1 - lag] = frames[t + size - 1 - lag, n] * is_there


@stack_frames.numba
def _stack_frames_numba(
    _num_steps: int,
    num_envs: int,
    num_rows: int,
    depth: int,
    frame_size: int,
    frames: Bytes,
    age: Ints,
    index: Ints,
    stacks: Bytes,
) -> None:
    for m in range(num_rows):
        row = index[m]
        for lag in range(depth):
            write = U((m * depth + depth - 1 - lag) * frame_size)
            if age[row] >= lag:
                read = U((row + (depth - 1 - lag) * num_envs) * frame_size)
                for i in range(U(frame_size)):
                    stacks[write + i] = frames[read + i]
            else:
                for i in range(U(frame_size)):
                    stacks[write + i] = np.uint8(0)


@kernel("M C P")
def scale_images(
    images: Annotated[Tensor, "uint8 M C P"], out: Annotated[Tensor, "float32 M P C"], scale: float
) -> None:
    """Convert images to float with channels last, as read by convolutions.

    Args:
        images: planes of P pixels one after the other; images with channels last are a single plane.
        out: written: images * scale.
        scale: factor for every element.
    """
    torch.mul(images.transpose(1, 2), scale, out=out)


@jit()
def _scale_four(images: Bytes, out: Floats, start: int, num_pixels: int, scale: float) -> None:
    for p in range(num_pixels):
        read, write = start + p, start + p * U(4)
        out[write] = np.float32(images[read]) * scale
        out[write + U(1)] = np.float32(images[read + num_pixels]) * scale
        out[write + U(2)] = np.float32(images[read + U(2) * num_pixels]) * scale
        out[write + U(3)] = np.float32(images[read + U(3) * num_pixels]) * scale


@jit()
def _scale_any(images: Bytes, out: Floats, start: int, num_channels: int, num_pixels: int, scale: float) -> None:
    for c in range(num_channels):
        read, write = start + c * num_pixels, start + c
        for p in range(num_pixels):
            out[write + p * num_channels] = np.float32(images[read + p]) * scale


@scale_images.numba
def _scale_images_numba(
    num_images: int, num_channels: int, num_pixels: int, images: Bytes, out: Floats, scale: float
) -> None:
    size = num_channels * num_pixels
    for m in range(num_images):
        if num_channels == 4:  # Atari frame stacks: LLVM vectorises the four stores
            _scale_four(images, out, U(m * size), U(num_pixels), np.float32(scale))
        else:
            _scale_any(images, out, U(m * size), U(num_channels), U(num_pixels), np.float32(scale))
