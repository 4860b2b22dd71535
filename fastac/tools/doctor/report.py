"""Writes a diagnosis: for people, who read what is wrong last, and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from fastac.text import fit
from fastac.tools.doctor.findings import SEVERITIES, Diagnosis, Finding

_LABELS = {"ok": "ok", "note": "note", "warning": "WARNING", "error": "ERROR"}
_LABEL, _CHECK = 9, 14  # columns


def format_diagnosis(diagnosis: Diagnosis, stream: TextIO) -> str:
    """Return the report, as wide as the terminal behind `stream`."""
    return "\n".join(_lines(diagnosis, stream))


def _lines(diagnosis: Diagnosis, stream: TextIO) -> Iterator[str]:
    yield fit(_tell_trial(diagnosis), stream)
    for severity in SEVERITIES:
        found = diagnosis.of(severity)
        if found:
            yield ""
        for finding in found:
            yield _tell(finding, stream)
    yield ""
    yield fit(_close(diagnosis), stream)


def _tell_trial(diagnosis: Diagnosis) -> str:
    text = (
        f"{diagnosis.env_id}: {diagnosis.env_steps:,} random steps, {diagnosis.episodes:,} episodes, "
        f"{diagnosis.wall_s:.1f} s"
    )
    return f"{text}; the time was up, --seconds gives more" if diagnosis.is_cut else text


def _tell(finding: Finding, stream: TextIO) -> str:
    head = f"{_LABELS[finding.severity]:<{_LABEL}}{finding.check:<{_CHECK}}"
    return fit(head + finding.text, stream, hang=_LABEL + _CHECK)


def _close(diagnosis: Diagnosis) -> str:
    errors, warnings = len(diagnosis.errors), len(diagnosis.warnings)
    if not errors and not warnings:
        return "Nothing is wrong."
    told = [f"{count} {what}{'s' * (count > 1)}" for count, what in ((errors, "error"), (warnings, "warning")) if count]
    advice = "correct the errors before you train" if errors else "it can be trained, but look at them"
    return f"{' and '.join(told)}: {advice}."


def to_json(diagnosis: Diagnosis) -> dict[str, object]:
    """Return a diagnosis as JSON."""
    return {
        "env_id": diagnosis.env_id,
        "env_steps": diagnosis.env_steps,
        "episodes": diagnosis.episodes,
        "wall_s": round(diagnosis.wall_s, 3),
        "is_cut": diagnosis.is_cut,
        "errors": len(diagnosis.errors),
        "warnings": len(diagnosis.warnings),
        "findings": [
            {"severity": finding.severity, "check": finding.check, "text": finding.text}
            for finding in diagnosis.findings
        ],
    }
