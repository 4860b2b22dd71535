"""Loads saved tensors into a module."""

from __future__ import annotations

from torch import nn

from fastac.contract import StateTree, read_tensor


def load_module(module: nn.Module, state: StateTree) -> None:
    """Load saved tensors.

    Raises:
        ValueError: the tensors belong to another network, or are not finite.
    """
    own = module.state_dict()
    try:
        module.load_state_dict({key: read_tensor(state, key, own[key]) for key in state})
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            "the saved weights do not fit this network: if the run began with an encoder of your own, "
            "resume and load it from Python with the same encoder."
        ) from error
    if not all(bool(value.isfinite().all()) for value in module.state_dict().values()):
        raise ValueError("the saved weights are not finite.")
