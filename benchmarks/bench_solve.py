"""W7: how soon CartPole-v1 is solved, from the first update and from process start; see `solve`."""

import pytest

from benchmarks import solve
from benchmarks.session import Measurement

pytestmark = pytest.mark.bench

_FLAGS = {
    "a2c": ("--algo", "a2c"),
    "ppo": ("--algo", "ppo"),
    **{name: ("--preset", name, "--workers", "2") for name in ("a3c", "a3c-paper")},
    **{f"{name}, 1 worker": ("--preset", name, "--workers", "1") for name in ("a3c", "a3c-paper")},
}
_QUICK = ("a2c", "ppo", "a3c")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.quick] if n in _QUICK else []) for n in _FLAGS])
def test_solve(measurement: Measurement, name: str) -> None:
    words, seeds = solve.train_command(_FLAGS[name]), range(measurement.effort.seeds)
    results = measurement.measure_once(lambda: [solve.run_seed(words, seed, solve.DEFAULT_TIMEOUT_S) for seed in seeds])
    measurement.add_solved(name, results)
