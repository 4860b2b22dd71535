"""Judges a vector environment: what it does at ends, against the autoreset mode that it declares."""

from __future__ import annotations

from collections.abc import Iterator

from gymnasium.vector import AutoresetMode

from fastac.tools.doctor.findings import Finding, Seen, or_ok
from fastac.tools.doctor.patient import Batch

_CHANGE = "declare the mode that it has in metadata['autoreset_mode']"


def judge_autoreset(batch: Batch) -> Iterator[Finding]:
    """Compare what was seen at ends with the declared mode."""
    mode = "none" if batch.mode is None else batch.mode.value
    text = f"{mode}, as declared ({batch.ends:,} ends)"
    yield from or_ok("autoreset", _judge(batch), text)


def _judge(batch: Batch) -> Iterator[Finding]:
    if batch.mode is None:
        yield _error(
            f"metadata['autoreset_mode'] is {batch.env.metadata.get('autoreset_mode')!r}, so nobody can tell which "
            "observations are final: set it to a gymnasium.vector.AutoresetMode."
        )
        return
    if not batch.ends:
        yield Finding("note", "autoreset", f"no episode ended, so {batch.mode.value} could not be seen at work.")
        return
    checks: tuple[tuple[AutoresetMode, Seen, str], ...] = (
        (
            AutoresetMode.NEXT_STEP,
            batch.rewarded,
            f"steps after an end were no mere resets (first: {batch.rewarded.example}), which NextStep promises: "
            f"{_CHANGE}",
        ),
        (
            AutoresetMode.SAME_STEP,
            batch.without_final,
            "ends came without infos['final_obs'], which SameStep promises: give the final observation there, or "
            f"{_CHANGE}",
        ),
        (
            AutoresetMode.SAME_STEP,
            batch.same_final,
            "ends have the first observation of the next episode as infos['final_obs']: copy the final one before the "
            "reset",
        ),
        (
            AutoresetMode.DISABLED,
            batch.masked,
            "environments were reset though options['reset_mask'] left them out: reset only those of the mask",
        ),
    )
    for mode, seen, what in checks:
        if batch.mode is mode and seen.count:
            yield _error(f"{seen.count:,} of {batch.ends:,} {what}.")


def _error(text: str) -> Finding:
    return Finding("error", "autoreset", text)
