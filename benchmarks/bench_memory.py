"""W8: how much memory A2C takes for its environments and their rollout, beyond what an idle run takes.

Each row is a fresh process: a run of a few environments first, for what any run takes once, then the
growth to the peak of a large run, its environments included. On Linux only, which tells the peak.
"""

import sys

import pytest

from benchmarks.contest import Process
from benchmarks.session import Measurement
from benchmarks.workloads import FASTAC, LIBRARIES, NUM_STEPS, SB3

pytestmark = [pytest.mark.bench, pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/clear_refs")]


@pytest.mark.parametrize("num_envs", [pytest.param(1024, marks=pytest.mark.quick), 4096])
@pytest.mark.parametrize("library", [FASTAC, SB3])
def test_memory(measurement: Measurement, library: str, num_envs: int) -> None:
    settings = {"num_envs": num_envs, "num_steps": NUM_STEPS, "net": "lecture"}
    process = Process(library, threads=1)
    try:
        answer = measurement.measure_once(
            lambda: process.ask("memory", function="a2c", settings=settings, first={"num_envs": 8})
        )
    finally:
        process.end()
    name = f"{LIBRARIES.get(library, library)}, {num_envs} envs"
    measurement.add_memory(name, num_envs, answer["bytes"], answer.get("stated_bytes"))
