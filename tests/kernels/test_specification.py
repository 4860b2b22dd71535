"""What follows from a reference's signature: sizes, checks, and what the fast forms are called with."""

from inspect import signature
from typing import Annotated, Literal

import pytest
import torch
from torch import Tensor

from fastac.kernels import adam_step, sample_categorical, stack_frames
from fastac.kernels.kernel import KERNELS
from fastac.kernels.specification import Specification, refuse


def example(
    rows: Annotated[Tensor, "float32 T+1 N"],
    ends: Annotated[Tensor, "bool T N"],
    kind: Literal["a", "b"],
    rate: float,
    count: int,
    is_last: bool,
    found: Annotated[Tensor, "float64 T*N"],
) -> None:
    """Stands for a reference."""


def call_of(specification):
    namespace = {"call": lambda *args: args, "refuse": refuse, "float32": torch.float32, "float64": torch.float64}
    exec(specification.write_call(by_address=False), {"bool": torch.bool} | namespace, found := {})
    return found["example"]


ROWS, ENDS, FOUND = torch.zeros(4, 2), torch.zeros(3, 2, dtype=torch.bool), torch.zeros(6, dtype=torch.float64)


def test_a_fast_form_gets_sizes_then_arguments():
    specification = Specification.read(example, "T N")
    assert specification.signature == "void(i8, i8, i8, i8, i8, f8, i8, b1, i8)"
    args = call_of(specification)(ROWS, ENDS, "b", 0.5, 7, True, FOUND)
    assert args[:2] == (3, 2) and args[4:8] == (1, 0.5, 7, True)
    assert args[2] is ROWS and args[3] is ENDS and args[8] is FOUND
    # A size comes from the first array that has its letter alone.
    assert call_of(Specification.read(example, "N T"))(ROWS, ENDS, "a", 0.5, 7, True, FOUND)[:2] == (2, 3)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ((ROWS[:3], ENDS, FOUND), "rows"),  # T, not T+1
        ((ROWS, ENDS.float(), FOUND), "ends"),
        ((ROWS.T.contiguous().T, ENDS, FOUND), "rows"),
        ((ROWS, ENDS, FOUND[1:]), "found"),
    ],
)
def test_an_array_that_does_not_fit_is_refused_by_name(wrong, name):
    rows, ends, found = wrong
    with pytest.raises(ValueError, match=rf"^{name} of shape .* the kernel takes a contiguous one of \d+ elements"):
        call_of(Specification.read(example, "T N"))(rows, ends, "a", 0.5, 7, True, found)


def test_arguments_may_be_named():
    row = torch.ones(3)
    names = ["grad", "average", "square", "grad_scale", "learning_rate", "beta1", "beta2", "eps", "count"]
    numbers = [torch.ones(3), torch.zeros(3), torch.zeros(3), 1.0, 0.5, 0.9, 0.9, 1e-8, 1]
    adam_step(row, **dict(zip(names, numbers, strict=True)))
    assert row.tolist() == pytest.approx([0.5] * 3)
    with pytest.raises(TypeError, match="missing 4 required positional arguments: 'uniform', 'action'"):
        sample_categorical(torch.zeros(1, 2))


def test_cuda_tensors_go_to_the_reference_where_triton_has_no_form():
    without = [kernel for kernel in KERNELS if kernel.triton_form is None]
    assert {adam_step, stack_frames} < {*without} and sample_categorical not in without
    assert all(kernel.on_cuda == kernel.reference for kernel in without)


def test_a_star_is_all_dimensions_that_are_left():
    assert "_, N, *F, = frames.shape\n    F = prod(F)" in stack_frames.specification.write_call(by_address=True)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_every_fast_form_takes_the_arguments_of_its_reference(kernel):
    names = list(signature(kernel.reference).parameters)
    for form in filter(None, (kernel.numba_form, kernel.triton_form)):
        parameters = list(signature(form).parameters)
        assert parameters[len(kernel.specification.sizes) :] == names
