"""One training run: consumes the trainer's stream; logs, evaluates, saves, and decides when to stop."""

from fastac.runs.session import Session

__all__ = ["Session"]
