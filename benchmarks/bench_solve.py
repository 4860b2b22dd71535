"""W7: how soon CartPole-v1 is solved, from the first update and from process start; see `solve`."""

import pytest

from benchmarks import solve, speedup
from benchmarks.session import Measurement

pytestmark = pytest.mark.bench

_FLAGS = {
    "a2c": ("--algo", "a2c"),
    "ppo": ("--algo", "ppo"),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", list(_FLAGS))
def test_solve(measurement: Measurement, name: str) -> None:
    words, seeds = solve.train_command(_FLAGS[name]), range(measurement.effort.seeds)
    results = measurement.measure_once(lambda: [solve.run_seed(words, seed, solve.DEFAULT_TIMEOUT_S) for seed in seeds])
    measurement.add_solved(name, results)


@pytest.mark.parametrize("name", [pytest.param("a3c", marks=pytest.mark.quick), "a3c-paper"])
def test_speedup(measurement: Measurement, name: str) -> None:
    [preset] = speedup.choose([f"CartPole-v1:{name}"]).values()
    pairs = measurement.measure_once(
        lambda: [speedup.run_pair(preset, seed) for seed in range(measurement.effort.seeds)]
    )
    one, two = zip(*pairs, strict=True)
    measurement.add_solved(f"{name}, 1 worker", one)
    measurement.add_solved(name, two)
