"""Pendulum, with the arithmetic of Gymnasium's `PendulumEnv`."""

from __future__ import annotations

import math

import numpy as np
from gymnasium.spaces import Box

from fastac.envs.compiled.declaration import CompiledEnv, Floats, State
from fastac.envs.compiled.trigonometry import sin_cos

_MAX_SPEED, _MAX_TORQUE, _INTERVAL_S = 8.0, 2.0, 0.05
_START = (math.pi, 1.0)  # the largest angle and speed at the beginning

# What multiplies the torque is float32, as the torque is. Mass and length are 1.
_TORQUE, _PUSH, _COST = np.float32(_MAX_TORQUE), np.float32(3.0), np.float32(0.001)


def pendulum(g: float = 10.0) -> CompiledEnv:
    """Return Gymnasium's Pendulum; the state is (angle, angular velocity), of which the angle may grow."""
    pull = 3 * g / 2.0

    def step(state: State, action: Floats) -> tuple[float, bool]:
        angle, speed = state[0], state[1]
        torque = min(max(action[0], -_TORQUE), _TORQUE)
        off = (angle + math.pi) % (2 * math.pi) - math.pi
        cost = off * off + 0.1 * (speed * speed) + _COST * (torque * torque)
        speed += (pull * sin_cos(angle)[0] + _PUSH * torque) * _INTERVAL_S
        state[1] = speed = min(max(speed, -_MAX_SPEED), _MAX_SPEED)
        state[0] = angle + speed * _INTERVAL_S
        return -cost, False

    high = np.array([1.0, 1.0, _MAX_SPEED], dtype=np.float32)
    actions = Box(-_MAX_TORQUE, _MAX_TORQUE, (1,), np.float32)
    return CompiledEnv(_reset, step, _observe, 2, Box(-high, high), actions, reset_draws=2)


def _reset(draws: State, state: State) -> None:
    for k in range(2):
        state[k] = (2 * draws[k] - 1) * _START[k]


def _observe(state: State, out: Floats) -> None:
    sin, cos = sin_cos(state[0])
    out[0], out[1], out[2] = cos, sin, state[1]
