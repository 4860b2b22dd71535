"""Image kernels: build stacks of frames from a rollout, convert bytes to floats, and measure pixels."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from fastac.kernels.kernel import kernel
from fastac.kernels.numba_tools import Bools, Bytes, Doubles, Floats, Ints, U, jit


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


@kernel("M C P")
def standardize_images(
    images: Annotated[Tensor, "uint8 M C P"],
    mean: Annotated[Tensor, "float32 P"],
    factor: Annotated[Tensor, "float32 P"],
    limit: float,
    out: Annotated[Tensor, "float32 M P C"],
) -> None:
    """Standardise every pixel with its own mean and factor, as floats with channels last.

    Args:
        images: planes of P pixels one after the other; images with channels last are a single plane.
        mean: subtracted; the same for all planes.
        factor: multiplied after that.
        limit: results are clipped to +-limit.
        out: written: (images - mean) * factor, clipped.
    """
    torch.clamp((images.transpose(1, 2) - mean[:, None]) * factor[:, None], -limit, limit, out=out)


@jit()
def _standardize_four(
    images: Bytes, mean: Floats, factor: Floats, limit: float, out: Floats, start: int, num_pixels: int
) -> None:
    for p in range(num_pixels):
        read, write = start + p, start + p * U(4)
        for c in range(U(4)):
            standard = (np.float32(images[read + c * num_pixels]) - mean[p]) * factor[p]
            out[write + c] = min(max(standard, -limit), limit)


@jit()
def _standardize_any(
    images: Bytes,
    mean: Floats,
    factor: Floats,
    limit: float,
    out: Floats,
    start: int,
    num_channels: int,
    num_pixels: int,
) -> None:
    for c in range(num_channels):
        read, write = start + c * num_pixels, start + c
        for p in range(num_pixels):
            standard = (np.float32(images[read + p]) - mean[p]) * factor[p]
            out[write + p * num_channels] = min(max(standard, -limit), limit)


@standardize_images.numba
def _standardize_images_numba(
    num_images: int,
    num_channels: int,
    num_pixels: int,
    images: Bytes,
    mean: Floats,
    factor: Floats,
    limit: float,
    out: Floats,
) -> None:
    size = num_channels * num_pixels
    for m in range(num_images):
        if num_channels == 4:  # see `_scale_images_numba`
            _standardize_four(images, mean, factor, np.float32(limit), out, U(m * size), U(num_pixels))
        else:
            _standardize_any(images, mean, factor, np.float32(limit), out, U(m * size), U(num_channels), U(num_pixels))


@kernel("M P")
def pixel_moments(
    images: Annotated[Tensor, "uint8 M P"],
    valid: Annotated[Tensor, "bool M"],
    moments: Annotated[Tensor, "float64 1+2*P"],
) -> None:
    """Write the number of valid images, and mean and variance (of the population) of each of their pixels.

    Sums of bytes and of their squares are whole numbers, so the order of the images does not matter. They fit in 64
    bits for up to 2^24 images.

    Args:
        images: P bytes each.
        valid: images that count.
        moments: written: the number, P means, P variances; zeros if no image counts.
    """
    chosen = images[valid].long()
    count = max(len(chosen), 1)
    sums, squares = chosen.sum(dim=0), (chosen * chosen).sum(dim=0)
    variance = (count * squares - sums * sums).double() / count / count
    moments.copy_(torch.cat([moments.new_tensor([len(chosen)]), sums.double() / count, variance]))


_BLOCK = 1024  # pixels whose sums stay in the first cache


@jit()
def _sum_block(
    images: Bytes, valid: Bools, num_images: int, num_pixels: int, begin: int, size: int, sums: Ints, squares: Ints
) -> None:
    for m in range(num_images):
        if valid[m]:
            read = m * num_pixels + begin
            for p in range(size):
                pixel = np.int64(images[read + p])
                sums[p] += pixel
                squares[p] += pixel * pixel


@pixel_moments.numba
def _pixel_moments_numba(num_images: int, num_pixels: int, images: Bytes, valid: Bools, moments: Doubles) -> None:
    sums, squares = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    count = 0
    for m in range(num_images):
        count += valid[m]
    moments[0] = count
    divisor = max(count, 1)
    for begin in range(0, num_pixels, _BLOCK):
        size = min(_BLOCK, num_pixels - begin)
        sums[:], squares[:] = 0, 0
        _sum_block(images, valid, U(num_images), U(num_pixels), U(begin), U(size), sums, squares)
        for p in range(size):
            moments[1 + begin + p] = sums[p] / float(divisor)
            spread = divisor * squares[p] - sums[p] * sums[p]
            moments[1 + num_pixels + begin + p] = spread / float(divisor) / float(divisor)
