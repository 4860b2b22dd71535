"""The one child: what it imports, how it answers, fails, falls silent, is replaced and ends."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import Pipe
from types import ModuleType, SimpleNamespace

import pytest
from child_support import echo, exit_with, listen_and_sleep, sleep_on, start_and_wait, tell_daemon, tell_main
from run_support import spawn

from fastac import pickling, processes
from fastac.contract import EnvFailure, NonFiniteError, WorkerFailure
from fastac.processes import Child, Children, Parent, Restarts, Stopwatch, WorkerTraceback, has_news, start, was_sent
from fastac.workers.waiting import wait_until


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


def begin(work: Callable[[Parent], None], *args: object) -> Child:
    return start("the child", work, "fastac.processes", *args)


def test_they_may_have_children() -> None:
    child = begin(tell_daemon)
    assert child.receive() is False
    child.end()


def test_only_who_needs_the_script_imports_it(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    script = tmp_path / "script.py"
    script.write_text("")
    main = SimpleNamespace(__file__=str(script), __spec__=None, __name__="__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    found = []
    for sent in (None, pickling.Pickled(b"...fastac.build..."), pickling.Pickled(b"...__main__...")):
        child = begin(tell_main, sent)
        found.append(child.receive())
        child.end()
    assert found[2] == str(script) and str(script) not in found[:2]
    assert sys.modules["__main__"] is main


def test_they_end_with_who_started_them_whatever_they_do() -> None:
    ours, theirs = Pipe()
    run = spawn(start_and_wait, theirs)
    pid = ours.recv()
    run.kill()
    run.join()
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
        pickling.pickled(InNotebook, "it cannot be sent")
    main.__file__ = "script.py"
    assert pickling.pickled(InNotebook, "it cannot be sent").needs_script


# --- what it sends, and what is raised here --------------------------------------------------------


def ended(child: Child) -> bool:
    child.end(timeout_s=0.0)
    return not is_alive(child.pid)


def test_it_answers_until_it_is_ended() -> None:
    child = begin(echo)
    for message in ("one", {"two": [3.0]}):
        child.send(message)
        assert child.receive_within(60.0, "") == message
    assert is_alive(child.pid) and not child.has_news() and not child.has_ended
    child.end()
    child.end()
    assert not is_alive(child.pid) and child.has_ended


@pytest.mark.parametrize("failure", [EnvFailure, WorkerFailure])
def test_one_that_died_is_told_with_its_exit_code(failure: type) -> None:
    child = begin(partial(exit_with, 3), None, failure)
    for do in (child.receive, partial(child.receive_within, 60.0, "")):
        with pytest.raises(failure, match=r"^the child died \(exit code 3\)\.$") as caught:
            do()
        assert not was_sent(caught.value)
    assert child.has_news(), "that it died is news"
    with pytest.raises(failure, match=r"^the child died \(exit code 3\)\.$"):
        for _ in range(2):  # a pipe takes the first one in yet
            child.send("are you there?")
    assert ended(child)


def test_one_that_gives_no_answer_is_told_with_the_setting_to_raise() -> None:
    child = begin(echo)
    with pytest.raises(WorkerFailure, match=r"^the child gave no answer for 0\.1 s \(raise env_timeout_s if it needs "):
        child.receive_within(0.1, "env_timeout_s")
    assert ended(child)


@pytest.mark.parametrize(
    ("error", "failure", "kind", "says"),
    [
        (KeyError("x"), WorkerFailure, WorkerFailure, "the child: raised KeyError: 'x'"),
        (ValueError("one\nand more"), EnvFailure, EnvFailure, "the child: raised ValueError: one"),
        (ValueError(), WorkerFailure, WorkerFailure, "the child: raised ValueError"),
        (EnvFailure("env 3 broke."), WorkerFailure, EnvFailure, "the child: env 3 broke."),
        (EnvFailure("env 3 broke."), EnvFailure, EnvFailure, "env 3 broke."),
        (NonFiniteError("update 7: nan"), WorkerFailure, NonFiniteError, "the child: update 7: nan"),
    ],
)
def test_what_fails_in_it_is_raised_here_with_its_traceback(
    error: Exception, failure: type, kind: type, says: str
) -> None:
    child = begin(echo, None, failure)
    child.send(error)
    with pytest.raises(kind) as caught:
        child.receive_within(60.0, "")
    assert str(caught.value) == says and was_sent(caught.value)
    assert isinstance(caught.value.__cause__, WorkerTraceback)
    assert "raise message" in str(caught.value.__cause__)
    child.process.join(60.0)
    assert child.process.exitcode == 0, "it ends when it has told"
    child.end()


def test_a_script_without_a_main_guard_is_told() -> None:
    child = begin(partial(exit_with, pickling.UNGUARDED))
    with pytest.raises(ValueError, match="another process cannot import this script: put what it does below `if"):
        child.receive()
    child.end()


@pytest.mark.parametrize("failure", [EnvFailure, WorkerFailure])
def test_one_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch, failure: type) -> None:
    def refuse() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(processes, "start_context", lambda _: SimpleNamespace(Pipe=refuse))
    with pytest.raises(failure, match=r"^the child could not be started \(\[Errno 24\] Too many open files\)\.$"):
        begin(echo, None, failure)


def test_one_that_the_fork_server_cannot_fork_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unforked:
        Pipe = staticmethod(Pipe)

        @staticmethod
        def Process(**_: object) -> SimpleNamespace:
            def start() -> None:
                raise EOFError("unexpected EOF")  # the server has died of it

            return SimpleNamespace(start=start)

    monkeypatch.setattr(processes, "start_context", lambda _: Unforked)
    with pytest.raises(WorkerFailure, match=r"^the child could not be started \(unexpected EOF\)\.$"):
        begin(echo, None, WorkerFailure)


def test_one_that_was_ended_is_told_with_its_exit_code() -> None:
    child = begin(echo, None, WorkerFailure)
    child.end()
    with pytest.raises(WorkerFailure, match=r"^the child died \(exit code -?\d+\)\.$"):
        child.send("news")


# --- silence, restarts and the end -----------------------------------------------------------------


def stand_in(clock: Clock) -> Child:
    """Return a child that is nothing but a pipe."""
    clock.close = lambda: None
    return Child("the child", SimpleNamespace(pid=0), clock, clock, WorkerFailure)


def test_one_that_shows_no_sign_of_life_is_told(clock: Clock) -> None:
    child = stand_in(clock)
    for _ in range(3):
        for _ in range(12):
            clock.now_s += 0.9
            child.check_silence("finished no step", 11.0, "env_timeout_s")
        child.silence.restart()
    with pytest.raises(WorkerFailure, match=r"^the child finished no step for 11 s \(raise env_timeout_s if it needs"):
        for _ in range(13):
            clock.now_s += 0.9
            child.check_silence("finished no step", 11.0, "env_timeout_s")


def test_the_time_in_which_the_parent_was_stopped_is_no_silence(clock: Clock) -> None:
    child = stand_in(clock)
    clock.now_s += 7200.0
    child.check_silence("finished no step", 11.0, "env_timeout_s")
    clock.stops, clock.news_at_s = [7200.0, 600.0], 2e4
    with pytest.raises(WorkerFailure, match="gave no answer for 11 s"):
        child.receive_within(11.0, "env_timeout_s")
    assert clock.now_s == pytest.approx(7200.0 + 7200.0 + 600.0 + 11.0, abs=2.0)


def test_several_share_a_time_out(clock: Clock) -> None:
    clock.recv = lambda: "answer"
    clock.news_at_s = 8.0
    children = Children([stand_in(clock), stand_in(clock)])
    assert children.receive_within(11.0, "") == ["answer"] * 2
    clock.news_at_s = 1e9
    with pytest.raises(WorkerFailure, match="gave no answer for 11 s"):
        children.receive_within(11.0, "")
    assert clock.now_s == pytest.approx(8.0 + 11.0)


def test_restarts_are_counted_and_told_up_to_as_many_as_are_allowed(caplog: pytest.LogCaptureFixture) -> None:
    restarts, cause = Restarts(2), WorkerTraceback("where")
    restarts.add(WorkerFailure("the child died."))
    restarts.add(EnvFailure("the child: env 3 broke."), " with new episodes")
    assert restarts.count == 2 and [record.getMessage() for record in caplog.records] == [
        "the child died: started again (1 of at most 2 times)",
        "the child: env 3 broke: started again with new episodes (2 of at most 2 times)",
    ]
    lost = EnvFailure("env 4 broke.")
    lost.__cause__ = cause
    with pytest.raises(EnvFailure) as caught:
        restarts.add(lost)
    assert str(caught.value) == "env 4 broke, after as many restarts as max_restarts allows (2)."
    assert caught.value.__cause__ is cause and restarts.count == 2


def test_one_that_does_not_end_by_itself_is_killed() -> None:
    child = begin(sleep_on)
    child.receive()
    began = time.monotonic()
    assert ended(child)
    assert time.monotonic() - began < 60.0


def test_one_that_listens_ends_in_the_middle_of_its_work() -> None:
    child = begin(listen_and_sleep)
    child.send("one")
    assert child.receive_within(60.0, "") == "one"
    child.hang_up()
    child.process.join(60.0)
    assert child.process.exitcode == 1
    child.end()


def test_of_several_those_with_news_are_found_and_none_outlives_a_failure() -> None:
    children, pids = Children(), []
    with children:
        children.extend(begin(echo) for _ in range(3))
        pids.extend(children.pids)
        children[1].send("news")
        assert children.wait(60.0) == [children[1]]
    assert len(children) == 3, "nothing has failed"
    with pytest.raises(KeyboardInterrupt), children:
        raise KeyboardInterrupt
    assert children == [] and not any(map(is_alive, pids))
    children.end()


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
        "from fastac.processes import start\n"
        "start('the child', print, 'fastac.contract').end()\n"
        "forkserver._forkserver._stop()\n"
        "print(os.path.isdir(util.get_temp_dir()))\n"
    )
    assert done.stdout.splitlines()[-1] == "True" and "Traceback" not in done.stderr
