"""Action masks under examination: illegal actions become legal ones, and what is wrong with a mask is noted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete
from numpy.typing import NDArray

from fastac.contract import BoolArray, EnvFailure
from fastac.envs.failure import describe
from fastac.envs.masks import MASK_KEY, MASK_METHOD, MaskReader, MaskSource, count_choices
from fastac.envs.spaces import ArraySpace
from fastac.tools.doctor.findings import Finding, Seen, or_ok

_PLACES: dict[MaskSource, str] = {
    "observation": f"the observation's key {MASK_KEY!r}",
    "method": f"the method {MASK_METHOD}()",
    "info": f"info[{MASK_KEY!r}]",
}


class Masks:
    """The masks of N environments, as they come.

    Attributes:
        source: where they are; None: there are none.
        count: how many calls returned one.
        wrong: masks that are missing or do not fit.
        stuck: masks that allow no action though the episode goes on.
        legal: `[N, M]`, the present masks; they belong to the state of the environments.
    """

    def __init__(self, action_space: ArraySpace, num_envs: int) -> None:
        """Take the action space of one environment."""
        self.choices = count_choices(action_space)
        self.source: MaskSource | None = None
        self.count, self.wrong, self.stuck = 0, Seen(), Seen()
        self._start = action_space.start if isinstance(action_space, Discrete | MultiDiscrete) else 0
        self._reader, self._num_envs = MaskReader(self.choices), num_envs
        self.legal: BoolArray = np.ones((num_envs, self._reader.size), dtype=np.bool_)

    def see(self, read: Callable[[MaskReader], BoolArray], is_over: BoolArray, anew: BoolArray | None = None) -> None:
        """Take in the masks after a reset or a step.

        Args:
            read: returns them, `[N, M]`.
            is_over: `[N]`, where an episode has ended, so that nobody acts.
            anew: `[N]`, the environments that were reset or stepped; None: all.
        """
        if self.source is None:
            return
        self.count += 1
        try:
            masks = read(self._reader)
        except (EnvFailure, KeyError, TypeError) as error:
            self.wrong.add(str(error) if isinstance(error, EnvFailure) else f"there is none: {describe(error)}")
            self.legal = np.ones_like(self.legal)
            return
        try:
            masks = self._reader.complete(masks, is_over)
        except EnvFailure as error:
            self.stuck.add(str(error))
            masks = self._reader.complete(masks, np.ones(self._num_envs, dtype=np.bool_))
        self.legal = masks if anew is None else np.where(anew[:, None], masks, self.legal)

    def make_legal(self, action: object) -> object:
        """Return the action, of the environment or of the batch, with a legal value in place of every illegal one.

        The same action and masks always give the same, so that a walk can be repeated.
        """
        if self.source is None or self.legal.all():
            return action
        given = np.asarray(action)
        chosen: NDArray[np.int64] = (given.astype(np.int64) - self._start).reshape(self._num_envs, len(self.choices))
        parts = np.split(self.legal, np.cumsum(self.choices)[:-1], axis=1)
        for part, taken in zip(parts, chosen.T, strict=True):  # `taken` is a view
            for n in np.flatnonzero(~part[np.arange(self._num_envs), taken]):
                legal = np.flatnonzero(part[n])
                taken[n] = legal[taken[n] % len(legal)]
        made = (chosen.reshape(given.shape) + self._start).astype(given.dtype)
        return made if made.ndim else made[()]


def judge_masks(masks: Masks) -> Iterator[Finding]:
    """Tell where the masks are, and what is wrong with them; nothing without masks."""
    if masks.source is not None:
        text = f"in {_PLACES[masks.source]}; all {masks.count:,} allow an action, and only legal ones were taken"
        yield from or_ok("masks", _judge_masks(masks), text)


def _judge_masks(masks: Masks) -> Iterator[Finding]:
    for seen in (masks.wrong, masks.stuck):
        if seen.count:
            text = f"{seen.count:,} of {masks.count:,} action masks are wrong (first: {seen.example})"
            yield Finding("error", "masks", f"{text}: training stops at the first one.")
