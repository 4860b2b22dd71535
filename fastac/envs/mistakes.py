"""Explains common mistakes in a user's `reset` and `step`, instead of showing Python's error."""

from __future__ import annotations

from contextlib import suppress
from typing import Literal, TypeAlias

from fastac.contract import EnvFailure, ObsArray
from fastac.envs.failure import make_failure
from fastac.envs.source import takes
from fastac.envs.state import SingleEnv

Call: TypeAlias = Literal["reset", "step"]

_VALUES: dict[Call, tuple[int, str]] = {
    "reset": (2, "(observation, info)"),
    "step": (5, "(observation, reward, terminated, truncated, info)"),
}
# Modules that call environments: an error raised in them points to a wrong signature or return value.
_CALLERS = ("fastac.", "gymnasium.wrappers.", "gymnasium.utils.", "gymnasium.core", "gymnasium.logger")


_Reset: TypeAlias = tuple[ObsArray, dict[str, object]]


def check_reset(returned: _Reset, who: str) -> _Reset:
    """Return the result of `reset` after checking it; a bare observation of two numbers looks like (observation, info).

    Raises:
        EnvFailure: not an (observation, info) pair.
    """
    mistake = _find_wrong_number("reset", returned)
    if mistake is not None:
        raise EnvFailure(f"{who}: {mistake}.")
    return returned


def blame(error: Exception, call: Call, env: SingleEnv, who: str, when: str) -> EnvFailure:
    """Return the failure to raise after a method of `env` raised `error`.

    If the error comes from the calling code or from unpacking the result, the message explains the environment's
    mistake. To find it, the environment inside all wrappers is called once more; afterwards it is unusable.
    """
    mistake = None
    if _is_by_caller(error):
        with suppress(Exception):  # foreign code that has already failed
            mistake = _find_mistake(call, env.unwrapped)
    return make_failure(error, who, when) if mistake is None else EnvFailure(f"{who}: {mistake}.")


def _is_by_caller(error: Exception) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith(_CALLERS)


def _find_mistake(call: Call, env: SingleEnv) -> str | None:
    if call == "step":
        return _find_wrong_number(call, env.step(env.action_space.sample()))
    missing = [name for name in ("seed", "options") if not takes(env.reset, name)]
    if missing:
        return f"reset() does not take {' and '.join(missing)}, expected reset(*, seed=None, options=None)"
    return _find_wrong_number(call, env.reset(seed=0))


def _find_wrong_number(call: Call, returned: object) -> str | None:
    number, names = _VALUES[call]
    if isinstance(returned, tuple | list) and len(returned) == number:
        return None
    what = f"{len(returned)} values" if isinstance(returned, tuple) and len(returned) != 1 else "one value"
    return f"{call}() returned {what}, expected {names}"
