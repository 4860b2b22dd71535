"""Compares contestants by interleaved rounds, A B C A B C, so that what the machine does to one it does to all.

A ratio is taken in every round, between two rates measured within seconds of each other, and the
median over rounds is what counts: it moves less than the rates themselves do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryFile
from typing import Any, NoReturn

from benchmarks.peers import APART

_ROOT = Path(__file__).parents[1]
_CLOSE_S = 20.0

# Calls a function so many times: pytest-benchmark's way to do that, or a plain loop.
Repeat = Callable[[Callable[[], None], int], None]


@dataclass(frozen=True)
class Contestant:
    """One row of a comparison.

    Attributes:
        name: for the table.
        module: in `benchmarks.peers`; also names the library that the row stands for.
        function: of that module, which builds the task.
        settings: its arguments.
        threads: torch threads of a process.
        copies: processes that do the same side by side; their rates add up.
        part: the part of a run that this row times bare, if it does.
    """

    name: str
    module: str
    function: str
    settings: Mapping[str, Any]
    threads: int = 1
    copies: int = 1
    part: str = ""


class ContestantError(RuntimeError):
    """A contestant failed; the message holds the end of what it wrote."""


class Process:
    """A contestant's process: stopped from its first answer on, except while it works on the next."""

    def __init__(self, module: str, threads: int) -> None:
        self._errors = TemporaryFile("w+")  # noqa: SIM115 (closed by `end`)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "passive",
            "KMP_BLOCKTIME": "0",
            "PYTHONWARNINGS": "ignore",
        }
        if module in APART:
            environment["PYTHONPATH"] = str(APART[module])
        self._child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contestant", module, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=_ROOT,
            env=environment,
            # A group of its own, so that its workers are stopped and ended with it.
            process_group=0,
        )

    def send(self, do: str, **arguments: Any) -> None:
        assert self._child.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            print(json.dumps({"do": do, **arguments}), file=self._child.stdin, flush=True)
        except BrokenPipeError:
            self._fail()

    def receive(self) -> dict[str, float]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._fail()
        self._signal(signal.SIGSTOP)
        return json.loads(line)

    def ask(self, do: str, **arguments: Any) -> dict[str, float]:
        self.send(do, **arguments)
        return self.receive()

    def hang_up(self) -> None:
        """Let it close what it holds, and end."""
        assert self._child.stdin is not None
        self._signal(signal.SIGCONT)
        with suppress(BrokenPipeError):
            self._child.stdin.close()

    def end(self) -> None:
        """Hang up, and see to it that nothing is left."""
        self.hang_up()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(_CLOSE_S)
        self._signal(signal.SIGKILL)
        self._child.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()
        self._errors.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)

    def _fail(self) -> NoReturn:
        self._signal(signal.SIGKILL)
        self._child.wait()
        self._errors.seek(0)
        raise ContestantError(self._errors.read()[-3000:])


def assign(contestants: Sequence[Contestant]) -> list[list[tuple[str, int, int]]]:
    """Name the processes of each contestant: module, threads, and which of these processes."""
    used: Counter[tuple[str, int]] = Counter()
    places = []
    for contestant in contestants:
        kind = (contestant.module, contestant.threads)
        places.append([(*kind, used[kind] + copy) for copy in range(contestant.copies)])
        used[kind] += contestant.copies
    return places


@dataclass
class Pool:
    """Processes that outlive a comparison, since starting one takes seconds of imports.

    Within one comparison no two rows share a process.
    """

    _processes: dict[tuple[str, int, int], Process] = field(default_factory=dict)

    @contextmanager
    def lend(self, contestants: Sequence[Contestant]) -> Iterator[list[list[Process]]]:
        """Build all contestants, yield the processes of each, and drop what was built."""
        lent = [[self._get(*place) for place in places] for places in assign(contestants)]
        everyone = [process for processes in lent for process in processes]
        try:
            for contestant, processes in zip(contestants, lent, strict=True):
                for process in processes:
                    process.send("build", function=contestant.function, settings=dict(contestant.settings))
            for process in everyone:
                process.receive()
            yield lent
            for process in everyone:
                process.ask("close")
        except BaseException:
            self.end()  # nobody knows what state they are in
            raise

    def _get(self, module: str, threads: int, index: int) -> Process:
        key = (module, threads, index)
        if key not in self._processes:
            self._processes[key] = Process(module, threads)
        return self._processes[key]

    def end(self) -> None:
        for process in self._processes.values():
            process.hang_up()  # ending takes seconds, which all take at once
        for process in self._processes.values():
            process.end()
        self._processes.clear()


@dataclass(frozen=True)
class Standing:
    """What a contestant did: steps per second in every round, and what else it told."""

    contestant: Contestant
    rates: Sequence[float]
    facts: Mapping[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return median(self.rates)

    @property
    def spread(self) -> float:
        """Distance of the quartiles over the median."""
        return relative_spread(self.rates)


def relative_spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


def ratio(over: Standing, under: Standing) -> float:
    """Median over rounds of how many times faster `over` is."""
    return median(a / b for a, b in zip(over.rates, under.rates, strict=True))


def best_of(module: str, standings: Sequence[Standing]) -> Standing:
    """The fastest row of a library; several runs side by side are no row of it.

    Raises:
        ValueError: it has none.
    """
    rows = [s for s in standings if s.contestant.module == module and s.contestant.copies == 1]
    return max(rows, key=lambda s: s.rate)


def bound_of(standings: Sequence[Standing]) -> Standing:
    """What a run of nothing but its parts would reach: each part is the fastest of the rows that time it bare.

    Raises:
        ValueError: none does.
    """
    names = dict.fromkeys(s.contestant.part for s in standings if s.contestant.part)
    if not names:
        raise ValueError("no row times a part of a run.")
    parts = [max((s for s in standings if s.contestant.part == name), key=lambda s: s.rate) for name in names]
    rates = [1.0 / sum(1.0 / rate for rate in rates) for rates in zip(*(part.rates for part in parts), strict=True)]
    title = f"bound: {' + '.join(part.contestant.name for part in parts)}"
    return Standing(Contestant(title, "limits", "", {}), rates)


def describe(standings: Sequence[Standing]) -> list[dict[str, Any]]:
    """Rows as plain data, each with how many times faster the fastest row of fastac is."""
    reference = best_of("fastac", standings)
    return [
        {
            **asdict(s.contestant),
            "steps_per_s": s.rate,
            "spread": s.spread,
            "fastac_is": ratio(reference, s),
            "rates": list(s.rates),
            "facts": dict(s.facts),
        }
        for s in standings
    ]


def repeat_plainly(call: Callable[[], None], times: int) -> None:
    for _ in range(times):
        call()


def compare(
    pool: Pool, contestants: Sequence[Contestant], rounds: int, round_s: float, repeat: Repeat = repeat_plainly
) -> list[Standing]:
    """Run interleaved rounds and return the rows in the order given.

    Args:
        pool: where the processes come from.
        contestants: the rows.
        rounds: how many.
        round_s: how long each takes, at least one call of the work.
        repeat: calls a function of one round of all so many times.
    """
    rates: list[list[float]] = [[] for _ in contestants]
    with pool.lend(contestants) as lent:

        def run_all() -> None:
            for row, processes in zip(rates, lent, strict=True):
                row.append(_run_round(processes, round_s))

        repeat(run_all, rounds)
        facts = [processes[0].ask("facts") for processes in lent]
    return [Standing(*row) for row in zip(contestants, rates, facts, strict=True)]


def try_settings(pool: Pool, candidates: Sequence[Contestant], round_s: float) -> list[Standing]:
    """Measure settings of one library, one after the other, in two short rounds each; fastest first."""
    tried = [compare(pool, [candidate], 2, round_s)[0] for candidate in candidates]
    return sorted(tried, key=lambda s: s.rate, reverse=True)


def _run_round(processes: Sequence[Process], round_s: float) -> float:
    """Run one round in all processes at once; return the sum of their rates."""
    for process in processes:
        process.send("round", seconds=round_s)
    answers = [process.receive() for process in processes]
    return sum(answer["steps"] / answer["seconds"] for answer in answers)
