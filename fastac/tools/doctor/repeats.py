"""Plays the same seeds and actions again: seeding, global random streams, and saved states."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from fastac.contract import StateTree
from fastac.envs.failure import describe
from fastac.envs.state import capture, restore
from fastac.tools.doctor.budget import Budget
from fastac.tools.doctor.findings import Finding
from fastac.tools.doctor.leaves import to_vector
from fastac.tools.doctor.patient import Action, Event, Patient, global_streams
from fastac.tools.doctor.trial import Vector

SEED, _OTHER_SEED = 7, 8
_STEPS = 200
_BEFORE_SAVING = 20
_ROUNDING = 0.05  # of the size of a number: contacts in another order make that of a rounding error in a step

# What was seen in a walk: per step the numbers of its events `[K]`.
Walk: TypeAlias = list[Vector]


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two walks part.

    Attributes:
        step: the first step that is another one; 0 is the reset.
        size: the largest difference of two numbers in it, relative to numbers above 1.
    """

    step: int
    size: float


@dataclass(frozen=True, slots=True)
class FirstWalk:
    """The walk of a new environment.

    Attributes:
        actions: that were taken.
        seen: what came of them.
        streams: global random streams that changed meanwhile.
        length: steps of the first episode, as far as it went.
    """

    actions: list[Action]
    seen: Walk
    streams: tuple[str, ...]
    length: int


@dataclass(frozen=True, slots=True)
class Saved:
    """What came of saving and restoring a state.

    Attributes:
        is_possible: whether fastac can save it.
        steps: that were compared after restoring.
        differs: where they part; None: nowhere.
        failure: what was raised; empty: nothing.
    """

    is_possible: bool
    steps: int = 0
    differs: Difference | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Repeats:
    """What repeating showed.

    Attributes:
        first: the walk that was repeated.
        fresh: how it differed in another new environment, with the same seed.
        used: likewise in an environment that had run before.
        again: how two walks differed there, each after one with another seed.
        is_other: whether another seed gave another walk.
        state: what came of saving and restoring its state.
        is_declared: whether the environment says that it is not deterministic.
    """

    first: FirstWalk
    fresh: Difference | None
    used: Difference | None
    again: Difference | None
    is_other: bool
    state: Saved
    is_declared: bool


def walk_first(patient: Patient, budget: Budget) -> FirstWalk:
    """Draw actions and walk in a new environment, as far as the time allows.

    Raises:
        EnvFailure: the environment failed.
    """
    before = global_streams()
    walk, length = [_to_numbers(patient, patient.reset(SEED))], 0
    actions: list[Action] = []
    while len(actions) < _STEPS and (not actions or not budget.is_spent):
        actions.append(deepcopy(patient.action_space.sample()))
        events = patient.step(actions[-1])
        walk.append(_to_numbers(patient, events))
        length = length or len(actions) * any(event.has_ended for event in events)
    after = global_streams()
    streams = tuple(name for name, state in before.items() if after[name] != state)
    return FirstWalk(actions, walk, streams, length or len(actions))


def repeat(first: FirstWalk, patient: Patient, build: Callable[[], Patient]) -> Repeats:
    """Walk again with the same seed and actions, in the environment that has run and in a new one; closes `patient`.

    Raises:
        EnvFailure: an environment failed.
    """
    actions = first.actions
    others, walks = zip(
        *((_walk(patient, _OTHER_SEED, actions), _walk(patient, SEED, actions)) for _ in range(2)), strict=True
    )
    is_other = _find_difference(first.seen, others[0]) is not None
    used, again = _find_difference(first.seen, walks[0]), _find_difference(*walks)
    is_declared = bool(getattr(patient.env.spec, "nondeterministic", False))
    patient.close()  # some simulators allow only one open environment
    new = build()
    try:
        fresh = _find_difference(first.seen, _walk(new, SEED, actions))
        return Repeats(first, fresh, used, again, is_other, _try_state(new, actions), is_declared)
    finally:
        new.close()


def _walk(patient: Patient, seed: int, actions: Sequence[Action]) -> Walk:
    return [_to_numbers(patient, patient.reset(seed)), *_go_on(patient, actions)]


def _go_on(patient: Patient, actions: Sequence[Action]) -> Iterator[Vector]:
    for action in actions:
        yield _to_numbers(patient, patient.step(action))


def _to_numbers(patient: Patient, events: Sequence[Event]) -> Vector:
    """Return all numbers of a step: observations, rewards and flags."""
    seen = [to_vector(patient.observation_space, event.obs) for event in events]
    rest = [[event.env, event.is_reset, event.has_ended] for event in events]
    rewards = [np.asarray(0.0 if event.is_reset else event.reward, np.float64).ravel() for event in events]
    return np.concatenate([*seen, *rewards, np.ravel(rest)])


def _find_difference(first: Walk, other: Walk) -> Difference | None:
    for at, (a, b) in enumerate(zip(first, other, strict=True)):
        if not np.array_equal(a, b, equal_nan=True):
            if a.shape != b.shape:
                return Difference(at, np.inf)
            return Difference(at, float(np.nanmax(np.abs(a - b) / np.maximum(1.0, np.abs(a)))))
    return None


def _try_state(patient: Patient, actions: Sequence[Action]) -> Saved:
    """Save the state on the way, go on, restore it, and go on again."""
    on_the_way, then = actions[:_BEFORE_SAVING], actions[_BEFORE_SAVING:] or actions
    _walk(patient, SEED, on_the_way)
    try:
        state: StateTree | None = capture(patient.env)
    except Exception as error:  # a method of the environment
        return Saved(True, failure=describe(error))
    if state is None:
        return Saved(False)
    ended, legal = patient.get_ended(), patient.masks.legal.copy()
    expected = list(_go_on(patient, then))
    _walk(patient, _OTHER_SEED, on_the_way)
    try:
        restore(patient.env, state)
        patient.set_ended(ended)
        patient.masks.legal = legal
    except Exception as error:  # likewise
        return Saved(True, failure=describe(error))
    return Saved(True, len(then), _find_difference(expected, list(_go_on(patient, then))))


def judge_repeats(repeats: Repeats) -> Iterator[Finding]:
    """Look at seeds, global random streams and saved states."""
    yield _judge_seed(repeats)
    if not (repeats.fresh or repeats.used or repeats.again or repeats.is_other):
        yield Finding(
            "note",
            "seeds",
            f"another seed gives the same {len(repeats.first.actions):,} steps: either nothing is random, or reset() "
            "does not use its seed; draw from self.np_random.",
        )
    yield _judge_state(repeats)


def _judge_seed(repeats: Repeats) -> Finding:
    differs = repeats.fresh or repeats.again or repeats.used
    if repeats.first.streams:
        named = " and ".join(repeats.first.streams)
        also = "" if differs is None else f", so the same seed gave another episode from step {differs.step:,} on"
        text = (
            f"reset() and step() use {named} global random stream{also}: draw from self.np_random, which reset(seed) "
            "seeds."
        )
        return Finding("warning", "seeds", text)
    if differs is None:
        return Finding("ok", "seeds", f"the same seed and actions give the same {len(repeats.first.actions):,} steps")
    if repeats.is_declared:
        return Finding("note", "seeds", f"not deterministic, as its spec says: steps differ from {differs.step:,} on.")
    if repeats.fresh is None and _is_left_behind(repeats):
        text = (
            f"the same seed and actions gave another step {differs.step:,}, by {differs.size:.1g}, in an environment "
            "that had run before: reset() leaves something behind."
        )
        return Finding("note", "seeds", text)
    where = "in an environment that had run before" if repeats.fresh is None else "in another new environment"
    text = (
        f"the same seed and actions gave another episode {where}, from step {differs.step:,} on: call "
        "super().reset(seed=seed), draw from self.np_random only, and set everything anew in reset()."
    )
    return Finding("warning", "seeds", text)


def _is_left_behind(repeats: Repeats) -> bool:
    """Return whether walks in a used environment differ by less than another random number would make them.

    Gymnasium's BipedalWalker is such a one: its physics finds contacts in another order.
    """
    is_small = repeats.again is None or (repeats.again.step > 0 and repeats.again.size < _ROUNDING)
    return is_small and (repeats.used is None or repeats.used.step > 0)


def _judge_state(repeats: Repeats) -> Finding:
    state = repeats.state
    if not state.is_possible:
        text = "fastac cannot save the state, so a resumed run begins new episodes: get_state() and set_state() help."
        return Finding("note", "state", text)
    if state.failure:
        return Finding("error", "state", f"the state cannot be saved and restored ({state.failure}): correct that.")
    if state.differs is None:
        return Finding("ok", "state", f"saved and restored bit for bit ({state.steps:,} steps compared)")
    if repeats.fresh or repeats.used or repeats.again:  # then nothing can be repeated
        return Finding(
            "note", "state", "whether a restored state is right cannot be seen, as steps are not repeatable."
        )
    text = (
        f"after set_state() step {state.differs.step:,} was another one than after get_state(): save everything that "
        "changes in an episode, as copies."
    )
    return Finding("error", "state", text)


def find_warnings(caught: Sequence[warnings.WarningMessage]) -> Iterator[Finding]:
    """Tell of the warnings that the environment's own code has given."""
    told = {(warning.category, str(warning.message)): warning for warning in caught}
    for (kind, message), warning in list(told.items())[:3]:
        if issubclass(kind, RuntimeWarning):  # NumPy's: overflow, division by zero
            where = f"{warning.filename}:{warning.lineno}"
            yield Finding("note", "warnings", f"{kind.__name__} at {where}: {message.splitlines()[0]}.")
