"""Judges how episodes begin and end: flags, time limits, final observations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from fastac.tools.doctor.findings import Finding, or_ok
from fastac.tools.doctor.trial import Episode, Trial

_LEAST_ENDS = 3  # from which on a pattern is one
_LEAST_LIMIT = 10  # steps; a shorter episode of a fixed length is a short task
_AT_LIMIT = 0.2  # share of the episodes that must have the same, largest length
_LEAST_RESETS = 5  # first observations that tell where episodes begin
_MARGIN = 0.05  # of their range, on each side


def judge_ends(trial: Trial, limit: int | None, first_length: int) -> Iterator[Finding]:
    """Look at the ends of a trial.

    Args:
        trial: the record.
        limit: the time limit that the environment declares.
        first_length: steps of its very first episode.
    """
    yield from or_ok("ends", _judge_ends(trial, limit, first_length), _tell_ends(trial, limit))


def _judge_ends(trial: Trial, limit: int | None, first_length: int) -> Iterator[Finding]:
    yield from _judge_endless(trial, limit)
    yield from _judge_flags(trial)
    yield from _judge_limit(trial, limit)
    yield from _judge_begins(trial, first_length)
    yield from _judge_finals(trial)
    tried, going_on = trial.past_ends
    if going_on > tried / 2:
        yield Finding(
            "note",
            "ends",
            f"{going_on} of {tried} steps after an end say that nothing has ended; fastac resets in time, but a loop "
            "that misses an end would not notice.",
        )


def _tell_ends(trial: Trial, limit: int | None) -> str:
    terminated = sum(episode.terminated for episode in trial.episodes)
    truncated = sum(episode.truncated for episode in trial.episodes)
    lengths = [episode.length for episode in trial.episodes]
    told = f"{terminated:,} terminated, {truncated:,} truncated"
    told += f", after {min(lengths):,} to {max(lengths):,} steps" if lengths else f" in {trial.steps:,} steps"
    return f"{told}; time limit {limit:,}" if limit else told


def _judge_endless(trial: Trial, limit: int | None) -> Iterator[Finding]:
    if limit is None and not trial.episodes and trial.steps:
        yield Finding(
            "warning",
            "ends",
            f"no episode ended in {trial.steps:,} steps, and there is no time limit: register the environment with "
            "max_episode_steps, or wrap it with gymnasium.wrappers.TimeLimit.",
        )
    elif limit is None and trial.episodes:
        longest = max(episode.length for episode in trial.episodes)
        yield Finding(
            "note",
            "ends",
            f"no time limit is declared (the longest episode had {longest:,} steps): a policy that never ends one "
            "makes evaluations long, so set max_episode_steps.",
        )
    elif limit is not None:
        longest = max([trial.going, *(episode.length for episode in trial.episodes)])
        if longest > limit:
            yield Finding(
                "warning",
                "ends",
                f"an episode went on for {longest:,} steps, past the declared time limit of {limit:,}: truncate it "
                "there, or declare the limit that holds.",
            )


def _judge_flags(trial: Trial) -> Iterator[Finding]:
    both = sum(episode.terminated and episode.truncated for episode in trial.episodes)
    if both == len(trial.episodes) >= _LEAST_ENDS:
        yield Finding(
            "warning",
            "ends",
            f"all {both:,} ends have both flags set, which counts as terminated: set terminated where the task ends, "
            "and truncated where only time has run out.",
        )


def _judge_limit(trial: Trial, limit: int | None) -> Iterator[Finding]:
    """Find a time limit that is reported as a termination: then the value of the last state would be taken for 0.

    Some episodes may really end at the step of the limit, so nothing is said if others were truncated there.
    """
    ends = Counter(episode.length for episode in trial.episodes if not episode.truncated)
    truncated = {episode.length for episode in trial.episodes if episode.truncated}
    longest, episodes = max(ends, default=0), len(trial.episodes)
    at_limit = 0 if limit is None or limit in truncated else ends[limit]
    if at_limit >= _LEAST_ENDS or 0 < at_limit == episodes:
        yield Finding(
            "error",
            "ends",
            f"{at_limit:,} of {episodes:,} episodes were terminated at the very step of the declared time limit, "
            f"{limit:,}, and none was truncated there: return truncated=True, or the future after it counts as worth "
            "nothing.",
        )
    elif longest >= _LEAST_LIMIT and ends[longest] >= max(_LEAST_ENDS, _AT_LIMIT * episodes) and not truncated:
        yield Finding(
            "warning",
            "ends",
            f"{ends[longest]:,} of {episodes:,} episodes were terminated after exactly {longest:,} steps, and none "
            "later: if that is a time limit, return truncated=True in place of terminated=True.",
        )


def _judge_begins(trial: Trial, first_length: int) -> Iterator[Finding]:
    lengths = [episode.length for episode in trial.episodes]
    if first_length > 1 and len(lengths) >= _LEAST_ENDS and set(lengths) == {1}:
        yield Finding(
            "error",
            "ends",
            f"all {len(lengths):,} episodes after the first ones ended at their first step: let reset() clear what "
            "step() has set at the end.",
        )


def _judge_finals(trial: Trial) -> Iterator[Finding]:
    """Find environments that reset themselves at an end and return the first observation in place of the final one."""
    kept = [episode for episode in trial.episodes if episode.final.size and episode.length > 1]
    if len(kept) < _LEAST_RESETS:
        return
    alike = count_alike(kept)
    if alike > len(kept) / 2:
        yield Finding(
            "error",
            "ends",
            f"{alike:,} of {len(kept):,} final observations look like the first ones of episodes, and those before "
            "them do not: return the observation that the last step led to, and reset only in reset().",
        )


def count_alike(episodes: Sequence[Episode]) -> int:
    """Return how many final observations lie where episodes begin, while the observations before them do not."""
    first = np.stack([episode.first for episode in episodes])  # [E, D]
    margin = _MARGIN * np.ptp(first, axis=0)
    low, high = first.min(axis=0) - margin, first.max(axis=0) + margin
    return sum(
        bool(((low <= e.final) & (e.final <= high)).all() and not ((low <= e.before) & (e.before <= high)).all())
        for e in episodes
    )
