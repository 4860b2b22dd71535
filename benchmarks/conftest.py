"""What the benchmarks share: one torch thread, how a rate is measured, and the table at the end.

The clock is wall time, so other processes show in the numbers: the load is printed beside them, and
how much of that time this process had a core. A row is the median over rounds; its spread is the
distance of the quartiles in percent of that.
"""

from __future__ import annotations

from statistics import median, quantiles
from time import perf_counter, process_time
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks.machine import Machine, describe_machine, format_machine
from benchmarks.tables import format_table
from benchmarks.workloads import Measure, Work

_ROUND_S = 0.05  # long against the clock and the scheduler
_WORKLOAD_S = 1.2  # for all rounds of one workload, where a round is shorter than a twentieth of it
_MIN_ROUNDS, _MAX_ROUNDS = 7, 20
_CAVEAT = (
    "Steps are valid transitions: rows that only reset are not counted. The policy is fixed, the untrained one, "
    "whose CartPole episodes last about 22 steps, so it resets far more often than a trained one. "
    "GAE: one step is one element of [T, N]. One call is one of the kernel, or 16 steps of all envs, or the update "
    "on these, or both. Far below 100 % core, others took part of the machine, and the rates are too low by as much."
)


class Row(NamedTuple):
    workload: str
    call_s: float
    steps_per_s: float
    spread: float
    core: float
    rounds: int


_rows = pytest.StashKey[list[Row]]()
_machine = pytest.StashKey[Machine]()


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # as in training: a second thread stalls as soon as anything else runs
    config.stash[_rows] = []
    config.stash[_machine] = describe_machine()


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Measure:
    """Warm a workload up, repeat it until a round is long enough, and take the median of the rounds."""

    def measured(workload: str, work: Work) -> None:
        if benchmark.disabled:  # --benchmark-disable: only see that it runs
            benchmark(work)
            return
        steps: list[int] = []
        repeats, rounds = _plan(work)
        began, core_began = perf_counter(), process_time()
        # Appending costs 50 ns a call, which is 2 % of the shortest kernel and nothing elsewhere.
        benchmark.pedantic(lambda: steps.append(work()), rounds=rounds, iterations=repeats, warmup_rounds=2)
        core = (process_time() - core_began) / (perf_counter() - began)
        calls_s: list[float] = benchmark.stats.stats.data[-rounds:]  # per call, a number per round
        steps = steps[-rounds * repeats :]  # of the measured rounds, not of the warm-up
        per_round = [sum(steps[i * repeats : (i + 1) * repeats]) for i in range(rounds)]
        rates = [total / (call_s * repeats) for total, call_s in zip(per_round, calls_s, strict=True)]
        low, middle, high = quantiles(rates, n=4)
        row = Row(workload, median(calls_s), middle, (high - low) / middle, core, rounds)
        benchmark.extra_info.update(row._asdict())
        request.config.stash[_rows].append(row)

    return measured


def _plan(work: Work) -> tuple[int, int]:
    """Return calls per round and rounds; the first call, which may allocate and compile, is not looked at."""
    work()
    call_s, calls = 0.0, 0
    began = perf_counter()
    while call_s < _ROUND_S / 2:
        work()
        calls += 1
        call_s = perf_counter() - began
    repeats = max(1, round(_ROUND_S * calls / call_s))
    round_s = repeats * call_s / calls
    return repeats, min(_MAX_ROUNDS, max(_MIN_ROUNDS, round(_WORKLOAD_S / round_s)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[_rows]
    if not rows:
        return
    terminalreporter.section("workloads")
    terminalreporter.write_line(format_machine(config.stash[_machine]))
    terminalreporter.write_line(f"load {describe_machine()['load_1min']} at the end")
    cells = [
        (r.workload, f"{r.call_s * 1e6:,.1f}", f"{r.steps_per_s:,.0f}", f"{r.spread:.0%}", f"{r.core:.0%}")
        for r in rows
    ]
    terminalreporter.write_line(format_table(("workload", "us per call", "steps/s", "spread", "core"), cells))
    terminalreporter.write_line(_CAVEAT)


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> Machine:
    return config.stash[_machine]


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, Any]:
    return {"id": config.stash[_machine]["commit"]}


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)  # every round; the statistics of them are enough
