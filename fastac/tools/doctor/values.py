"""Judges what a trial returned: observations and rewards."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastac.contract import MAX_EXTRAS
from fastac.envs.spaces import is_image
from fastac.tools.doctor.findings import Finding, Seen, or_ok
from fastac.tools.doctor.trial import Trial

# Of the root mean square of a number in the observations, and of the rewards.
_LARGE_OBS, _HUGE_OBS = 30.0, 1e6
_LARGE_REWARD, _HUGE_REWARD, _TINY_REWARD = 100.0, 1e4, 1e-4
_LEAST_OBS = 20  # from which on it means something that an observation never changes


def judge_observations(trial: Trial) -> Iterator[Finding]:
    """Compare the observations with their space."""
    found = [*_judge_parts(trial), *_judge_numbers(trial)]
    yield from or_ok("observations", iter(found), _tell_observations(trial))


def _judge_parts(trial: Trial) -> Iterator[Finding]:
    checks: tuple[tuple[Seen, str], ...] = (
        (trial.broken, "have other parts than their space"),
        (trial.shapes, "have another shape than their space"),
        (trial.unknown, "are not in their space"),
    )
    for seen, what in checks:
        if seen.count:
            yield _error(
                f"{_share(seen, trial)} {what} ({seen.example}): correct observation_space, or what is returned."
            )
    if trial.dtypes.count:
        yield Finding(
            "warning",
            "observations",
            f"{_share(trial.dtypes, trial)} have another dtype than their space ({trial.dtypes.example}): convert them "
            "with astype, or declare the dtype that they have.",
        )
    if trial.reused.count:
        yield Finding(
            "warning",
            "observations",
            f"{_share(trial.reused, trial)} were changed by the call after the one that returned them (first "
            f"{trial.reused.example}): return a copy, since whoever keeps an observation finds another one later.",
        )


def _judge_numbers(trial: Trial) -> Iterator[Finding]:
    if trial.not_finite.count:
        yield _error(
            f"{_share(trial.not_finite, trial)} hold NaN or infinity (first {trial.not_finite.example}): training "
            "stops at the first one, so find what divides by zero or overflows."
        )
    if trial.outside.count:
        yield Finding(
            "warning",
            "observations",
            f"{_share(trial.outside, trial)} lie outside their space (first {trial.outside.example}): clip them, or "
            "widen observation_space.",
        )
    if trial.observations >= _LEAST_OBS and _never_changes(trial):
        yield Finding(
            "warning",
            "observations",
            f"all {trial.observations:,} observations are equal, so a policy has nothing to see: return what changes.",
        )
    if not is_image(trial.space):
        yield from _judge_scale(trial)


def _never_changes(trial: Trial) -> bool:
    moments = trial.moments.values()
    return bool(moments) and all(np.array_equal(each.low, each.high) for each in moments)


def _judge_scale(trial: Trial) -> Iterator[Finding]:
    for name, moments in trial.moments.items():
        rms = np.sqrt(moments.square / moments.count)
        at, largest = int(rms.argmax()), float(rms.max())
        where = f"number {at} of the observation{name}"
        if largest > _HUGE_OBS:
            yield Finding(
                "warning",
                "observations",
                f"{where} is about {largest:.2g}, at which float32 loses small differences: scale it in the "
                "environment.",
            )
        elif largest > _LARGE_OBS:
            yield Finding(
                "note",
                "observations",
                f"{where} is about {largest:.2g}: train with normalize_obs=True (the default without a preset).",
            )


def _tell_observations(trial: Trial) -> str:
    ranges = trial.moments.values()
    low = min((float(each.low.min()) for each in ranges), default=0.0)
    high = max((float(each.high.max()) for each in ranges), default=0.0)
    span = f", from {low:.3g} to {high:.3g}" if trial.moments else ""
    return f"{trial.observations:,}, all in their space{span}"


def judge_rewards(trial: Trial) -> Iterator[Finding]:
    """Look at type, range and scale of the rewards."""
    rewards = np.frombuffer(trial.rewards, dtype=np.float64)
    if not len(rewards):
        return
    returns = [episode.return_ for episode in trial.episodes]
    told = f", returns {np.mean(returns):.4g} +- {np.std(returns):.3g}" if returns else ""
    with np.errstate(invalid="ignore", over="ignore"):
        text = f"from {rewards.min():.3g} to {rewards.max():.3g} per step{told}"
    yield from or_ok("rewards", _judge_rewards(trial, rewards), text)


def _judge_rewards(trial: Trial, rewards: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Iterator[Finding]:
    steps = f"of {len(rewards):,}"
    if trial.odd_rewards.count:
        yield Finding(
            "error",
            "rewards",
            f"{trial.odd_rewards.count:,} {steps} rewards are no number (first {trial.odd_rewards.example}): return a "
            "float.",
        )
    if trial.rewards_not_finite.count:
        yield Finding(
            "error",
            "rewards",
            f"{trial.rewards_not_finite.count:,} {steps} rewards are NaN or infinite (first "
            f"{trial.rewards_not_finite.example}): training stops at the first one, so find what divides by zero or "
            "overflows.",
        )
    if trial.odd_rewards.count or trial.rewards_not_finite.count:
        return
    rms = float(np.sqrt(np.square(rewards).mean()))
    if not rms:
        yield Finding(
            "note",
            "rewards",
            f"all {len(rewards):,} rewards are 0 under random actions: without a reward nothing is learned, so give "
            "some on the way, or begin nearer to the goal.",
        )
    elif rms > _HUGE_REWARD or rms < _TINY_REWARD:
        size = "huge" if rms > 1.0 else "tiny"
        yield Finding(
            "warning",
            "rewards",
            f"rewards are {size}, about {rms:.2g}: divide them by that, or train with normalize_reward=True.",
        )
    elif rms > _LARGE_REWARD:
        yield Finding(
            "note", "rewards", f"rewards are large, about {rms:.2g}: normalize_reward=True (the default) scales them."
        )
    elif rewards.min() == rewards.max() and _have_one_length(trial):
        yield Finding(
            "note",
            "rewards",
            f"all {len(rewards):,} rewards are {rewards[0]:g}, and all episodes are of one length: under random "
            "actions no return was better than another.",
        )


def _have_one_length(trial: Trial) -> bool:
    return len({episode.length for episode in trial.episodes}) <= 1


def judge_infos(trial: Trial) -> Iterator[Finding]:
    """Tell which numbers of the infos a run would record."""
    keys = [key for key in trial.infos if key != "TimeLimit.truncated"]
    if len(keys) > MAX_EXTRAS:
        yield Finding(
            "note",
            "info",
            f"the last infos of episodes have numbers for {len(keys)} keys, of which a run records the first "
            f"{MAX_EXTRAS}: leave out the rest.",
        )
    elif keys:
        named = ", ".join("is_success (as success_rate)" if key == "is_success" else key for key in keys)
        yield Finding("ok", "info", f"a run records these numbers of an episode's last info: {named}")


def _error(text: str) -> Finding:
    return Finding("error", "observations", text)


def _share(seen: Seen, trial: Trial) -> str:
    return f"{seen.count:,} of {trial.observations:,} observations"
