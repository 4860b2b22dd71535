"""Whether an exported policy says what the policy says, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray

from fastac.envs.masks import count_choices
from fastac.tools.export.recording import Recording
from fastac.tools.export.signature import ACTION, NEXT_STATE, START, STATE, VALUE, Arrays, Signature
from fastac.tools.policy import Decision, TrainedPolicy

LIMIT = 1e-5  # of a difference, relative to numbers above 1
_CALLS, _WARM_UP, _MOST_S = 300, 20, 0.5

# Runs the file: its inputs by name to its outputs by name.
Opened = Callable[[Mapping[str, NDArray[np.generic]]], Mapping[str, NDArray[np.generic]]]


@dataclass(frozen=True, slots=True)
class Parity:
    """What the comparison showed.

    Attributes:
        steps: that were compared.
        source: where they come from.
        largest: the largest difference of a number, relative to numbers above 1.
        where: the output that has it.
        wrong_actions: actions that differ although one was clearly the most likely.
    """

    steps: int
    source: str
    largest: float
    where: str
    wrong_actions: int

    @property
    def holds(self) -> bool:
        """Whether the file says what the policy says."""
        return self.largest <= LIMIT and not self.wrong_actions

    def tell(self) -> str:
        """Return it as one phrase."""
        return (
            f"{self.steps:,} {self.source}: the largest difference is {self.largest:.1e} (of {self.where}), and "
            f"{self.wrong_actions or 'no'} actions differ"
        )


def compare(policy: TrainedPolicy, opened: Opened, recording: Recording, signature: Signature) -> Parity:
    """Compare a file with the policy, all environments of a recording together, and its first one alone.

    The memory of each is its own, from the first step to the last.
    """
    both = [_follow(policy, opened, recording, signature, num) for num in (recording.start.shape[1], 1)]
    largest, where = max(found for found, _ in both)
    return Parity(recording.steps, recording.source, largest, where, sum(wrong for _, wrong in both))


def _follow(
    policy: TrainedPolicy, opened: Opened, recording: Recording, signature: Signature, num: int
) -> tuple[tuple[float, str], int]:
    """Return the largest difference and where it is, and the number of wrong actions."""
    has_memory = bool(policy.model.state_size)
    expected_state = state = np.zeros((num, policy.model.state_size), np.float32)
    largest, wrong = (0.0, VALUE), 0
    for rows, start in zip(recording.rows[:, :num], recording.start[:, :num], strict=True):
        inputs = signature.read_rows(rows)
        obs, mask = signature.rebuild(inputs)
        expected = policy.decide(obs, expected_state, start, mask)
        outputs = opened(inputs | ({STATE: state, START: start} if has_memory else {}))
        expected_state = expected.state
        state = np.asarray(outputs[NEXT_STATE], np.float32) if has_memory else state
        largest = max(largest, *_differences(policy, expected, outputs))
        if not isinstance(policy.action_space, Box):
            wrong += _count_wrong(policy, expected, outputs[ACTION])
    return largest, wrong


def _differences(
    policy: TrainedPolicy, expected: Decision, outputs: Mapping[str, NDArray[np.generic]]
) -> list[tuple[float, str]]:
    pairs: Arrays = {VALUE: np.asarray(expected.value), **expected.params}
    if policy.model.state_size:
        pairs[NEXT_STATE] = expected.state
    if isinstance(policy.action_space, Box):
        pairs[ACTION] = np.asarray(expected.action)
    return [(_largest(np.asarray(outputs[name]), array), name) for name, array in pairs.items()]


def _largest(found: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """Return the largest difference, relative to numbers above 1; infinite for another shape, or NaN."""
    if found.shape != expected.shape:
        return np.inf
    a, b = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        differences = np.where(a == b, 0.0, np.abs(a - b) / np.maximum(1.0, np.abs(b)))
    return float(np.nan_to_num(differences, nan=np.inf, posinf=np.inf).max())


def _count_wrong(policy: TrainedPolicy, expected: Decision, action: NDArray[np.generic]) -> int:
    """Return how many actions differ, where the one that was taken is less likely by more than the limit."""
    space, logits = policy.action_space, expected.params["logits"]
    shift = space.start if isinstance(space, Discrete | MultiDiscrete) else 0
    num = len(logits)
    chosen = (np.asarray(action).astype(np.int64) - shift).reshape(num, -1)  # [N, K]
    parts = np.split(logits, np.cumsum(count_choices(space))[:-1], axis=1)
    wrong = 0
    for part, taken in zip(parts, chosen.T, strict=True):
        best = part.max(axis=1)
        is_known = (taken >= 0) & (taken < part.shape[1])
        its = np.where(is_known, part[np.arange(num), np.where(is_known, taken, 0)], -np.inf)
        wrong += int((best - its > LIMIT * np.maximum(1.0, np.abs(best))).sum())
    return wrong


def measure_us(call: Callable[[], object]) -> float:
    """Return the median time of a call in microseconds, of up to 300 calls in half a second."""
    for _ in range(_WARM_UP):
        call()
    began = time.perf_counter()
    times: list[float] = []
    while len(times) < _CALLS and (not times or time.perf_counter() - began < _MOST_S):
        at = time.perf_counter()
        call()
        times.append(time.perf_counter() - at)
    return 1e6 * float(np.median(times))
