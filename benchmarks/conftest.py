"""What the benchmarks share: the flag --quick, the contestants' processes, and the tables at the end.

The clock is wall time, so whatever else runs shows in the numbers: the load is printed beside them. A rate
is the median over rounds; its spread is the distance of the quartiles in percent of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.contest import Pool
from benchmarks.machine import Machine, describe_machine
from benchmarks.session import FULL, QUICK, TRY, Measurement, Session

_session = pytest.StashKey[Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="fewer workloads, fewer and shorter rounds, fewer seeds")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick: one of the workloads of --quick")
    # A benchmark that failed before it measured has failed; that is enough.
    config.addinivalue_line("filterwarnings", "ignore:Benchmark fixture was not used at all")
    config.stash[_session] = Session(describe_machine(torch_threads=1))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        left = [item for item in items if item.get_closest_marker("quick") is None]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.end()


@pytest.fixture
def measurement(benchmark: Any, pool: Pool, request: pytest.FixtureRequest) -> Measurement:
    effort = TRY if benchmark.disabled else QUICK if request.config.getoption("--quick") else FULL
    return Measurement(benchmark, pool, request.config.stash[_session], effort)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash[_session].format()
    if found:
        terminalreporter.section("workloads")
        terminalreporter.write_line(found)
        terminalreporter.write_line(f"Load at the end: {describe_machine()['load_1min']}")


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> Machine:
    return config.stash[_session].machine


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, Any]:
    return {"id": config.stash[_session].machine["commit"]}


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)  # how long every round of all took; every row's rates are in extra_info
