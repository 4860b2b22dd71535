"""Times W1 to W6, W9 to W12 and W14: every workload's contestants in interleaved rounds; see `workloads` for the list.

The parts are timed as the trainer runs them; a session's logs, evaluations and checkpoints are in none of
them. The policy is fixed, so this says nothing of how fast anything is learned: `bench_solve` does.
fastac's update has no forward in it where the one that chose the actions is used again; the peers' has.
"""

import pytest

from benchmarks.contest import try_settings
from benchmarks.headlines import BEST
from benchmarks.session import Measurement
from benchmarks.workloads import Workload, all_workloads, best_settings

pytestmark = pytest.mark.bench

_WORKLOADS = [
    pytest.param(workload, id=workload.name, marks=[pytest.mark.quick] if workload.quick else [])
    for workload in all_workloads()
]


@pytest.mark.parametrize("workload", _WORKLOADS)
def test_workload(measurement: Measurement, workload: Workload) -> None:
    measurement.compare(workload.name, workload.contestants, workload.pace)


def test_best_settings(measurement: Measurement) -> None:
    """W6: every library's fastest settings, of a small grid, against each other."""
    grids = best_settings().values()
    tried = [try_settings(measurement.pool, grid, measurement.effort.round_s) for grid in grids]
    measurement.compare(BEST, [standings[0].contestant for standings in tried])
    measurement.add_tried([standing for standings in tried for standing in standings])
