"""The few numbers that fastac is held to, read from what `make bench` measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.contest import Standing, best_of, bound_of, ratio
from benchmarks.solve import Result, ratio_of_medians, summarize
from benchmarks.tables import format_table
from benchmarks.workloads import (
    A3C_APART,
    A3C_ENVS,
    A3C_IN_STEP,
    A3C_LECTURE,
    A3C_ONE,
    A3C_TWO,
    FASTAC,
    GAE_SHAPES,
    MUJOCO_SHAPES,
    SB3,
    SCALE,
    SCALE_ENVS,
    a3c_workers,
    atari_a2c,
    atari_ppo,
    mujoco_a2c,
    recurrent_ppo,
    scale_row,
)


class Footprint(NamedTuple):
    """What a run holds at its peak over the sum of its parts, and both of them less the program."""

    whole: float
    beyond_program: float


@dataclass
class Findings:
    """All that was measured: rows of comparisons by workload, seeds by algorithm, memory by workers."""

    standings: dict[str, Sequence[Standing]] = field(default_factory=dict)
    solved: dict[str, Sequence[Result]] = field(default_factory=dict)
    footprints: dict[int, Footprint] = field(default_factory=dict)


class Headline(NamedTuple):
    """A number, and the least and the most that were asked of it (seconds: the most and the least), if anything."""

    what: str
    least: float | None
    aim: float | None
    form: str
    read: Callable[[Findings], float]
    lower_is_better: bool = False


SAME_WORK, BEST = "W6 A2C, separate 64-64 tanh, 64 envs", "W6 A2C, separate 64-64 tanh, best settings"


def _over_sb3(workload: str) -> Callable[[Findings], float]:
    return lambda f: ratio(best_of(FASTAC, f.standings[workload]), best_of(SB3, f.standings[workload]))


def _lecture(num_envs: int) -> str:
    return f"W5 A2C, shared 128-128 ReLU, {num_envs} envs"


def _row(findings: Findings, workload: str, name: str) -> Standing:
    return {s.contestant.name: s for s in findings.standings[workload]}[name]


def _two_workers_over_limit(findings: Findings) -> float:
    two, limit = (_row(findings, _lecture(1024), name) for name in ("fastac, 2 workers", "two runs side by side"))
    return ratio(two, limit)


def _efficiency(num_envs: int) -> Callable[[Findings], float]:
    """Of one worker: what it reached, over the bound."""
    rows = "fastac, 1 worker", "bound: the parts alone"
    return lambda f: ratio(*(_row(f, _lecture(num_envs), name) for name in rows))


# Not Tianshou's kernel alone, which finds half of the work done.
_GAE_PEERS = ("stable-baselines3", "Tianshou", "TorchRL, vectorized", "TorchRL, plain")


def _gae(shape: tuple[int, int], *others: str) -> Callable[[Findings], float]:
    """Over the fastest of some rows."""
    workload = f"W1 GAE {shape}"
    return lambda f: min(ratio(_row(f, workload, "fastac"), _row(f, workload, other)) for other in others)


def _least_gae(findings: Findings) -> float:
    return min(_gae(shape, *_GAE_PEERS)(findings) for shape in GAE_SHAPES)


def _solved(algo: str, cost: str, which: int) -> Callable[[Findings], float]:
    return lambda f: summarize(f.solved[algo], cost)[which]


def _a3c(num_envs: int) -> str:
    return f"W9 A3C, separate 64-64 tanh, {num_envs} envs per worker"


_CROWD = "W9 A3C, 16 envs per worker, more workers than cores"


def _of_rows(workload: str, over: str, under: str) -> Callable[[Findings], float]:
    return lambda f: ratio(_row(f, workload, over), _row(f, workload, under))


def _speedup(preset: str) -> Callable[[Findings], float]:
    """Median seconds to the target with one worker over those with two; as in A3C's Table 2."""

    def read(findings: Findings) -> float:
        one, two = ([r.train_s if r.solved else None for r in findings.solved[name]]
                    for name in (f"{preset}, 1 worker", preset))  # fmt: skip
        return ratio_of_medians(one, two)

    return read


def _a3c_headlines() -> Iterator[Headline]:
    for n in A3C_ENVS:
        what, rows = f"W9 A3C, {n} envs each, 2 workers over", _a3c(n)
        yield Headline(f"{what} two runs side by side", 0.95, 0.95, "{:.0%}", _of_rows(rows, A3C_TWO, A3C_APART))
        yield Headline(f"{what} 1 worker", None, None, "{:.2f}x", _of_rows(rows, A3C_TWO, A3C_ONE))
        yield Headline(f"{what} A2C's 2 in step", None, None, "{:.2f}x", _of_rows(rows, A3C_TWO, A3C_IN_STEP))
    yield Headline(
        "W9 batched A3C (256 envs each) over the lecture's, 2 processes each",
        20, 20, "{:.0f}x", _of_rows(_a3c(256), A3C_TWO, A3C_LECTURE),
    )  # fmt: skip
    yield Headline("W9 A3C, 4 workers on 2 cores over 2", 0.9, 0.9, "{:.0%}", _of_rows(_CROWD, a3c_workers(4), A3C_TWO))
    yield Headline("W9 A3C, 8 workers on 2 cores over 2", 0.9, 0.9, "{:.0%}", _of_rows(_CROWD, a3c_workers(8), A3C_TWO))
    for preset in ("a3c", "a3c-paper"):
        yield Headline(f"W7 {preset}, seconds to 475, 1 worker over 2", 1.5, 2.0, "{:.2f}x", _speedup(preset))


def _over_bound(workload: str) -> Callable[[Findings], float]:
    """Of the fastest row of fastac, whatever its workers, since the parts have both cores."""
    return lambda f: ratio(best_of(FASTAC, f.standings[workload]), bound_of(f.standings[workload]))


def _atari_headlines() -> Iterator[Headline]:
    nature, a3c = atari_a2c("nature"), atari_a2c("a3c")
    yield Headline("W10 A2C, Nature CNN, over stable-baselines3 A2C", 2.8, 3.3, "{:.2f}x", _over_sb3(nature))
    yield Headline("W10 A2C, Nature CNN, efficiency", 0.88, 0.97, "{:.0%}", _over_bound(nature))
    yield Headline("W10 A2C, A3C CNN, over stable-baselines3 A2C", None, None, "{:.2f}x", _over_sb3(a3c))
    yield Headline("W10 A2C, A3C CNN, efficiency", 0.88, 0.97, "{:.0%}", _over_bound(a3c))
    yield Headline("W10 A2C, A3C CNN, steps/s", 1600, 1850, "{:,.0f}", lambda f: best_of(FASTAC, f.standings[a3c]).rate)
    yield Headline("W10 PPO, Nature CNN, over stable-baselines3 PPO", None, None, "{:.2f}x", _over_sb3(atari_ppo()))
    yield Headline(
        "W10 A2C, Nature CNN, peak memory over its parts, the larger of 1 and 2 workers",
        1.3, 1.3, "{:.2f}x", lambda f: max(seen.whole for seen in f.footprints.values()), lower_is_better=True,
    )  # fmt: skip
    for workers in (1, 2):
        yield Headline(
            f"W10 the same less the program, {workers} worker{'s' * (workers > 1)}",
            None, None, "{:.2f}x", lambda f, workers=workers: f.footprints[workers].beyond_program,
        )  # fmt: skip


def _flatness(workers: int) -> Callable[[Findings], float]:
    """The rate with 65,536 environments over that with 1,024."""
    most, least = scale_row(SCALE_ENVS[-1], workers), scale_row(SCALE_ENVS[0], workers)
    return _of_rows(SCALE, most, least)


_MUJOCO = tuple(mujoco_a2c(*shape) for shape in MUJOCO_SHAPES)

HEADLINES = (
    Headline("W6 same work, over stable-baselines3 A2C", 8, 14, "{:.1f}x", _over_sb3(SAME_WORK)),
    Headline("W6 each at its best settings, over stable-baselines3 A2C", 20, 35, "{:.1f}x", _over_sb3(BEST)),
    Headline(
        "W5 1024 envs, 2 workers, steps/s",
        500_000,
        700_000,
        "{:,.0f}",
        lambda f: _row(f, _lecture(1024), "fastac, 2 workers").rate,
    ),
    Headline("W5 efficiency at 256 envs", 0.80, 0.95, "{:.0%}", _efficiency(256)),
    Headline("W5 efficiency at 1024 envs", 0.80, 0.95, "{:.0%}", _efficiency(1024)),
    Headline("W5 2 workers, over two runs side by side", 0.90, 0.97, "{:.0%}", _two_workers_over_limit),
    Headline("W1 GAE, over the fastest peer at the worst shape", 1, 1, "{:.2f}x", _least_gae),
    Headline(
        "W1 GAE, bandwidth of a copy at (128, 4096)", 0.65, 0.85, "{:.0%}", _gae((128, 4096), "copy of as many bytes")
    ),
    Headline("W1 GAE, over stable-baselines3, (2048, 1)", 500, 1500, "{:,.0f}x", _gae((2048, 1), "stable-baselines3")),
    Headline("W7 A2C, median training seconds", 1.5, 0.8, "{:.2f}", _solved("a2c", "train_s", 0), lower_is_better=True),
    Headline("W7 PPO, median training seconds", 1.0, 0.4, "{:.2f}", _solved("ppo", "train_s", 0), lower_is_better=True),
    Headline(
        "W7 slowest seed of either, training seconds",
        4.0,
        1.5,
        "{:.2f}",
        lambda f: max(_solved(algo, "train_s", 1)(f) for algo in ("a2c", "ppo")),
        lower_is_better=True,
    ),
    Headline(
        "W7 process start to solved, median seconds, the better of the two",
        4.5,
        3.0,
        "{:.2f}",
        lambda f: min(_solved(algo, "solved_s", 0)(f) for algo in ("a2c", "ppo")),
        lower_is_better=True,
    ),
    *_a3c_headlines(),
    *_atari_headlines(),
    Headline("W12 PPO with an LSTM, over sb3-contrib's RecurrentPPO", 8, 15, "{:.1f}x", _over_sb3(recurrent_ppo())),
    Headline("W14 A2C, 65,536 envs over 1,024, 1 worker", 0.85, 1.0, "{:.0%}", _flatness(1)),
    Headline("W14 A2C, 65,536 envs over 1,024, 2 workers", 0.85, 1.0, "{:.0%}", _flatness(2)),
    *(Headline(f"{w}, over stable-baselines3 A2C", None, None, "{:.1f}x", _over_sb3(w)) for w in _MUJOCO),
)


def judge(headline: Headline, value: float) -> str:
    """Say how far it went: the aim, the least, or neither; nothing where nothing was asked."""
    if headline.least is None or headline.aim is None:
        return ""
    sign = -1 if headline.lower_is_better else 1
    if sign * value >= sign * headline.aim:
        return "aim reached"
    return "reached" if sign * value >= sign * headline.least else "BELOW"


def format_headlines(findings: Findings) -> str:
    """A row for every headline whose workload was run."""
    rows = []
    for headline in HEADLINES:
        try:
            value = headline.read(findings)
        except (KeyError, ValueError):  # not run, or not by these rows
            continue
        numbers = (headline.least, headline.aim, value)
        cells = ["-" if number is None else headline.form.format(number) for number in numbers]
        rows.append([headline.what, *cells, judge(headline, value)])
    return format_table(("what it must show", "at least", "aim", "here", ""), rows) if rows else ""
