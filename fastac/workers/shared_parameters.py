"""A model's parameters and its optimiser's statistics in memory that workers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from fastac.learning.optimizer import FlatParameters
from fastac.shared_memory import SharedArray


@dataclass(frozen=True, slots=True)
class SharedParameters:
    """Everybody's to read and write.

    Attributes:
        param: `[P]`.
        slots: `[P]` each, the optimiser's statistics by name.
    """

    param: SharedArray[np.float32]
    slots: Mapping[str, SharedArray[np.float32]]

    @classmethod
    def allocate(cls, size: int, slots: Mapping[str, float]) -> Self:
        """Allocate P numbers, the `flat_size` of a model, and as many for each slot, which begin as `slots` says."""
        single = np.dtype(np.float32)
        shared = cls(SharedArray((size,), single), {name: SharedArray((size,), single) for name in slots})
        for name, value in slots.items():
            shared.slots[name].view()[:] = value
        return shared

    def vectors(self) -> FlatParameters:
        """Return them as tensors over the shared memory."""
        slots = {name: torch.from_numpy(slot.view()) for name, slot in self.slots.items()}
        return FlatParameters(torch.from_numpy(self.param.view()), slots)
