"""The gradient of a fused network, from the activations kept by acting or from a forward pass of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastac.kernels import Op, copy_row
from fastac.learning.fused.network import Activations, BackwardPass, FusedNetwork, GradientBuffers
from fastac.learning.fused.recurrent import Sequences
from fastac.learning.objectives import Coefs, Objective
from fastac.rollout import Batch

# Rows per pass, of acting and learning: activations and gradients (1.5 MB for two layers of 128) stay in the core's own
# cache from layer to layer, and between the forward and the backward pass. See benchmarks/LOG.md for other sizes.
CHUNK = 1024
# Limit for images, which exceed that cache anyway (200 kB per row for the Nature net). The linear layer's weights and
# gradient are read and written once per pass, so more rows per pass pay off; beyond this size nothing is gained.
_CHUNK_BYTES = 2**25


def chunk_rows(network: FusedNetwork, rows: int) -> int:
    """Return the rows per pass for a batch of `rows`: as few passes as the limits allow, of equal size.

    With recurrence there is one pass, because the gradient goes back through all steps.
    """
    if network.cores:
        return rows
    row_bytes = 4 * (network.num_inputs + max(map(sum, network.sizes)))
    num_passes = -(-rows // min(CHUNK, max(1, _CHUNK_BYTES // row_bytes)))
    return -(-rows // num_passes)


def split_rows(network: FusedNetwork, rows: int) -> list[slice]:
    """Return the rows of each pass."""
    chunk = chunk_rows(network, rows)
    return [slice(begin, min(begin + chunk, rows)) for begin in range(0, rows, chunk)]


@dataclass(frozen=True, slots=True)
class UpdateBuffers:
    """What an update writes and nothing reads after it; gradients that are computed one after the other can share it.

    Attributes:
        activations: of one pass, for batches that the activations kept by acting do not cover.
        gradients: of one pass.
    """

    activations: Activations
    gradients: GradientBuffers

    @classmethod
    def allocate(cls, network: FusedNetwork, max_rows: int, goes_forward: bool = True) -> UpdateBuffers:
        """Allocate for batches of at most `max_rows` rows; `goes_forward` tells whether some need a forward pass."""
        rows = chunk_rows(network, max_rows)
        return cls(Activations(network, rows if goes_forward else 0), GradientBuffers(network, rows))

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.activations.nbytes + self.gradients.nbytes


class FusedGradient:
    """A `Gradient` that processes a batch in chunks: forward pass if needed, objective, backward pass."""

    def __init__(
        self, network: FusedNetwork, objective: Objective, kept: Activations | None, buffers: UpdateBuffers
    ) -> None:
        """Prepare for batches as large as the buffers allow.

        Args:
            network: the network to differentiate.
            objective: the objective to minimise.
            kept: the activations of the rollout that acting keeps, or None.
            buffers: with room for a forward pass if `kept` is None or does not cover all batches.
        """
        self._network, self._objective, self._kept = network, objective, kept
        self._own, self._buffers = buffers.activations, buffers.gradients
        self._passes: dict[tuple[bool, int], tuple[int, BackwardPass]] = {}  # with the number of rows

    def prepare(self, batch: Batch, coefs: Coefs, terms: Tensor, is_fresh: bool) -> list[Op]:
        """See `Gradient`."""
        flat = batch.flat()
        rows, chunk = len(flat.valid), self._buffers.rows
        keep = is_fresh and self._kept is not None
        ops = [_clear(sums) for sums in (terms, *self._network.other_grads)]
        if not keep:
            ops += self._network.prepare_weights()
        for begin in range(0, rows, chunk):
            end = min(begin + chunk, rows)
            part = flat if end - begin == rows else flat.rows(begin, end)
            step = self._pass(keep, begin, part)
            if not keep:
                ops += step.prepare(part.obs)
            ops.append(
                self._objective.prepare(step.params, step.value, part, coefs, step.d_params, step.d_value, terms)
            )
            ops += step.prepare_backward(part.obs)
        return ops

    def _pass(self, is_kept: bool, begin: int, part: Batch) -> BackwardPass:
        """Return the pass over a chunk, using the kept activations or the first rows of its own ones.

        Passes over rows are kept by their first row: where the length of rollouts depends on the episodes, only the
        last chunk has another one every time.
        """
        rows = len(part.valid)
        known_rows, step = self._passes.get((is_kept, begin), (0, None))
        if step is not None and known_rows == rows and not self._network.cores:
            return step
        activations, at = (self._kept, begin) if is_kept and self._kept is not None else (self._own, 0)
        sequences = Sequences(part.state, part.start) if self._network.cores else None
        step = BackwardPass(
            self._network, activations, at, at + rows, self._buffers, adds=begin > 0, sequences=sequences
        )
        self._passes[is_kept, begin] = rows, step
        return step


def _clear(sums: Tensor) -> Op:
    """Return the call that writes zeros, which are the same bits for floats of any size."""
    flat = sums.view(-1).view(torch.float32)
    return copy_row.prepare(torch.zeros_like(flat), flat)
