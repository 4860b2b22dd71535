"""MountainCar with discrete and with continuous actions, with the arithmetic of Gymnasium's two environments."""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Box, Discrete

from fastac.envs.compiled.declaration import CompiledEnv, Floats, State
from fastac.envs.compiled.trigonometry import sin_cos

_MIN_POSITION, _MAX_POSITION, _MAX_SPEED = -1.2, 0.6, 0.07
_FIRST, _LAST = -0.6, -0.4  # where an episode begins
_GRAVITY = 0.0025
_FORCE, _GOAL = 0.001, 0.5
_POWER, _CONTINUOUS_GOAL = np.float32(0.0015), np.float32(0.45)

# The continuous environment computes in float32, but for the step after a reset.
_LEFT, _RIGHT, _SPEED = np.float32(_MIN_POSITION), np.float32(_MAX_POSITION), np.float32(_MAX_SPEED)
_ZERO, _THREE = np.float32(0.0), np.float32(3.0)

_OBSERVATIONS = Box(np.array([_LEFT, -_SPEED]), np.array([_RIGHT, _SPEED]), dtype=np.float32)


def mountain_car(goal_velocity: float = 0.0) -> CompiledEnv:
    """Return Gymnasium's MountainCar; the state is (position, velocity)."""

    def step(state: State, action: int) -> tuple[float, bool]:
        position, velocity = state[0], state[1]
        velocity += (action - 1) * _FORCE + sin_cos(3 * position)[1] * (-_GRAVITY)
        velocity = min(max(velocity, -_MAX_SPEED), _MAX_SPEED)
        position = min(max(position + velocity, _MIN_POSITION), _MAX_POSITION)
        if position == _MIN_POSITION and velocity < 0.0:
            velocity = 0.0
        state[0], state[1] = position, velocity
        return -1.0, position >= _GOAL and velocity >= goal_velocity

    return CompiledEnv(_reset, step, _observe, 2, _OBSERVATIONS, Discrete(3), reset_draws=1)


def continuous_mountain_car(goal_velocity: float = 0.0) -> CompiledEnv:
    """Return Gymnasium's MountainCarContinuous; the state is (position, velocity, whether the episode just began)."""
    least = np.float32(goal_velocity)

    def step(state: State, action: Floats) -> tuple[float, bool]:
        force = min(max(action[0], np.float32(-1.0)), np.float32(1.0)) * _POWER
        if state[2] != 0.0:  # in float64, and too slow for any of the limits
            push = np.float64(force - np.float32(_GRAVITY * sin_cos(3.0 * state[0])[1]))
            velocity, position = np.float32(push), np.float32(state[0] + push)
        else:
            position, velocity = np.float32(state[0]), np.float32(state[1])
            velocity += force - np.float32(_GRAVITY * sin_cos(np.float64(_THREE * position))[1])
            velocity = min(max(velocity, -_SPEED), _SPEED)
            position = min(max(position + velocity, _LEFT), _RIGHT)
            if position == _LEFT and velocity < _ZERO:
                velocity = _ZERO
        terminated = bool(position >= _CONTINUOUS_GOAL and velocity >= least)
        state[0], state[1], state[2] = position, velocity, 0.0
        return (100.0 if terminated else 0.0) - float(action[0]) ** 2 * 0.1, terminated

    actions = Box(-1.0, 1.0, (1,), np.float32)
    return CompiledEnv(_reset_continuous, step, _observe, 3, _OBSERVATIONS, actions, reset_draws=1)


def _reset(draws: State, state: State) -> None:
    state[0], state[1] = _FIRST + (_LAST - _FIRST) * draws[0], 0.0


def _reset_continuous(draws: State, state: State) -> None:
    state[0], state[1], state[2] = _FIRST + (_LAST - _FIRST) * draws[0], 0.0, 1.0


def _observe(state: State, out: Floats) -> None:
    out[0], out[1] = state[0], state[1]
