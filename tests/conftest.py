"""What every test shares: one torch thread, no window, fixed seeds."""

import os
import random
import signal
from multiprocessing import forkserver

import hypothesis
import numpy as np
import pytest
import torch

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # rendering needs no screen

# Several threads gain nothing on arrays of this size, and stall as soon as anything else runs.
torch.set_num_threads(1)

# No deadline: the first call of a kernel compiles it. In CI the examples are the same each time.
hypothesis.settings.register_profile("fastac", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("fastac")


# Ids that tests train on, as the compiled versions know them.
COMPILED = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1")


# What any process of the tests may need; the last one is what torch's optimizers import.
PRELOADED = ("fastac.cli", "fastac.api", "fastac.workers", "torch._dynamo")


@pytest.fixture(autouse=True, scope="session")
def _one_fork_server():
    """Have the fork server import all that any test needs: it is started once, by whichever test comes first."""

    def preload(modules):
        set_preload([*modules, *PRELOADED])

    set_preload = forkserver.set_forkserver_preload
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(forkserver, "set_forkserver_preload", preload)
        yield


@pytest.fixture(autouse=True, scope="session")
def _compiled():
    """Compile what is not in the disk cache yet, so that no test reads in its log that something is compiled."""
    from fastac.config import EnvConfig
    from fastac.envs import make_vec

    # Of two processes of pytest-xdist that both find the cache empty, each compiles one half.
    is_first = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw") in "02468"
    for env_id in COMPILED[:: 1 if is_first else -1]:
        make_vec(EnvConfig(env_id, 1, "compiled"), np.random.SeedSequence(0))


@pytest.fixture(autouse=True)
def _seeded():
    """Start each test from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _hears_signals():
    """See that no test leaves the process deaf to signals, or hearing them in another way, for those after it."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.fixture
def kills_early(monkeypatch):
    """Kill at once what does not end by itself, as a process that is stopped never does."""
    from fastac.processes import Child, Children

    for kind in (Child, Children):
        monkeypatch.setattr(kind.end, "__defaults__", (0.1,))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, so that their contents can be read."""
    from matplotlib.figure import Figure  # which most tests can do without

    figures = []
    save = Figure.savefig

    def keep(self, *args, **kwargs):
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures
