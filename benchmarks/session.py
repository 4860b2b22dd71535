"""What one run of the benchmarks finds, how much effort it makes, and the tables it ends with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, TypeVar

from benchmarks import contest, solve
from benchmarks.contest import Contestant, Pool, Standing
from benchmarks.headlines import Findings, Footprint, format_headlines
from benchmarks.hosts.speed import HEADER, Scaling
from benchmarks.machine import Machine, format_machine
from benchmarks.tables import format_table
from benchmarks.workloads import NUM_STEPS

T = TypeVar("T")

_CAVEAT = (
    "Steps are valid transitions: rows that only reset are not counted. All policies are the untrained one. W1: a step "
    "is an element of [T, N]. W10: a step is four frames of the emulator. 'fastac is': how many times faster fastac's "
    "fastest row of the workload is, the median over rounds; below 1 that row is slower. Of settings that are not "
    "named, all have the same."
)


class Effort(NamedTuple):
    """How long is measured."""

    rounds: int
    round_s: float  # times the workload's pace
    seeds: int
    max_threads: int  # of a row: one with more is left out where there is another that differs in nothing else


FULL, QUICK = Effort(7, 0.4, 20, max_threads=2), Effort(3, 0.15, 3, max_threads=1)
TRY = Effort(1, 0.0, 1, max_threads=2)  # with --benchmark-disable: only whether all of it runs


@dataclass
class Session:
    """What was found so far."""

    machine: Machine
    findings: Findings = field(default_factory=Findings)
    tried: list[tuple[str, str]] = field(default_factory=list)
    memory: list[tuple[str, ...]] = field(default_factory=list)
    footprints: list[tuple[str, ...]] = field(default_factory=list)
    scalings: list[Scaling] = field(default_factory=list)

    def tables(self) -> Iterator[str]:
        for workload, standings in self.findings.standings.items():
            yield format_standings(workload, standings)
        if self.tried:
            yield format_table(("W6 A2C, separate 64-64 tanh, settings tried", "steps/s"), self.tried)
        for name, results in self.findings.solved.items():
            yield f"W7 CartPole-v1 to {solve.DEFAULT_UNTIL:g}, {name}\n{solve.format_results(results)}"
        if self.memory:
            header = (f"W8 memory of A2C, {NUM_STEPS} steps", "MB", "of which stated", "bytes per env", "and step")
            yield format_table(header, self.memory)
        if self.footprints:
            yield format_table(("W10 memory of A2C, Pong, Nature CNN, 16 envs x 5", "MB", "share"), self.footprints)
        if self.scalings:
            yield format_table((f"W13 {HEADER[0]}", *HEADER[1:]), [scaling.cells for scaling in self.scalings])
        yield format_headlines(self.findings)

    def format(self) -> str:
        """All of it; empty where nothing was measured."""
        tables = [table for table in self.tables() if table]
        return "\n\n".join([format_machine(self.machine), *tables, _CAVEAT]) if tables else ""


def format_standings(workload: str, standings: Sequence[Standing]) -> str:
    """A row per contestant; frames of an emulator beside its steps."""
    rows = []
    for row in contest.describe(standings):
        frames = row["facts"].get("frames_per_step", 0) * row["steps_per_s"]
        spread, times = f"{row['spread']:.0%}", f"{row['fastac_is']:,.2f}x"
        cells = [f"{row['steps_per_s']:,.0f}", f"{frames:,.0f}" if frames else "-", spread, times]
        rows.append([row["name"], *cells])
    header = [workload, "steps/s", "frames/s", "spread", "fastac is"]
    if not any("frames_per_step" in s.facts for s in standings):
        header, *rows = [[*cells[:2], *cells[3:]] for cells in (header, *rows)]
    return format_table(header, rows)


def leave_out(contestants: Sequence[Contestant], max_threads: int) -> list[Contestant]:
    """Drop each with more threads than that for which there is another with fewer that differs in nothing else."""
    alike = [(c.module, c.function, c.settings, c.copies) for c in contestants]
    least = [min(c.threads for c, other in zip(contestants, alike, strict=True) if other == mine) for mine in alike]
    return [c for c, threads in zip(contestants, least, strict=True) if c.threads <= max(threads, max_threads)]


class Measurement:
    """The fixture `measurement`: measures for one test, and notes what was found.

    Attributes:
        pool: the session's processes.
        effort: the session's.
    """

    def __init__(self, benchmark: Any, pool: Pool, session: Session, effort: Effort) -> None:
        self._benchmark, self._session = benchmark, session
        self.pool, self.effort = pool, effort

    def compare(self, workload: str, contestants: Sequence[Contestant], pace: float = 1.0) -> None:
        """Compare contestants; what pytest-benchmark calls a round is one round of each of them."""
        contestants, effort = leave_out(contestants, self.effort.max_threads), self.effort
        standings = contest.compare(self.pool, contestants, effort.rounds, effort.round_s * pace, self._repeat)
        if any(c.part for c in contestants):
            standings.append(contest.bound_of(standings))
        self._session.findings.standings[workload] = standings
        self._benchmark.extra_info.update(workload=workload, rows=contest.describe(standings))

    def _repeat(self, call: Callable[[], None], times: int) -> None:
        self._benchmark.pedantic(call, rounds=times)

    def measure_once(self, call: Callable[[], T]) -> T:
        return self._benchmark.pedantic(call, rounds=1)

    def add_tried(self, standings: Sequence[Standing]) -> None:
        self._benchmark.extra_info["tried"] = {s.contestant.name: s.rate for s in standings}
        self._session.tried = [(s.contestant.name, f"{s.rate:,.0f}") for s in standings]

    def add_memory(self, name: str, num_envs: int, taken: float, stated: float | None) -> None:
        self._benchmark.extra_info.update(workload="W8", name=name, bytes=taken, stated_bytes=stated)
        told = "" if stated is None else f"{stated / 1e6:,.1f}"
        per_env = taken / num_envs
        row = (name, f"{taken / 1e6:,.1f}", told, f"{per_env:,.0f}", f"{per_env / NUM_STEPS:,.0f}")
        self._session.memory.append(row)

    def add_footprint(self, workers: int, peak: float, parts: Mapping[str, float]) -> None:
        """Note what all processes of a run on Atari hold at their peak, in bytes, and what that is made of."""
        self._benchmark.extra_info.update(workload="W10", name="memory", workers=workers, bytes=peak, parts=dict(parts))
        stated, program = sum(parts.values()), parts["program"]
        self._session.findings.footprints[workers] = Footprint(peak / stated, (peak - program) / (stated - program))
        rows = {f"{workers} worker{'s' * (workers > 1)}, peak": peak, **{f"- {name}": n for name, n in parts.items()}}
        self._session.footprints += [(name, f"{n / 1e6:,.1f}", f"{n / stated:.0%}") for name, n in rows.items()]

    def add_scaling(self, scalings: Sequence[Scaling]) -> None:
        self._benchmark.extra_info.update(workload="W13", scalings=[asdict(scaling) for scaling in scalings])
        self._session.scalings += scalings

    def add_solved(self, name: str, results: Sequence[solve.Result]) -> None:
        self._session.findings.solved[name] = results
        self._benchmark.extra_info.update(workload=f"W7 {name}", seeds=[asdict(result) for result in results])
