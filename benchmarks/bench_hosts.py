"""W13: scaling over workers and hosts. The hosts are network namespaces of this machine, so it needs root."""

from pathlib import Path

import pytest

from benchmarks.hosts.network import two_hosts, why_not
from benchmarks.hosts.speed import Scaling, measure
from benchmarks.session import FULL, Measurement

pytestmark = pytest.mark.bench


def test_scaling(measurement: Measurement, tmp_path: Path) -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)

    def run() -> list[Scaling]:
        with two_hosts():
            return list(measure(tmp_path / "run", 3 if measurement.effort is FULL else 1, None))

    measurement.add_scaling(measurement.measure_once(run))
