"""What a preset is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fastac.config import Config


@dataclass(frozen=True, slots=True)
class Preset:
    """A complete configuration for an environment.

    Attributes:
        env_id: the environment.
        name: the algorithm's name for the one that it picks, or a name of its own.
        reaches: mean return over 100 evaluation episodes that every tested seed reached; None where that was not
            measured, as for published settings that are merely ready.
        make: builds the configuration; the first line of its docstring says what it is.
    """

    env_id: str
    name: str
    reaches: float | None
    make: Callable[[], Config]

    @property
    def what(self) -> str:
        """What it is, in a line."""
        make = self.make.func if isinstance(self.make, partial) else self.make
        return (make.__doc__ or "").splitlines()[0]
