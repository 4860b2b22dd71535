"""Images as floats, and frames in stacks: by hand, and every form exactly the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels_support import SEEDS, forms, generator

from fastac.kernels import pixel_moments, scale_images, stack_frames, standardize_images

SCALE = forms(scale_images)


@SCALE
def test_by_hand(kernel):
    images = torch.tensor([[[0, 1, 2], [255, 3, 4]], [[5, 6, 7], [8, 9, 10]]], dtype=torch.uint8)  # [2, 2, 3]
    out = torch.full((2, 3, 2), torch.nan)
    kernel(images, out, 0.5)
    assert out.tolist() == [[[0.0, 127.5], [0.5, 1.5], [1.0, 2.0]], [[2.5, 4.0], [3.0, 4.5], [3.5, 5.0]]]


@SCALE
@given(
    st.integers(0, 3),
    st.integers(1, 6),
    st.sampled_from([1, 2, 15, 16, 17, 64, 100]),
    st.sampled_from([1.0, 1 / 255.0]),
    SEEDS,
)
def test_equals_the_reference_bit_for_bit(kernel, num_images, num_channels, num_pixels, scale, seed):
    shape = (num_images, num_channels, num_pixels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))
    want, out = torch.full((2, num_images, num_pixels, num_channels), torch.nan).unbind(0)
    scale_images.reference(images, want, scale)
    kernel(images, out, scale)
    assert torch.equal(out, want)
    assert torch.equal(out, (images.float() * scale).transpose(1, 2))


def test_what_the_kernel_cannot_read_is_refused():
    images, out = torch.zeros(2, 3, 4, dtype=torch.uint8), torch.zeros(2, 4, 3)
    for wrong in ((images.float(), out), (images, out.double()), (images, out[:1]), (images.transpose(1, 2), out)):
        with pytest.raises(ValueError, match="contiguous one of"):
            scale_images(*wrong, 1.0)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), SEEDS)
def test_stacks_equal_the_reference(num_steps, num_envs, depth, seed):
    random = generator(seed)
    frames = torch.randint(0, 256, (depth - 1 + num_steps, num_envs, 5, 7), dtype=torch.uint8, generator=random)
    age = torch.randint(0, depth, (num_steps, num_envs), generator=random)
    index = torch.randint(0, num_steps * num_envs, (11,), generator=random)
    out = [torch.full((11, depth, 5, 7), 7, dtype=torch.uint8) for _ in range(2)]
    for kernel, stacks in zip((stack_frames.reference, stack_frames), out, strict=True):
        kernel(frames, age, index, stacks)
    assert torch.equal(*out)
    assert torch.equal(out[0][:, -1], frames.flatten(0, 1)[index + (depth - 1) * num_envs])


def test_stacks_in_other_memory_are_refused():
    frames, age = torch.zeros(4, 2, 3, dtype=torch.uint8), torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="the kernel takes a contiguous one"):
        stack_frames(frames, age, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4, 3))


@forms(standardize_images)
def test_standardized_by_hand(kernel):
    images = torch.tensor([[[0, 10, 255], [20, 12, 7]]], dtype=torch.uint8)  # [1, 2, 3]
    mean, factor = torch.tensor([10.0, 10.0, 5.0]), torch.tensor([0.5, 2.0, 1.0])
    out = torch.full((1, 3, 2), torch.nan)
    kernel(images, mean, factor, 10.0, out)
    assert out.tolist() == [[[-5.0, 5.0], [0.0, 4.0], [10.0, 2.0]]]


@forms(standardize_images)
@given(st.integers(0, 3), st.integers(1, 6), st.sampled_from([1, 2, 15, 16, 17, 64, 100]), SEEDS)
def test_standardized_equals_the_reference_bit_for_bit(kernel, num_images, num_channels, num_pixels, seed):
    random, shape = generator(seed), (num_images, num_channels, num_pixels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    mean, factor = 255.0 * torch.rand(num_pixels, generator=random), torch.rand(num_pixels, generator=random)
    want, out = torch.full((2, num_images, num_pixels, num_channels), torch.nan).unbind(0)
    standardize_images.reference(images, mean, factor, 10.0, want)
    kernel(images, mean, factor, 10.0, out)
    assert torch.equal(out, want)
    assert torch.equal(out, ((images.transpose(1, 2).float() - mean[:, None]) * factor[:, None]).clamp(-10.0, 10.0))


@forms(pixel_moments)
def test_moments_of_pixels_by_hand(kernel):
    images = torch.tensor([[1, 255], [9, 9], [3, 255]], dtype=torch.uint8)
    moments = torch.full((5,), 7.0, dtype=torch.float64)
    kernel(images, torch.tensor([True, False, True]), moments)
    assert moments.tolist() == [2.0, 2.0, 255.0, 1.0, 0.0]
    kernel(images, torch.zeros(3, dtype=torch.bool), moments)
    assert moments.tolist() == [0.0] * 5


@forms(pixel_moments)
@given(st.integers(0, 40), st.sampled_from([1, 9, 1023, 1024, 1025, 2500]), SEEDS)
def test_moments_of_pixels_equal_the_reference_bit_for_bit(kernel, num_images, num_pixels, seed):
    random = generator(seed)
    images = torch.randint(0, 256, (num_images, num_pixels), dtype=torch.uint8, generator=random)
    valid = torch.rand(num_images, generator=random) < 0.8
    moments, want = torch.empty(2, 1 + 2 * num_pixels, dtype=torch.float64).unbind(0)
    kernel(images, valid, moments)
    pixel_moments.reference(images, valid, want)
    assert torch.equal(moments, want)
    if valid.any():
        chosen = images[valid].double()
        torch.testing.assert_close(moments[1 : 1 + num_pixels], chosen.mean(dim=0), rtol=1e-12, atol=0.0)
        torch.testing.assert_close(moments[1 + num_pixels :], chosen.var(dim=0, correction=0), rtol=1e-9, atol=1e-9)
