"""What is said of a comparison: tables for people, and JSON for the services that draw benchmarks over commits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from fastac.config import JsonValue
from fastac.text import format_table
from fastac.tools.gate.measure import MEMORY_MARGIN, Measured, Memory
from fastac.tools.gate.statistics import Comparison

# `github` is a list for github-action-benchmark (customSmallerIsBetter), `bencher` the Bencher Metric Format.
JsonForm: TypeAlias = Literal["github", "bencher"]

Counts: TypeAlias = Mapping[str, int]


def format_measured(measured: Measured) -> str:
    """Return the tables, and a sentence for everything that is not as before."""
    parts = [f"{name} is not compared, the base does not run it: {why}" for name, why in measured.skipped.items()]
    if not measured.comparisons:
        return "\n".join([*parts, "Nothing could be compared, which is a failure too: name a later base."])
    parts.append(_format_times(measured.comparisons))
    if measured.memory:
        parts += ["", _format_memory(measured.memory)]
    return "\n".join([*parts, *_tell(measured)])


def _format_times(comparisons: Sequence[Comparison]) -> str:
    rows = [
        (
            f"{c.workload}: {c.part}",
            f"{c.base_s * 1e3:.3f}",
            f"{c.head_s * 1e3:.3f}",
            f"{c.ratio:.3f}",
            f"{c.lower:.3f} to {c.upper:.3f}",
            f"{c.pairs}",
            f"{c.sees:.1%}",
            _name_verdict(c),
        )
        for c in comparisons
    ]
    names = ("base", "HEAD", "HEAD / base", "90 % interval", "pairs", "fails from", "verdict")
    return format_table(("ms per iteration", *names), rows)


def _name_verdict(comparison: Comparison) -> str:
    return "SLOWER" if comparison.slower else "faster" if comparison.faster else "as before"


def _format_memory(memory: Sequence[Memory]) -> str:
    rows = [
        (
            m.what,
            f"{m.base:,.0f}",
            f"{m.head:,.0f}",
            f"{m.head / max(m.base, 1.0):.3f}",
            "MORE" if m.more else "as before",
        )
        for m in memory
    ]
    return format_table(("bytes", "base", "HEAD", "HEAD / base", "verdict"), rows)


def _tell(measured: Measured) -> Iterator[str]:
    for c in measured.comparisons:
        if c.slower:
            yield f"{c.workload}: {c.part} takes {c.ratio - 1:.1%} more than in the base, margin {c.margin:.1%}."
        if c.faster:
            yield f"{c.workload}: {c.part} takes {1 - c.ratio:.1%} less than in the base: figures may follow."
    for m in measured.larger:
        yield f"{m.what} takes {m.head:,.0f} bytes, {m.base:,.0f} in the base, margin {MEMORY_MARGIN:.0%}."


def format_counts(base: Counts, head: Counts) -> str:
    """Return a table of what one iteration does in torch."""
    rows = [(name, f"{base[name]:,}", f"{head[name]:,}", _sign(head[name] - base[name])) for name in head]
    return format_table(("one iteration, in torch", "base", "HEAD", "difference"), rows)


def _sign(difference: int) -> str:
    return f"{difference:+,}" if difference else "0"


def to_json(form: JsonForm, measured: Measured, counts: Counts) -> JsonValue:
    """Return HEAD's numbers in a service's form; of all of them less is better."""
    return _to_github(measured, counts) if form == "github" else _to_bencher(measured, counts)


def _to_github(measured: Measured, counts: Counts) -> JsonValue:
    found: list[JsonValue] = []
    for c in measured.comparisons:
        name, half = f"{c.workload}: {c.part}", (c.upper - c.lower) / 2
        times = f"base {c.base_s * 1e3:.4g} ms, HEAD {c.head_s * 1e3:.4g} ms, {c.pairs} pairs of processes"
        ratio = round(c.ratio, 4)
        found += [
            {"name": f"{name}, HEAD / base", "unit": "ratio", "value": ratio, "range": f"± {half:.4f}", "extra": times},
            {"name": name, "unit": "ms", "value": round(c.head_s * 1e3, 6)},
        ]
    for m in measured.memory:
        found.append({"name": m.what, "unit": "bytes", "value": m.head, "extra": f"base {m.base:.0f}"})
    for name, number in counts.items():
        found.append({"name": name, "unit": "calls", "value": number})
    return found


def _to_bencher(measured: Measured, counts: Counts) -> JsonValue:
    found: dict[str, JsonValue] = {}
    for c in measured.comparisons:
        found[f"{c.workload}: {c.part}"] = {
            "head-over-base": {
                "value": round(c.ratio, 4),
                "lower_value": round(c.lower, 4),
                "upper_value": round(c.upper, 4),
            },
            "milliseconds": {"value": round(c.head_s * 1e3, 6)},
        }
    for m in measured.memory:
        found[m.what] = {"bytes": {"value": m.head}}
    for name, number in counts.items():
        found[name] = {"calls": {"value": number}}
    return found
