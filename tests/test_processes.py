"""Other processes: what they import, whom they outlive, and how waiting for them is measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from types import ModuleType, SimpleNamespace

import pytest

from fastac import processes
from fastac.processes import Stopwatch, close, get_context, has_news, start
from fastac.workers.shared_group import wait_until


class Clock:
    """Stands in for the monotonic clock, and for a pipe on which nothing comes before some second."""

    def __init__(self, news_at_s: float) -> None:
        self.now_s, self.news_at_s, self.stops = 0.0, news_at_s, []

    def monotonic(self) -> float:
        return self.now_s

    def poll(self, timeout_s: float) -> bool:
        until = self.now_s + timeout_s
        if self.news_at_s <= until:
            self.now_s = max(self.now_s, self.news_at_s)
            return True
        self.now_s = until + (self.stops.pop() if self.stops else 0.0)
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(1e9)
    monkeypatch.setattr(processes.time, "monotonic", clock.monotonic)
    return clock


def test_waiting_ends_in_time(clock: Clock) -> None:
    assert not has_news(clock, Stopwatch(), 3.2)
    assert clock.now_s == pytest.approx(3.2)
    clock.news_at_s = 5.0
    assert has_news(clock, Stopwatch(), 3.2)


def test_several_waits_can_share_a_time_out(clock: Clock) -> None:
    watch = Stopwatch()
    clock.news_at_s = 2.0
    assert has_news(clock, watch, 3.0)
    clock.news_at_s = 1e9
    assert not has_news(clock, watch, 3.0)
    assert clock.now_s == pytest.approx(3.0, abs=0.51)


def test_the_time_in_which_this_process_was_stopped_does_not_count(clock: Clock) -> None:
    clock.stops, clock.news_at_s = [7200.0, 600.0], 7805.0
    assert has_news(clock, Stopwatch(), 10.0)
    assert clock.now_s == 7805.0


def test_who_spins_does_not_count_it_either(monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter([0.0, 600.0, 600.05, 600.1])
    waited = []
    now = [0.0]

    def look() -> float:
        now[0] = next(jumps, now[0] + 0.05)
        return now[0]

    monkeypatch.setattr(processes.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(processes.time, "perf_counter", look)
    wait_until(lambda: len(waited) >= 5, waited.append)
    assert 0.0 < waited[-1] < 2.0


# --- what they are, and when they end -----------------------------------------------------------------


def tell_daemon(pipe: object) -> None:
    import multiprocessing

    pipe.send(multiprocessing.current_process().daemon)


def sleep_on(pipe: object) -> None:
    pipe.send(os.getpid())
    time.sleep(600.0)


def tell_main(pipe: object) -> None:
    pipe.send(getattr(sys.modules["__main__"], "__file__", None))


def test_they_may_have_children() -> None:
    child = start(get_context("fastac.processes"), tell_daemon)
    assert child.pipe.recv() is False
    close([child])


def test_only_who_needs_the_script_imports_it(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    script = tmp_path / "script.py"
    script.write_text("")
    main = SimpleNamespace(__file__=str(script), __spec__=None, __name__="__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    found = []
    for sent in (b"...fastac.build...", b"...__main__..."):
        child = start(get_context("fastac.processes"), tell_main, sent)
        found.append(child.pipe.recv())
        close([child])
    assert found[1] == str(script) != found[0]
    assert sys.modules["__main__"] is main


ORPHAN = """
import sys
from fastac import processes
from test_processes import sleep_on
if __name__ == "__main__":
    child = processes.start(processes.get_context("fastac.processes"), sleep_on)
    print(child.pipe.recv(), flush=True)
    sys.stdin.read()
"""


def test_they_end_with_who_started_them_whatever_they_do(tmp_path: object) -> None:
    script = tmp_path / "script.py"
    script.write_text(ORPHAN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    pid = int(run.stdout.readline())
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)
    until = time.monotonic() + 30.0
    while is_alive(pid):
        assert time.monotonic() < until
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_closed_pipe_is_an_error_and_no_wait() -> None:
    ours, theirs = Pipe()
    theirs.close()
    assert has_news(ours, Stopwatch(), 60.0)  # there is its end to receive
    with pytest.raises(EOFError):
        ours.recv()


class InNotebook:
    """Stands in for what is defined in a notebook."""


def test_what_a_notebook_defines_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    main.InNotebook = InNotebook
    monkeypatch.setattr(InNotebook, "__module__", "__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(ValueError, match=r"^it cannot be sent \(other processes cannot import .* %%writefile\)\.$"):
        processes.pickled(InNotebook, "it cannot be sent")
    main.__file__ = "script.py"
    assert processes.pickled(InNotebook, "it cannot be sent")


# --- the fork server -----------------------------------------------------------------------------


def run_python(lines: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("error", "is_told"), [("EOFError", False), ("ConnectionResetError", False), ("KeyError", True)]
)
def test_a_first_process_that_has_gone_is_no_news_while_another_is_forked(error: str, is_told: bool) -> None:
    done = run_python(f"import fastac.fork_server\nraise {error}('half a message')")
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == is_told


def test_a_fork_server_that_ends_leaves_the_first_process_its_folder() -> None:
    done = run_python(
        "import os\n"
        "from multiprocessing import forkserver, util\n"
        "from fastac.processes import close, get_context, start\n"
        "children = [start(get_context('fastac.contract'), print)]\n"
        "close(children)\n"
        "forkserver._forkserver._stop()\n"
        "print(os.path.isdir(util.get_temp_dir()))\n"
    )
    assert done.stdout.splitlines()[-1] == "True" and "Traceback" not in done.stderr
