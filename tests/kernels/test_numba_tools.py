"""The exp and log inside the CPU kernels, against float64's."""

import numba
import numpy as np
import pytest

from fastac.kernels import numba_tools


@pytest.fixture(scope="module")
def functions():
    exp, log = numba_tools.exp, numba_tools.log

    @numba.njit
    def exp_of(x, y):
        for k in range(x.size):
            y[k] = exp(x[k])

    @numba.njit
    def log_of(x, y):
        for k in range(x.size):
            y[k] = log(x[k])

    return {np.exp: exp_of, np.log: log_of}


def ulps(functions, function, x):
    """How far off, in units of the last place of the right result."""
    x, y = x.astype(np.float32), np.empty(x.size, np.float32)
    functions[function](x, y)
    want = function(x.astype(np.float64))
    return np.abs(y - want) / np.spacing(np.abs(want).astype(np.float32))


def test_exp_is_within_2_ulp(functions):
    for low, high in ((-86.0, 88.72), (-1.0, 1.0), (-1e-6, 1e-6)):
        assert ulps(functions, np.exp, np.random.uniform(low, high, 100_000)).max() <= 2.0


def test_log_is_within_2_ulp(functions):
    for low, high in ((1.0, 2.0), (0.5, 20.0), (1.0, 1e6), (1e-6, 1e30)):
        assert ulps(functions, np.log, np.random.uniform(low, high, 100_000)).max() <= 2.0


def test_the_ends(functions):
    x = np.array([np.nan, np.inf, 1e4, 88.8, -86.1, -1e4, -np.inf, 0.0], np.float32)
    y = np.empty_like(x)
    functions[np.exp](x, y)
    np.testing.assert_array_equal(y, [np.nan, np.inf, np.inf, np.inf, 0.0, 0.0, 0.0, 1.0])
    x = np.array([np.nan, 1.0], np.float32)
    functions[np.log](x, y[:2])
    np.testing.assert_array_equal(y[:2], [np.nan, 0.0])
