"""The preset type."""

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
        name: the algorithm's name for its default preset, or a name of its own.
        reaches: mean return over 100 evaluation episodes that every tested seed reached; None if not measured, as
            for published settings.
        make: builds the configuration; the first line of its docstring describes the preset.
    """

    env_id: str
    name: str
    reaches: float | None
    make: Callable[[], Config]

    @property
    def what(self) -> str:
        """Description of the preset in one line."""
        make = self.make.func if isinstance(self.make, partial) else self.make
        return (make.__doc__ or "").splitlines()[0]
