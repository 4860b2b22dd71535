"""What an examination finds: one sentence each, with a severity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

# error: training would fail, or learn something else than the task. warning: it works, but something is lost or is
# probably a mistake. note: worth knowing. ok: looked at, and fine.
Severity: TypeAlias = Literal["ok", "note", "warning", "error"]

SEVERITIES: tuple[Severity, ...] = ("ok", "note", "warning", "error")


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Attributes:
        severity: how bad it is.
        check: the family of checks, such as "rewards".
        text: one sentence: what was seen, and what to do.
    """

    severity: Severity
    check: str
    text: str


@dataclass(slots=True)
class Seen:
    """How often something was seen, and the first time.

    Attributes:
        count: how often.
        example: the first time, in words.
    """

    count: int = 0
    example: str = ""

    def add(self, example: str) -> None:
        """Count one more."""
        self.count += 1
        self.example = self.example or example


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The result of an examination.

    Attributes:
        env_id: the environment, as a configuration names it.
        env_steps: random steps of the main trial.
        episodes: how many of its episodes ended.
        wall_s: seconds of the whole examination.
        is_cut: whether the time was too short for all the steps.
        findings: of all checks, in the order of the checks.
    """

    env_id: str
    env_steps: int
    episodes: int
    wall_s: float
    is_cut: bool
    findings: tuple[Finding, ...]

    def of(self, *severities: Severity) -> tuple[Finding, ...]:
        """Return the findings of some severities."""
        return tuple(finding for finding in self.findings if finding.severity in severities)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What makes training wrong, or makes it fail."""
        return self.of("error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What is probably a mistake."""
        return self.of("warning")


def or_ok(check: str, found: Iterator[Finding], text: str) -> Iterator[Finding]:
    """Yield the findings of a check, and that all is fine if none of them is a warning or an error."""
    is_fine = True
    for finding in found:
        is_fine = is_fine and finding.severity == "note"
        yield finding
    if is_fine:
        yield Finding("ok", check, text)
