"""The inputs and outputs of an exported policy: what the environment gives, and what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from gymnasium.spaces import Dict, Discrete, MultiDiscrete, Space, Tuple
from numpy.typing import NDArray

from fastac.contract import ObsArray
from fastac.envs.leaves import Leaf, RawObs, flatten_leaf
from fastac.envs.masks import MASK_KEY
from fastac.envs.rows import FlatBox
from fastac.envs.spaces import SquashedBox, space_dtype
from fastac.models import DependentGaussianHead, GaussianHead
from fastac.tools.policy import TrainedPolicy

Arrays: TypeAlias = dict[str, NDArray[np.generic]]

OBS, MASK, STATE, START = "obs", "action_mask", "state", "start"
ACTION, VALUE, NEXT_STATE = "action", "value", "next_state"

# What the formats cannot take as it is.
_NEAREST = {"uint16": "int64", "uint32": "int64", "uint64": "int64", "float16": "float32"}

_MASK_PLACES = {
    "observation": f"the observation's key {MASK_KEY!r}, flat",
    "method": "what the environment's action_masks() returns, flat",
    "info": f"info[{MASK_KEY!r}], flat",
}


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output.

    Attributes:
        name: its name.
        shape: without the batch dimension, which comes first.
        dtype: NumPy's name of it.
        meaning: one sentence.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    meaning: str

    def tell(self) -> str:
        """Return name, shape and dtype in words."""
        return f"{self.name} [{', '.join(map(str, ('N', *self.shape)))}] {self.dtype}"


@dataclass(frozen=True, slots=True)
class Column:
    """An input of the observation.

    Attributes:
        port: the input.
        leaf: the part of the observation that it takes.
        begin: its first column in the row that the model reads.
        end: one past its last column.
    """

    port: Port
    leaf: Leaf
    begin: int
    end: int

    @property
    def categories(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """For each column of a one-hot input which of its numbers it shows, and which value; None: not one-hot."""
        space = self.leaf.space
        if not isinstance(space, Discrete | MultiDiscrete):
            return None
        sizes = np.atleast_1d(space.n if isinstance(space, Discrete) else space.nvec.ravel())
        starts = np.atleast_1d(space.start).ravel()
        values = [start + np.arange(size) for start, size in zip(starts, sizes, strict=True)]
        return np.repeat(np.arange(len(sizes)), sizes).astype(np.int64), np.concatenate(values).astype(np.int64)

    def read(self, rows: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return what the environment gave, from rows `[N, D]`."""
        part, found = rows[:, self.begin : self.end], self.categories
        if found is not None:
            which, values = found
            numbers = [values[which == i][part[:, which == i].argmax(axis=1)] for i in range(which[-1] + 1)]
            part = np.stack(numbers, axis=1)
        return part.reshape(len(rows), *self.port.shape).astype(self.port.dtype)


class Signature:
    """The inputs and outputs of a policy as a file.

    Attributes:
        columns: the inputs of the observation, in the order of the row that the model reads.
        inputs: all inputs, in order.
        outputs: likewise.
    """

    def __init__(self, policy: TrainedPolicy) -> None:
        """Describe a policy."""
        self._policy = policy
        self.columns = _find_columns(policy)
        self.inputs = [column.port for column in self.columns]
        mask_size, state_size = policy.model.mask_size, policy.model.state_size
        if mask_size:
            assert policy.mask_source is not None
            self.inputs.append(Port(MASK, (mask_size,), "int8", f"{_MASK_PLACES[policy.mask_source]}; 0 is illegal"))
        self.outputs = [
            Port(ACTION, policy.action_space.shape or (), _nearest(policy.action_space), "the most likely action"),
            Port(VALUE, (), "float32", "the expected discounted return from here, in the scale of training"),
            *_find_params(policy),
        ]
        if state_size:
            self.inputs.append(Port(STATE, (state_size,), "float32", "next_state of the call before; zeros at first"))
            self.inputs.append(Port(START, (), "bool", "whether the observation is the first of an episode"))
            self.outputs.append(Port(NEXT_STATE, (state_size,), "float32", "the memory, for the next call"))

    def read_rows(self, rows: NDArray[np.generic]) -> Arrays:
        """Return the inputs, without memory, of rows `[N, D + M]` as environments write them."""
        if not isinstance(self._policy.row_space, FlatBox):
            return {OBS: rows.astype(self.inputs[0].dtype)}
        found = {column.port.name: column.read(rows) for column in self.columns}
        size = self._policy.model.mask_size
        return found | ({MASK: rows[:, -size:].astype(np.int8)} if size else {})

    def rebuild(self, inputs: Mapping[str, NDArray[np.generic]]) -> tuple[RawObs, NDArray[np.generic] | None]:
        """Return the observations that inputs stand for, and the mask if the observation does not hold it."""
        values = {column.leaf.path: inputs[column.port.name] for column in self.columns}
        mask = inputs.get(MASK)
        is_inside = self._policy.mask_source == "observation"
        if mask is not None and is_inside:
            values[(MASK_KEY,)] = mask
        return _rebuild(self._policy.observation_space, values, ()), None if is_inside else mask

    def to_json(self, ports: list[Port]) -> list[dict[str, object]]:
        """Return inputs or outputs for the manifest."""
        return [
            {"name": port.name, "shape": ["N", *port.shape], "dtype": port.dtype, "meaning": port.meaning}
            for port in ports
        ]


def _find_columns(policy: TrainedPolicy) -> list[Column]:
    space = policy.row_space
    if not isinstance(space, FlatBox):
        shape = space.shape or ()
        port = Port(OBS, shape, _nearest(space), f"the observation, as the environment returns it: {_name(space)}")
        return [Column(port, Leaf((), space), 0, int(np.prod(shape)))]
    columns = []
    for part in space.parts:
        leaf = part.leaf
        name = "/".join([OBS, *map(str, leaf.path)])
        where = f"the observation's key {leaf.key!r}" if leaf.path else "the observation"
        port = Port(name, leaf.space.shape or (), _nearest(leaf.space), f"{where}, as it is: {_name(leaf.space)}")
        columns.append(Column(port, leaf, part.begin, part.end))
    return columns


def _find_params(policy: TrainedPolicy) -> list[Port]:
    head = policy.model.head
    size = head.layer.out_features
    if not isinstance(head, GaussianHead | DependentGaussianHead):
        kind = "of each action" if isinstance(policy.action_space, Discrete) else "of the values of every component"
        return [Port("logits", (size,), "float32", f"unnormalised log-probabilities {kind}; -inf: illegal")]
    size = size // 2 if isinstance(head, DependentGaussianHead) else size
    is_squashed = isinstance(policy.action_space, SquashedBox)
    way = "squashed, as low + (high - low) * (tanh(x) + 1) / 2," if is_squashed else "clipped"
    return [
        Port("mean", (size,), "float32", f"of the Gaussian; a sample x is {way} to the Box"),
        Port("log_std", (size,), "float32", "logarithm of its standard deviation"),
    ]


def _nearest(space: Space[ObsArray]) -> str:
    name = space_dtype(space).name
    return _NEAREST.get(name, name)


def _name(space: Space[ObsArray]) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _rebuild(space: object, values: Mapping[tuple[str | int, ...], RawObs], path: tuple[str | int, ...]) -> RawObs:
    """Return a nested observation; () where a part is not read."""
    if path in values or not isinstance(space, Dict | Tuple):
        return values.get(path, ())
    if isinstance(space, Dict):
        return {key: _rebuild(part, values, (*path, key)) for key, part in space.spaces.items()}
    return tuple(_rebuild(part, values, (*path, index)) for index, part in enumerate(space.spaces))


def flatten_rows(policy: TrainedPolicy, obs: RawObs, mask: NDArray[np.bool_]) -> NDArray[np.generic]:
    """Return the row of one observation, with its mask `[M]`."""
    space = policy.row_space
    if isinstance(space, FlatBox):
        values = space.flatten(obs)
        return space.join(values, mask) if len(mask) else values
    return flatten_leaf(space, obs).reshape(space.shape or ())
