"""Step sizes of their own for the critic's parameters, which are spans of the flat vector (see `optimizer.flatten`).

Gradient norm, statistics and the number of the step are common to all spans.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from fastac import memory
from fastac.kernels import Op
from fastac.learning.update_rules import Step, UpdateRule


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbours in the flat vector that have the same step size.

    Attributes:
        begin: the first element.
        end: the element after the last.
        rate: the number of the step size.
    """

    begin: int
    end: int
    rate: int


def find_spans(model: nn.Module, critic: Collection[nn.Parameter]) -> list[Span]:
    """Divide a model's flat vector: parameters of the `critic` have step size 1, all others have step size 0."""
    own, spans, begin = {id(p) for p in critic}, list[Span](), 0
    for p in model.parameters():
        if p.requires_grad:
            rate, end = int(id(p) in own), begin + room_of(p)
            if spans and spans[-1].rate == rate:
                begin = spans.pop().begin
            spans.append(Span(begin, end, rate))
            begin = end
    return spans


def prepare_update(
    rule: UpdateRule,
    spans: Sequence[Span],
    begin: int,
    param: Tensor,
    grad: Tensor,
    slots: Mapping[str, Tensor],
    step: Step,
) -> list[Op]:
    """Return the calls that update a part of the flat vector, each span with its step size.

    Args:
        rule: the update rule.
        spans: of the whole vector.
        begin: the part's first element.
        param: the part, updated.
        grad: its gradient.
        slots: its statistics, updated.
        step: with the step sizes of all spans.
    """
    ops, rates = list[Op](), step.learning_rate.split(1)
    for span in spans:
        at = slice(max(span.begin - begin, 0), min(span.end - begin, len(param)))
        if at.start < at.stop:
            own = {name: slot[at] for name, slot in slots.items()}
            ops.append(rule.prepare(param[at], grad[at], own, replace(step, learning_rate=rates[span.rate])))
    return ops


def room_of(param: Tensor) -> int:
    """Return the size of a parameter in the flat vector: whole cache lines."""
    return memory.whole_lines(param.numel(), param.itemsize)
