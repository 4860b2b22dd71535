"""W7: how soon CartPole-v1 is solved, from the first update and from process start; see `solve`."""

import pytest

from benchmarks import solve
from benchmarks.session import Measurement

pytestmark = [pytest.mark.bench, pytest.mark.quick]


@pytest.mark.parametrize("algo", ["a2c", "ppo"])
def test_solve(measurement: Measurement, algo: str) -> None:
    words, seeds = solve.train_command(algo), range(measurement.effort.seeds)
    results = measurement.measure_once(lambda: [solve.run_seed(words, seed, solve.DEFAULT_TIMEOUT_S) for seed in seeds])
    measurement.add_solved(algo, results)
