"""Acrobot, with the arithmetic of Gymnasium's `AcrobotEnv`."""

from __future__ import annotations

import math

import numba
import numpy as np
from gymnasium.spaces import Box, Discrete

from fastac.envs.compiled.declaration import CompiledEnv, Floats, State
from fastac.envs.compiled.trigonometry import sin_cos

_INTERVAL_S = 0.2
_MAX_SPIN_1, _MAX_SPIN_2 = 4 * math.pi, 9 * math.pi
_START = 0.1
_GRAVITY = 9.8
# Both links have mass, length and moment of inertia 1, and their centre in the middle.
_CENTRE, _INERTIA = 0.5, 1.0


def acrobot() -> CompiledEnv:
    """Return Gymnasium's Acrobot; the state is (angle, angle between the links, and their two angular velocities)."""
    high = np.array([1.0, 1.0, 1.0, 1.0, _MAX_SPIN_1, _MAX_SPIN_2], dtype=np.float32)
    return CompiledEnv(_reset, _step, _observe, 4, Box(-high, high), Discrete(3), reset_draws=4)


def _reset(draws: State, state: State) -> None:
    for k in range(4):
        state[k] = np.float32(-_START + 2 * _START * draws[k])  # Gymnasium rounds the first state, and no later one


def _step(state: State, action: int) -> tuple[float, bool]:
    # One step of a Runge-Kutta method of fourth order.
    torque, h = action - 1.0, _INTERVAL_S
    a, b, c, d = state[0], state[1], state[2], state[3]
    a1, b1, c1, d1 = _derive(a, b, c, d, torque)
    a2, b2, c2, d2 = _derive(a + h / 2 * a1, b + h / 2 * b1, c + h / 2 * c1, d + h / 2 * d1, torque)
    a3, b3, c3, d3 = _derive(a + h / 2 * a2, b + h / 2 * b2, c + h / 2 * c2, d + h / 2 * d2, torque)
    a4, b4, c4, d4 = _derive(a + h * a3, b + h * b3, c + h * c3, d + h * d3, torque)
    a = state[0] = _wrap(a + h / 6 * (a1 + 2 * a2 + 2 * a3 + a4))
    b = state[1] = _wrap(b + h / 6 * (b1 + 2 * b2 + 2 * b3 + b4))
    state[2] = _bound(c + h / 6 * (c1 + 2 * c2 + 2 * c3 + c4), _MAX_SPIN_1)
    state[3] = _bound(d + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4), _MAX_SPIN_2)
    terminated = -sin_cos(a)[1] - sin_cos(b + a)[1] > 1.0
    return (0.0 if terminated else -1.0), terminated


def _observe(state: State, out: Floats) -> None:
    sin, cos = sin_cos(state[0])
    out[0], out[1] = cos, sin
    sin, cos = sin_cos(state[1])
    out[2], out[3] = cos, sin
    out[4], out[5] = state[2], state[3]


@numba.njit(error_model="numpy", forceinline=True)
def _derive(
    angle_1: float, angle_2: float, spin_1: float, spin_2: float, torque: float
) -> tuple[float, float, float, float]:
    """Return the derivatives of the state, those of Sutton and Barto's book."""
    sin, cos = sin_cos(angle_2)
    d1 = _CENTRE**2 + (1.0 + _CENTRE**2 + 2 * _CENTRE * cos) + 2 * _INERTIA
    d2 = (_CENTRE**2 + _CENTRE * cos) + _INERTIA
    phi2 = _CENTRE * _GRAVITY * sin_cos(angle_1 + angle_2 - math.pi / 2)[1]
    phi1 = (
        -_CENTRE * (spin_2 * spin_2) * sin
        - 2 * _CENTRE * spin_2 * spin_1 * sin
        + (_CENTRE + 1.0) * _GRAVITY * sin_cos(angle_1 - math.pi / 2)[1]
        + phi2
    )
    turn_2 = (torque + d2 / d1 * phi1 - _CENTRE * (spin_1 * spin_1) * sin - phi2) / (
        _CENTRE**2 + _INERTIA - d2 * d2 / d1
    )
    return spin_1, spin_2, -(d2 * turn_2 + phi1) / d1, turn_2


@numba.njit(error_model="numpy", forceinline=True)
def _wrap(angle: float) -> float:
    """Return the same angle between -pi and pi."""
    while angle > math.pi:
        angle -= 2 * math.pi
    while angle < -math.pi:
        angle += 2 * math.pi
    return angle


@numba.njit(error_model="numpy", forceinline=True)
def _bound(value: float, most: float) -> float:
    return min(max(value, -most), most)
