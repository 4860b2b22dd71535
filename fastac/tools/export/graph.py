"""The policy as one torch module: from what the environment gives to the environment's action."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import Tensor, nn

from fastac.envs import observation_dtype
from fastac.envs.spaces import SquashedBox
from fastac.tools.export.signature import ACTION, Column, Signature
from fastac.tools.policy import TrainedPolicy, name_params

log = logging.getLogger("fastac")

_TRACED = 3  # rows of the example; any other number must work, too


def _to_torch(dtype: str) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, dtype)).dtype


class _Part(nn.Module):
    """The columns of one input."""

    which: Tensor
    values: Tensor

    def __init__(self, column: Column, dtype: torch.dtype) -> None:
        super().__init__()
        self._size, self._dtype = max(int(np.prod(column.port.shape)), 1), dtype
        found = column.categories
        self._is_one_hot = found is not None
        if found is not None:
            self.register_buffer("which", torch.from_numpy(found[0]))
            self.register_buffer("values", torch.from_numpy(found[1]))

    def forward(self, given: Tensor) -> Tensor:
        flat = given.reshape(-1, self._size)
        if self._is_one_hot:
            return (flat.to(torch.int64).index_select(1, self.which) == self.values).to(self._dtype)
        return flat.to(self._dtype)


class _ToEnv(nn.Module):
    """The map from the head's actions to the environment's; see `map_actions`."""

    start: Tensor
    low: Tensor
    high: Tensor
    reach: Tensor

    def __init__(self, policy: TrainedPolicy, dtype: torch.dtype) -> None:
        super().__init__()
        space = policy.action_space
        self._dtype, self._is_box, self._squashes = dtype, isinstance(space, Box), isinstance(space, SquashedBox)
        if isinstance(space, Box):
            self.register_buffer("low", torch.from_numpy(space.low.copy()).to(dtype))
            self.register_buffer("high", torch.from_numpy(space.high.copy()).to(dtype))
            self.register_buffer("reach", 0.5 * (self.high - self.low))
            return
        start = space.start if isinstance(space, Discrete | MultiDiscrete) else 0
        self.register_buffer("start", torch.from_numpy(np.asarray(start, np.int64)))

    def forward(self, action: Tensor) -> Tensor:
        if not self._is_box:
            return (action + self.start).to(self._dtype)
        action = action.to(self._dtype)
        if self._squashes:
            return torch.minimum((torch.tanh(action) + 1.0) * self.reach + self.low, self.high)
        return torch.minimum(torch.maximum(action, self.low), self.high)


class PolicyGraph(nn.Module):
    """Maps the inputs of a signature to its outputs, for any number of rows."""

    def __init__(self, policy: TrainedPolicy, signature: Signature) -> None:
        """Copy the policy's network to the CPU."""
        super().__init__()
        row = policy.row_space
        dtype = _to_torch(observation_dtype(row).name)
        self.parts = nn.ModuleList(_Part(column, dtype) for column in signature.columns)
        self.model = copy.deepcopy(policy.model).cpu().eval().requires_grad_(False)
        action = next(port for port in signature.outputs if port.name == ACTION)
        self.to_env = _ToEnv(policy, _to_torch(action.dtype))
        self._row_shape, self._dtype = row.shape or (), dtype
        self._has_mask, self._has_memory = bool(self.model.mask_size), bool(self.model.state_size)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return action, value, parameters of the distribution and the next state."""
        row = [part(given) for part, given in zip(self.parts, inputs, strict=False)]
        if self._has_mask:
            row.append((inputs[len(self.parts)] != 0).to(self._dtype))
        obs = (row[0] if len(row) == 1 else torch.cat(row, dim=1)).reshape(-1, *self._row_shape)
        if self._has_memory:
            state, start = inputs[-2], inputs[-1]
        else:
            state, start = obs.new_zeros((1, 0), dtype=torch.float32), obs.new_zeros((1,), dtype=torch.bool)
        params, value, after = self.model(obs, state, start)
        head = self.model.head
        outputs = [self.to_env(head.mode(params)), value, *name_params(head, params).values()]
        return (*outputs, after) if self._has_memory else tuple(outputs)


def example_inputs(signature: Signature) -> tuple[Tensor, ...]:
    """Return inputs of ones."""
    return tuple(torch.from_numpy(np.ones((_TRACED, *port.shape), port.dtype)) for port in signature.inputs)


def trace(policy: TrainedPolicy, signature: Signature) -> torch.jit.ScriptModule:
    """Trace the policy.

    Raises:
        ValueError: an encoder of the user's cannot be traced.
    """
    graph = PolicyGraph(policy, signature).eval()
    try:
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            traced = torch.jit.trace(graph, example_inputs(signature), check_trace=False)
    except Exception as error:  # of the user's encoder
        raise ValueError(
            f"the policy cannot be traced ({' '.join(str(error).split())[:200]}): an encoder to export may use torch's "
            "operations only, on tensors whose first dimension is of any size."
        ) from error
    assert isinstance(traced, torch.jit.ScriptModule)
    for warning in caught:
        if warning.category.__name__ == "TracerWarning":  # of the encoder: fastac's own modules give none
            reason = str(warning.message).split(". ")[0]
            log.warning("the file may differ from the encoder at %s:%d: %s", warning.filename, warning.lineno, reason)
    return traced


@contextmanager
def without_warnings() -> Iterator[None]:
    """Hide the deprecations of TorchScript, and what its exporter prints before it raises."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
