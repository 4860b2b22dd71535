"""Computes the gradient of an objective by autograd, for any model.

`fastac.learning.fused` does the same without autograd, for fastac's own networks.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastac.contract import Trainable
from fastac.kernels import Op
from fastac.learning.objectives import TERMS, Coefs, Objective
from fastac.rollout import Batch, Graphs


class AutogradGradient:
    """Runs the forward pass, unless acting left a graph to reuse, and the backward pass with autograd."""

    def __init__(
        self, model: Trainable, objective: Objective, device: torch.device, graphs: Graphs | None = None
    ) -> None:
        """Store the model, which is on `device`, and the graphs that acting keeps, if it does."""
        self._model, self._objective, self._device, self._graphs = model, objective, device, graphs

    def prepare(self, batch: Batch, coefs: Coefs, terms: Tensor, is_fresh: bool) -> list[Op]:
        """See `Gradient`."""
        return [partial(self._differentiate, batch, coefs, terms, is_fresh)]

    def _differentiate(self, batch: Batch, coefs: Coefs, terms: Tensor, is_fresh: bool) -> None:
        batch = batch.to(self._device)
        if is_fresh and self._graphs is not None:
            params = torch.stack(self._graphs.params).view(*batch.valid.shape, -1)  # [T, N, P] or [M, P]
            value = torch.stack(self._graphs.value).view(batch.valid.shape)
        else:
            params, value, _ = self._model(batch.obs, batch.state, batch.start)
        params, value = params.flatten(0, -2), value.flatten()
        d_params, d_value = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (params, value))
        found = torch.zeros(len(TERMS), dtype=torch.float64, device=self._device)
        self._model.zero_grad(set_to_none=False)
        outputs = params.detach().contiguous(), value.detach().contiguous()
        self._objective.prepare(*outputs, batch.flat(), coefs, d_params, d_value, found)()
        pairs = [(output, d) for output, d in ((params, d_params), (value, d_value)) if output.requires_grad]
        torch.autograd.backward([output for output, _ in pairs], [d for _, d in pairs])
        terms.copy_(found)
