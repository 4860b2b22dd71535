"""Model parameters and optimiser statistics in shared memory."""

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
    """Parameters and optimiser statistics that all workers read and write.

    Attributes:
        param: `[P]`, the flat parameters.
        slots: the optimiser's statistics by name, `[P]` each.
    """

    param: SharedArray[np.float32]
    slots: Mapping[str, SharedArray[np.float32]]

    @classmethod
    def allocate(cls, size: int, slots: Mapping[str, float]) -> Self:
        """Allocate for P = `size`, the `flat_size` of a model; `slots` gives the initial value of each slot."""
        single = np.dtype(np.float32)
        shared = cls(SharedArray((size,), single), {name: SharedArray((size,), single) for name in slots})
        for name, value in slots.items():
            shared.slots[name].view()[:] = value
        return shared

    def vectors(self) -> FlatParameters:
        """Return tensors that share this memory."""
        slots = {name: torch.from_numpy(slot.view()) for name, slot in self.slots.items()}
        return FlatParameters(torch.from_numpy(self.param.view()), slots)
