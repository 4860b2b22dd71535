"""The gradient of a fused network, from the activations kept by acting or from a forward pass of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from fastac.learning.fused.network import Activations, BackwardPass, FusedNetwork, GradientBuffers
from fastac.learning.fused.recurrent import Sequences
from fastac.learning.objectives import Coefs, Objective
from fastac.rollout import Batch

# Rows per pass: activations and gradients (1.5 MB for two layers of 128) stay in the core's own cache
# between the forward and the backward pass. See benchmarks/LOG.md for the rates at other sizes.
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


class FusedGradient:
    """A `Gradient` that processes a batch in chunks: forward pass if needed, objective, backward pass."""

    def __init__(
        self,
        network: FusedNetwork,
        objective: Objective,
        kept: Activations | None,
        max_rows: int,
        goes_forward: bool = True,
    ) -> None:
        """Allocate for batches of at most `max_rows` rows.

        Args:
            network: the network to differentiate.
            objective: the objective to minimise.
            kept: the activations of the rollout that acting keeps, or None.
            max_rows: largest batch.
            goes_forward: whether some batches need a forward pass because the kept activations do not cover them.
        """
        rows = chunk_rows(network, max_rows)
        self._network, self._objective, self._kept = network, objective, kept
        self._own = Activations(network, rows if goes_forward or kept is None else 0)
        self._buffers = GradientBuffers(network, rows)
        self._terms = torch.zeros(5, dtype=torch.float64)
        self._passes: dict[tuple[bool, int], tuple[tuple[int, ...], BackwardPass]] = {}
        self._batch: Batch | None = None  # batch of `_parts`; the whole rollout is one object every time
        self._parts: list[Batch] = []

    @property
    def nbytes(self) -> int:
        """Memory in bytes, without the kept activations."""
        return self._buffers.nbytes + self._own.nbytes

    def __call__(self, batch: Batch, coefs: Coefs, is_fresh: bool) -> Tensor:
        """See `Gradient`."""
        rows, chunk = batch.valid.numel(), self._buffers.rows
        keep = is_fresh and self._kept is not None
        self._terms.zero_()
        for grad in self._network.other_grads:
            grad.zero_()
        if not keep:
            self._network.refresh_weights()
        if self._batch is not batch:
            flat = batch.flat()
            cuts = [flat.rows(at, min(at + chunk, rows)) for at in range(0, rows, chunk)]
            self._batch, self._parts = batch, cuts if len(cuts) > 1 else [flat]
        for number, part in enumerate(self._parts):
            step = self._pass(keep, number * chunk, part)
            if not keep:
                step.forward(part.obs)
            self._objective(step.params, step.value, part, coefs, step.d_params, step.d_value, self._terms)
            step.backward(part.obs)
        return self._terms

    def _pass(self, is_kept: bool, begin: int, part: Batch) -> BackwardPass:
        """Return the pass over a chunk, using the kept activations or the first rows of its own ones.

        Passes are cached by first row and rebuilt if the last row differs: the length of the last chunk depends on the
        episodes. With recurrence they are also rebuilt if the sequences are in other memory.
        """
        rows = len(part.valid)
        sequences = Sequences(part.state, part.start) if self._network.cores else None
        place = (rows,) if sequences is None else (rows, sequences.state.data_ptr(), sequences.start.data_ptr())
        known_place, step = self._passes.get((is_kept, begin), ((), None))
        if step is None or known_place != place:
            activations, at = (self._kept, begin) if is_kept and self._kept is not None else (self._own, 0)
            step = BackwardPass(
                self._network, activations, at, at + rows, self._buffers, adds=begin > 0, sequences=sequences
            )
            self._passes[is_kept, begin] = place, step
        return step
