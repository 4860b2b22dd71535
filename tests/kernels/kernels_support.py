"""The twins of each kernel as one test parameter, and random cases for them."""

import importlib
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import fastac.kernels
from fastac.kernels import reference

CUDA = torch.cuda.is_available()
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, which is for Linux")


def moved(value, device):
    return value.to(device) if isinstance(value, torch.Tensor) else value


def by_triton(name):
    """Triton's twin itself, in the interpreter; its arguments lie on the CPU."""

    def kernel(*args):
        with np.errstate(all="ignore"):  # the interpreter computes with numpy, which a GPU's NaN does not warn like
            getattr(importlib.import_module("fastac.kernels.triton_twins"), name)(*args)

    return kernel


def on_cuda(name):
    """The kernel on copies of its arguments on the device, brought back."""

    def kernel(*args):
        copies = [moved(arg, "cuda") for arg in args]
        getattr(fastac.kernels, name)(*copies)
        for arg, copy in zip(args, copies, strict=True):
            if isinstance(arg, torch.Tensor):
                arg.copy_(copy)

    return kernel


def twins(name):
    """Parametrise a test's `kernel` with every twin, which all have one signature."""
    interpreted = pytest.mark.skipif(CUDA, reason="with a CUDA device, Triton's kernel runs there")
    gpu = [pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="needs a CUDA device")]
    return pytest.mark.parametrize(
        "kernel",
        [
            pytest.param(getattr(reference, name), id="reference"),
            pytest.param(getattr(fastac.kernels, name), id="numba"),
            pytest.param(by_triton(name), id="triton-interpreted", marks=[interpreted, needs_triton]),
            pytest.param(on_cuda(name), id="triton", marks=gpu),
        ],
    )


SEEDS = st.integers(0, 2**32 - 1)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def in_float64(args):
    """Copies of the arguments of a kernel, for the reference that is the oracle."""
    return [
        (arg.double() if arg.dtype == torch.float32 else arg.clone()) if isinstance(arg, torch.Tensor) else arg
        for arg in args
    ]
