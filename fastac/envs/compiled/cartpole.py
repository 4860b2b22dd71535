"""CartPole, with the arithmetic of Gymnasium's `CartPoleEnv`."""

from __future__ import annotations

import math

import numpy as np
from gymnasium.spaces import Box, Discrete

from fastac.envs.compiled.declaration import CompiledEnv, EnvFunction, Floats, State
from fastac.envs.compiled.trigonometry import sin_cos

_GRAVITY, _FORCE, _INTERVAL_S = 9.8, 10.0, 0.02
_POLE_MASS, _TOTAL_MASS = 0.1, 1.1
_HALF_LENGTH = 0.5
_POLE_MOMENT = _POLE_MASS * _HALF_LENGTH
_MAX_POSITION, _MAX_ANGLE = 2.4, 12 * 2 * math.pi / 360
_START = 0.05


def cartpole(sutton_barto_reward: bool = False) -> CompiledEnv:
    """Return Gymnasium's CartPole; the state is (position, velocity, angle, angular velocity)."""
    return _declare(_observe, [2 * _MAX_POSITION, math.inf, 2 * _MAX_ANGLE, math.inf], sutton_barto_reward)


def masked_cartpole(sutton_barto_reward: bool = False) -> CompiledEnv:
    """Return CartPole without velocities, as `fastac.envs.masked`."""
    return _declare(_observe_masked, [2 * _MAX_POSITION, 2 * _MAX_ANGLE], sutton_barto_reward)


def _declare(observe: EnvFunction, high: list[float], sutton_barto_reward: bool) -> CompiledEnv:
    on, fallen = (0.0, -1.0) if sutton_barto_reward else (1.0, 1.0)

    def step(state: State, action: int) -> tuple[float, bool]:
        position, velocity, angle, spin = state[0], state[1], state[2], state[3]
        force = _FORCE * (2 * action - 1)  # without a branch, which random actions make expensive
        sin, cos = sin_cos(angle)
        # https://coneural.org/florian/papers/05_cart_pole.pdf
        push = (force + _POLE_MOMENT * (spin * spin) * sin) / _TOTAL_MASS
        turn = (_GRAVITY * sin - cos * push) / (_HALF_LENGTH * (4.0 / 3.0 - _POLE_MASS * (cos * cos) / _TOTAL_MASS))
        state[0] = position = position + _INTERVAL_S * velocity
        state[1] = velocity + _INTERVAL_S * (push - _POLE_MOMENT * turn * cos / _TOTAL_MASS)
        state[2] = angle = angle + _INTERVAL_S * spin
        state[3] = spin + _INTERVAL_S * turn
        terminated = abs(position) > _MAX_POSITION or abs(angle) > _MAX_ANGLE
        return fallen if terminated else on, terminated

    limits = np.array(high, dtype=np.float32)
    return CompiledEnv(_reset, step, observe, 4, Box(-limits, limits), Discrete(2), reset_draws=4)


def _reset(draws: State, state: State) -> None:
    for k in range(4):
        state[k] = -_START + 2 * _START * draws[k]


def _observe(state: State, out: Floats) -> None:
    for k in range(4):
        out[k] = state[k]


def _observe_masked(state: State, out: Floats) -> None:
    out[0], out[1] = state[0], state[2]
