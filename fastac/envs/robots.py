"""What MuJoCo's robots need of their own: their state, exactly, and fewer of MuJoCo's warnings."""

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

_ROBOTS = re.compile(r"gymnasium\.envs\.mujoco\.\w+_v5")  # of one class each; no step changes its attributes
# What the next step reads of MuJoCo's data besides the state: places of bodies as they were a substep ago.
_PLACES = ("xpos", "xipos")


def is_robot(layer: object) -> bool:
    """Return whether a layer of an environment is one of Gymnasium's robots, not what is derived of one."""
    return _ROBOTS.fullmatch(type(layer).__module__) is not None


def capture_robot(layer: object) -> StateTree:
    """Return all that the next steps depend on."""
    import mujoco

    robot = cast("MujocoEnv", layer)
    state = np.empty(mujoco.mj_stateSize(robot.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(robot.model, robot.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    return {"integration": state, **{name: np.array(getattr(robot.data, name)) for name in _PLACES}}


def restore_robot(layer: object, state: StateTree) -> None:
    """Put a `capture_robot` back.

    Raises:
        ValueError: it is of another robot, or another MuJoCo.
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
    """Have MuJoCo log its warnings, but for those of what is deprecated, which come with every robot that is built.

    By itself it writes them to stderr and to a file in the working directory.
    """
    if ".mujoco" in str(spec.entry_point):
        with suppress(ImportError):  # building the environment will say so
            import mujoco

            mujoco.set_mju_user_warning(_warn)


def _warn(text: str) -> None:
    if "deprecated" not in text:
        _LOG.warning("MuJoCo: %s", text.strip())
