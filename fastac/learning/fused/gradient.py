"""The gradient of a fused network: from the activations that acting left behind, or from a forward of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from fastac.learning.fused.network import Activations, BackwardPass, FusedNetwork, GradientBuffers
from fastac.learning.objectives import Coefs, Objective
from fastac.rollout import Batch

# Rows per pass: their activations and gradients (1.5 MB at two layers of 128) stay in a core's own cache
# from the forward to the backward. See benchmarks/LOG.md for the rates at other sizes.
CHUNK = 1024
# Images do not fit there anyhow (200 kB a row for the Nature net), and what a pass pays once, the linear layer's
# weights and their gradient, asks for many rows. Beyond this nothing is gained.
_CHUNK_BYTES = 2**25


def chunk_rows(network: FusedNetwork, rows: int) -> int:
    """Return into passes of how many rows so many are best cut: as few passes as can be, and alike."""
    row_bytes = 4 * (network.num_inputs + sum(network.sizes))
    num_passes = -(-rows // min(CHUNK, max(1, _CHUNK_BYTES // row_bytes)))
    return -(-rows // num_passes)


class FusedGradient:
    """A `Gradient` that goes through a batch in chunks: forward where needed, objective, backward."""

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
            network: what to differentiate.
            objective: what to minimise.
            kept: the activations of the rollout that acting leaves behind, or None.
            max_rows: of a batch.
            goes_forward: whether there are batches that the kept activations are not of.
        """
        rows = chunk_rows(network, max_rows)
        self._network, self._objective, self._kept = network, objective, kept
        self._own = Activations(network, rows if goes_forward or kept is None else 0)
        self._buffers = GradientBuffers(network, rows)
        self._terms = torch.zeros(5, dtype=torch.float64)
        self._passes: dict[tuple[bool, int], tuple[int, BackwardPass]] = {}
        self._batch: Batch | None = None  # whose parts are kept: the whole rollout is the same every time
        self._parts: list[Batch] = []

    @property
    def nbytes(self) -> int:
        """Memory of its own, the kept activations excepted."""
        return self._buffers.nbytes + self._own.nbytes

    def __call__(self, batch: Batch, coefs: Coefs, is_fresh: bool) -> Tensor:
        """See `Gradient`."""
        rows, chunk = batch.valid.shape[0], self._buffers.ones.shape[0]
        keep = is_fresh and self._kept is not None
        self._terms.zero_()
        for grad in self._network.other_grads:
            grad.zero_()
        if self._batch is not batch:
            cuts = [batch.rows(at, min(at + chunk, rows)) for at in range(0, rows, chunk)]
            self._batch, self._parts = batch, cuts if len(cuts) > 1 else [batch]
        for number, part in enumerate(self._parts):
            begin = number * chunk
            step = self._pass(keep, begin, begin + part.valid.shape[0])
            if not keep:
                step.forward(part.obs)
            self._objective(step.params, step.value, part, coefs, step.d_params, step.d_value, self._terms)
            step.backward(part.obs)
        return self._terms

    def _pass(self, is_kept: bool, begin: int, end: int) -> BackwardPass:
        """Return what goes through a chunk, in the kept activations or in as many rows of the own ones.

        It is made once for the rows that begin there, or anew where there are others: the last chunk is as long as
        episodes leave it.
        """
        known_end, step = self._passes.get((is_kept, begin), (-1, None))
        if step is None or known_end != end:
            activations, at = (self._kept, begin) if is_kept and self._kept is not None else (self._own, 0)
            step = BackwardPass(self._network, activations, at, at + end - begin, self._buffers, adds=begin > 0)
            self._passes[is_kept, begin] = end, step
        return step
