"""Gymnasium's own checks of an environment, and what it does at the borders of its action space."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.utils import env_checker, passive_env_checker

from fastac.config import EnvConfig
from fastac.contract import EnvFailure
from fastac.envs.failure import describe
from fastac.envs.rows import Reading
from fastac.envs.spaces import ArraySpace, check_spaces
from fastac.tools.doctor.budget import Budget
from fastac.tools.doctor.findings import Finding, or_ok
from fastac.tools.doctor.patient import Action, Patient, Single

# What the trial tells better, with numbers: observations against their space, rewards, and the values of a space.
_TOLD_ELSEWHERE = ("The obs returned", "The reward is", "observation space", "The reward returned")


def judge_gymnasium(patient: Single) -> Iterator[Finding]:
    """Run Gymnasium's checks of spaces, signatures and types; changes the episode."""
    yield from or_ok("gymnasium", _judge_gymnasium(patient), "its checks of spaces, signatures and types pass")


def _judge_gymnasium(patient: Single) -> Iterator[Finding]:
    env = patient.env
    checks: tuple[Callable[[], object], ...] = (
        partial(passive_env_checker.check_action_space, env.action_space),
        partial(passive_env_checker.check_observation_space, env.observation_space),
        partial(env_checker.check_seed_deprecation, env),
        partial(env_checker.check_reset_return_info_deprecation, env),
        partial(env_checker.check_reset_options, env.unwrapped),
        partial(passive_env_checker.env_reset_passive_checker, env),
        lambda: passive_env_checker.env_step_passive_checker(env, patient.draw()),
    )
    for check in checks:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                check()
            except Exception as error:  # assertions, and Gymnasium's own errors
                caught.append(warnings.WarningMessage(str(error) or describe(error), UserWarning, "", 0))
        for text in dict.fromkeys(_first_sentence(str(warning.message)) for warning in caught):
            if not any(told in text for told in _TOLD_ELSEWHERE):
                yield Finding("warning", "gymnasium", f"Gymnasium's checker says: {text}.")


def _first_sentence(text: str) -> str:
    text = text.replace("\x1b[33m", "").replace("\x1b[0m", "").removeprefix("WARN: ")
    return text.splitlines()[0].split(". ")[0].rstrip(".") if text else text


def judge_spaces(patient: Patient, config: EnvConfig) -> Iterator[Finding]:
    """Look whether fastac has networks for the spaces, without the keys that the configuration drops."""
    try:
        reading = Reading(config.drop_keys, config.critic_keys)
        check_spaces(patient.observation_space, _single_space(patient), reading)
    except ValueError as error:
        yield Finding("error", "spaces", f"fastac cannot train with these spaces: {error}")
        return
    yield Finding("ok", "spaces", f"{_name(patient.observation_space)} to {_name(_single_space(patient))}")


def _single_space(patient: Patient) -> ArraySpace:
    space: ArraySpace = getattr(patient.env, "single_action_space", patient.action_space)
    return space


def _name(space: ArraySpace) -> str:
    if isinstance(space, Box):
        return f"Box {'x'.join(map(str, space.shape))} {space.dtype}"
    text = str(space)
    return text if len(text) <= 60 else f"{text[:57]}..."


def try_borders(patient: Patient, budget: Budget) -> Iterator[Finding]:
    """Take the smallest and the largest action; changes the episode."""
    actions = border_actions(patient.action_space)
    for action in actions:
        if budget.is_spent:
            return
        try:
            patient.reset(0)
            patient.step(action)
        except EnvFailure as error:
            text = f"the action {np.array2string(np.asarray(action), threshold=8)}, at the border of its space, failed"
            yield Finding("error", "actions", f"{text} ({str(error).removesuffix('.')}): accept all of action_space.")
            return
    if actions:
        yield Finding("ok", "actions", "the smallest and the largest are taken")


def border_actions(space: ArraySpace) -> list[Action]:
    """Return the smallest and the largest action of a space; none if there are none."""
    if isinstance(space, Discrete):
        return [space.start, space.start + space.n - 1]
    if isinstance(space, MultiDiscrete):
        return [np.array(space.start), np.array(space.start + space.nvec - 1, dtype=space.dtype)]
    if isinstance(space, MultiBinary):
        return [np.zeros(space.shape, space.dtype), np.ones(space.shape, space.dtype)]
    if isinstance(space, Box) and space.is_bounded():
        return [space.low.copy(), space.high.copy()]
    return []
