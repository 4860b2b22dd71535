"""Spaces that are saved with a policy: what comes back is what there was, and nothing else is taken."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from fastac.config import Config
from fastac.envs.rows import FlatBox, Reading
from fastac.envs.saved_spaces import Spaces, load_spaces, save_spaces
from fastac.envs.spaces import SquashedBox
from fastac.runs.checkpoint import load_checkpoint, save_checkpoint

NESTED = Dict(
    [
        ("z", Discrete(3, start=-1)),
        ("a/b", Dict(sign=Box(-1.0, 1.0, (1, 1), np.float32))),
        ("m", Tuple([MultiBinary((2, 3)), MultiDiscrete([2, 3], start=[1, -1])])),
    ]
)

MASKED = Reading(critic_keys=("b",), mask_source="observation", mask_size=4)
SPACES = [
    Box(-np.inf, np.inf, (4,), np.float32),
    Box(np.array([-1.5, 0.1], np.float64), np.array([2.5, np.inf], np.float64), dtype=np.float64),
    Box(0, 255, (3, 8, 8), np.uint8),
    Box(-5, 2**40, (2,), np.int64),
    FlatBox(NESTED),
    FlatBox(Dict(a=Box(0, 255, (3, 3, 3), np.uint8), b=Discrete(2), action_mask=Box(0, 1, (4,), np.int8)), MASKED),
    FlatBox(Discrete(5, start=2)),
    SquashedBox(Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))),
    Discrete(4, start=-2),
    MultiDiscrete([2, 5], start=[3, 0]),
    MultiBinary(3),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_it_comes_back_as_it_was(tmp_path: object, space: object) -> None:
    state = save_spaces(Spaces(space, Discrete(2)))
    path = save_checkpoint(tmp_path, 1, {"spaces": state}, Config())
    found = load_spaces(load_checkpoint(path).state["spaces"]).single_observation_space
    assert type(found) is type(space) and found == space and found.dtype == space.dtype
    if isinstance(space, FlatBox):
        assert found.original == space.original
        assert not isinstance(space.original, Dict) or list(found.original) == list(space.original)
    if isinstance(space, Discrete | MultiDiscrete):
        assert np.array_equal(found.start, space.start)


def test_of_what_is_dropped_only_its_place_is_known(tmp_path: object) -> None:
    class Mission(Space):
        """A space of the user's."""

    shown = Box(-1.0, 1.0, (2,), np.float32)
    space = FlatBox(
        Dict(goal=Tuple((Mission(), shown)), mission=Mission(), x=Discrete(2)), Reading(("goal/0", "mission"))
    )
    path = save_checkpoint(tmp_path, 1, {"spaces": save_spaces(Spaces(space, Discrete(2)))}, Config())
    found = load_spaces(load_checkpoint(path).state["spaces"]).single_observation_space
    assert found == space and found.original["goal"][1] == shown
    obs = {"goal": ("far", np.array([0.5, -0.5])), "mission": "go", "x": 1}
    assert found.flatten(obs).tolist() == space.flatten(obs).tolist() == [0.5, -0.5, 0, 1]


def test_an_image_costs_no_more_than_its_bounds() -> None:
    saved = save_spaces(Spaces(Box(0, 255, (4, 84, 84), np.uint8), Discrete(2)))["observation"]
    assert saved["low"].size == saved["high"].size == 1


BOX = {"kind": "box", "dtype": "float32", "shape": np.array([2]), "low": np.zeros(1), "high": np.ones(1)}


@pytest.mark.parametrize(
    "forged",
    [
        {},
        {"kind": "os.system"},
        {**BOX, "dtype": "object"},
        {**BOX, "shape": np.array([10**6, 10**6])},
        {**BOX, "shape": np.array([-1])},
        {**BOX, "low": np.zeros(3)},
        {**BOX, "low": "x"},
        {"kind": "discrete", "n": "many", "start": 0},
        {"kind": "discrete", "n": 0, "start": 0},
        {"kind": "dict", "parts": 3},
        {"kind": "flat", "original": {"kind": "dict", "parts": {}}},
        {"kind": "tuple", "parts": {"1": BOX}},
        {"kind": "squashed", "original": {"kind": "discrete", "n": 2, "start": 0}},
    ],
    ids=str,
)
def test_what_is_no_space_is_refused(forged: dict) -> None:
    with pytest.raises(ValueError, match="the spaces that were saved with the policy cannot be read"):
        load_spaces({"observation": forged, "action": BOX})
