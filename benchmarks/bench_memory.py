"""W8: how much memory A2C takes for its environments and their rollout, beyond what an idle run takes.

Each row is a fresh process: a run of a few environments first, for what any run takes once, then the
growth to the peak of a large run, its environments included. On Linux only, which tells the peak.

W10 is of a whole run on Atari, all its processes: what they hold at their peak over the sum of what it says that
it takes and what it cannot do without: the program (a run of the same workers on CartPole), rollout and activations
as stated, the model with its gradient and its optimiser's averages, and as many emulators in a process of their own.
"""

import sys
from typing import Any

import pytest

from benchmarks.contest import Process
from benchmarks.session import Measurement
from benchmarks.workloads import ATARI_ENVS, FASTAC, LIBRARIES, LIMITS, NUM_STEPS, SB3

_MODEL_BYTES = 3 * 4  # of a parameter: itself, its gradient, RMSprop's average of that squared

pytestmark = [pytest.mark.bench, pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/clear_refs")]


@pytest.mark.parametrize(
    ("library", "num_envs"),
    [
        *(pytest.param(library, 1024, marks=pytest.mark.quick) for library in (FASTAC, SB3)),
        *((library, 4096) for library in (FASTAC, SB3)),
        (FASTAC, 65_536),  # stable-baselines3 makes an object per environment
    ],
)
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
    stated = answer["rollout_bytes"] + answer["activations_bytes"] if library == FASTAC else None
    measurement.add_memory(name, num_envs, answer["bytes"], stated)


@pytest.mark.parametrize("workers", [1, 2])
def test_atari_memory(measurement: Measurement, workers: int) -> None:
    first = {"function": "a2c", "settings": {"num_envs": 8, "net": "lecture", "workers": workers}}
    settings = {"num_envs": ATARI_ENVS, "encoder": "nature", "workers": workers}
    run = measurement.measure_once(lambda: _footprint(FASTAC, "atari_a2c", settings, first))
    first = {"function": "env", "settings": {"num_envs": 8, "vec": "gymnasium"}}
    bare = _footprint(LIMITS, "atari_env", {"num_envs": ATARI_ENVS, "num_threads": 2}, first)
    parts = {
        "program": run["program_bytes"],
        "rollout": workers * run["rollout_bytes"],
        "activations": workers * run["activations_bytes"],
        "model": workers * run["parameters"] * _MODEL_BYTES,
        "emulators": bare["peak_bytes"] - bare["program_bytes"],
    }
    measurement.add_footprint(workers, run["peak_bytes"], parts)


def _footprint(module: str, function: str, settings: dict[str, Any], first: dict[str, Any]) -> dict[str, float]:
    process = Process(module, threads=1)
    try:
        return process.ask("footprint", function=function, settings=settings, first=first)
    finally:
        process.end()
