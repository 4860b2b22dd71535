"""Two hosts as network namespaces: what breaks between them must not change what the run comes to (needs root)."""

import pytest

from benchmarks.hosts import faults
from benchmarks.hosts.network import two_hosts, why_not

pytestmark = pytest.mark.hosts


@pytest.fixture(scope="module")
def network():
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with two_hosts():
        yield


@pytest.fixture(scope="module")
def undisturbed(network, tmp_path_factory):
    return faults.train(tmp_path_factory.mktemp("undisturbed") / "run")[0]


@pytest.mark.parametrize("name", list(faults.FAULTS))
def test_a_fault_does_not_change_the_run(undisturbed, tmp_path, name):
    found, _, left = faults.train(tmp_path / "run", faults.FAULTS[name][1], seed=len(name))
    assert found == undisturbed and left == 0
