"""The forms of each kernel as one test parameter, and random cases for them."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

CUDA = torch.cuda.is_available()
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, which is for Linux")


def moved(value, device):
    return value.to(device) if isinstance(value, torch.Tensor) else value


def interpreted(kernel):
    """Triton's form, in the interpreter; its arguments lie on the CPU."""

    def run(*args):
        with np.errstate(all="ignore"):  # the interpreter computes with numpy, which a GPU's NaN does not warn like
            kernel.on_cuda(*args)

    return run


def on_device(kernel):
    """The kernel on copies of its arguments on the device, brought back."""

    def run(*args):
        copies = [moved(arg, "cuda") for arg in args]
        kernel(*copies)
        for arg, copy in zip(args, copies, strict=True):
            if isinstance(arg, torch.Tensor):
                arg.copy_(copy)

    return run


def forms(kernel, has_triton=False):
    """Parametrise a test's `kernel` with every form of a kernel, which all have one signature.

    Without one of Triton's, CUDA tensors go to the reference.
    """
    without_device = pytest.mark.skipif(CUDA, reason="with a CUDA device, Triton's form runs there")
    gpu = [pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="needs a CUDA device")]
    params = [
        pytest.param(kernel.reference, id="reference"),
        pytest.param(kernel, id="numba"),
        pytest.param(on_device(kernel), id="cuda", marks=gpu),
    ]
    if has_triton:
        params.append(pytest.param(interpreted(kernel), id="triton-interpreted", marks=[without_device, needs_triton]))
    return pytest.mark.parametrize("kernel", params)


SEEDS = st.integers(0, 2**32 - 1)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def in_float64(args):
    """Copies of the arguments of a kernel, for the reference that is the oracle."""
    return [
        (arg.double() if arg.dtype == torch.float32 else arg.clone()) if isinstance(arg, torch.Tensor) else arg
        for arg in args
    ]
