"""Support for MuJoCo's robots: exact saving of their state, and fewer warnings."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import numpy as np
from gymnasium.envs.registration import EnvSpec

from fastac.contract import StateTree

if TYPE_CHECKING:
    from gymnasium.envs.mujoco import MujocoEnv

_LOG = logging.getLogger(__name__)

_ROBOTS = re.compile(r"gymnasium\.envs\.mujoco\.\w+_v5")  # one class each; steps do not change attributes
# Besides the state, a step reads these from MuJoCo's data: positions of bodies one substep ago.
_PLACES = ("xpos", "xipos")


def is_robot(layer: object) -> bool:
    """Return whether a layer is exactly one of Gymnasium's robots; subclasses do not count."""
    return _ROBOTS.fullmatch(type(layer).__module__) is not None


def capture_robot(layer: object) -> StateTree:
    """Return all state that the next steps depend on."""
    import mujoco

    robot = cast("MujocoEnv", layer)
    state = np.empty(mujoco.mj_stateSize(robot.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(robot.model, robot.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    return {"integration": state, **{name: np.array(getattr(robot.data, name)) for name in _PLACES}}


def restore_robot(layer: object, state: StateTree) -> None:
    """Restore a state from `capture_robot`.

    Raises:
        ValueError: the state is of another robot, or of another version of MuJoCo.
    """
    import mujoco

    robot, now = cast("MujocoEnv", layer), capture_robot(layer)
    if state.keys() != now.keys() or any(np.array(state[name]).shape != np.array(now[name]).shape for name in now):
        raise ValueError("the saved environment state is of another robot, or of another version of MuJoCo.")
    integration = np.array(state["integration"])
    mujoco.mj_setState(robot.model, robot.data, integration, mujoco.mjtState.mjSTATE_INTEGRATION)
    for name in _PLACES:
        getattr(robot.data, name)[...] = state[name]


def quiet_mujoco_warnings(spec: EnvSpec) -> None:
    """Make MuJoCo log its warnings, except deprecation warnings, which appear for every robot built.

    By default MuJoCo writes warnings to stderr and to a file in the working directory.
    """
    if ".mujoco" in str(spec.entry_point):
        with suppress(ImportError):  # building the environment reports the missing package
            import mujoco

            mujoco.set_mju_user_warning(_warn)


def _warn(text: str) -> None:
    if "deprecated" not in text:
        _LOG.warning("MuJoCo: %s", text.strip())
