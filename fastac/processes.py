"""One supervised child process: how it starts, answers, falls silent, dies, is replaced and ends.

A process is never forked from this one, whose threads (torch's, CUDA's) a fork would break. What a child runs is a
function of a module that is given its `Parent`; here the child is a `Child`, and several of them are `Children`.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, Literal, Self, TypeAlias

from fastac.contract import EnvFailure, NonFiniteError, WorkerFailure
from fastac.pickling import GUARD, UNGUARDED, Pickled, suppress_script

log = logging.getLogger("fastac")

ChildFailure: TypeAlias = EnvFailure | NonFiniteError | WorkerFailure
Message: TypeAlias = Any  # whatever a child and its parent have agreed on; the receiver writes down its type
CHILD_FAILURES = (EnvFailure, NonFiniteError, WorkerFailure)

ANSWER_TIMEOUT_S = 120.0  # the longest that a child may take to answer, where env_timeout_s says nothing
_EXIT_TIMEOUT_S = 10.0  # from the end of a child's pipe to its exit code, on a machine that is busy
_END_TIMEOUT_S = 2.0  # that a child has to end by itself before it is killed
_ORPHAN_S = 5.0  # that a child has to end in order after its parent has gone

_LOOK_S = 0.5  # who waits looks at the clock at least so often
_MOST_S = 1.0  # what one look can add to a stopwatch


# --- waiting --------------------------------------------------------------------------------------


class Stopwatch:
    """Measures how long this process has waited for another one.

    It stands still while this very process is stopped (Ctrl-Z, `docker pause`, a debugger): who was not there has seen
    nobody being late. To know that, it must be looked at twice a second or more often.
    """

    def __init__(self) -> None:
        """Begin at 0."""
        self.restart()

    def restart(self) -> None:
        """Begin at 0 again."""
        self.elapsed_s = 0.0
        self._looked = time.monotonic()

    def look(self) -> float:
        """Return the seconds waited so far."""
        now = time.monotonic()
        self.elapsed_s += min(now - self._looked, _MOST_S)
        self._looked = now
        return self.elapsed_s


def has_news(pipe: Connection, watch: Stopwatch, timeout_s: float) -> bool:
    """Wait until there is something to receive, or `watch` says `timeout_s`; return whether there is.

    Raises:
        OSError: the pipe is broken.
    """
    while not pipe.poll(min(_LOOK_S, max(0.0, timeout_s - watch.elapsed_s))):
        if watch.look() >= timeout_s:
            return pipe.poll(0.0)
    return True


# --- failing --------------------------------------------------------------------------------------


class WorkerTraceback(Exception):
    """The traceback of a child, as text; the cause of the failure raised here."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """What a child sends when it failed.

    Attributes:
        message: one sentence.
        traceback: its traceback as text.
        of: what is to blame, an environment, numbers that are not finite, or anything else.
    """

    message: str
    traceback: str
    of: Literal["env", "numbers", "other"] = "other"


def _to_failed(error: Exception) -> _Failed:
    """Return what a child sends of its exception; called where that is handled."""
    text = traceback.format_exc()
    if isinstance(error, EnvFailure):
        return _Failed(str(error), text, "env")
    if isinstance(error, NonFiniteError):
        return _Failed(str(error), text, "numbers")
    lines = str(error).splitlines() or [""]
    return _Failed(f"raised {type(error).__name__}: {lines[0]}".removesuffix(": "), text)


def was_sent(error: ChildFailure) -> bool:
    """Return whether a child has sent this failure itself; one that died or hung could not."""
    return isinstance(error.__cause__, WorkerTraceback)


# --- the child, seen from its parent ---------------------------------------------------------------


class Child:
    """A started process and this end of its pipe.

    Attributes:
        name: what sentences call it, such as "worker 3".
        pid: its process id, also after it has ended.
        process: itself.
        pipe: to talk through.
        silence: how long it has shown no sign of life; restarted by whoever sees one.
    """

    def __init__(
        self,
        name: str,
        process: BaseProcess,
        pipe: Connection,
        lifeline: Connection,
        failure: type[EnvFailure | WorkerFailure],
    ) -> None:
        """Take what `start` has made; the child notices the end of `lifeline`, whatever it is doing."""
        self.name, self.process, self.pipe = name, process, pipe
        self.pid, self.silence = process.pid, Stopwatch()
        self._lifeline, self._failure, self._is_over = lifeline, failure, False
        for end in (pipe, lifeline):
            atexit.register(end.close)  # before multiprocessing waits for processes that nobody closed

    def send(self, message: Message) -> None:
        """Send a message; this waits while the pipe is full and the child reads nothing.

        Raises:
            EnvFailure, WorkerFailure: it has died.
            ValueError: see `receive`.
        """
        try:
            self.pipe.send(message)
        except OSError as error:
            raise self._died() from error

    def has_news(self, timeout_s: float = 0.0) -> bool:
        """Wait up to `timeout_s`; return whether there is a message, or that it died, to receive."""
        try:
            return self.pipe.poll(timeout_s)
        except OSError:
            return True

    def receive(self) -> Message:
        """Return its next message, however long that takes.

        Raises:
            EnvFailure: it sent that an environment failed, or died and runs nothing but environments.
            NonFiniteError: it sent that numbers are not finite.
            WorkerFailure: it sent that it failed, or died.
            ValueError: it was started by a script that trains whenever it is imported.
        """
        try:
            message = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(message, _Failed):
            raise self._to_error(message)
        return message

    def receive_within(self, timeout_s: float, setting: str, watch: Stopwatch | None = None) -> Message:
        """Return its next message, which comes before `watch`, a new one by default, says `timeout_s`.

        Raises:
            EnvFailure, WorkerFailure: it sent nothing in time; the sentence tells to raise `setting`.
            Exception: see `receive`.
        """
        try:
            is_there = has_news(self.pipe, watch or Stopwatch(), timeout_s)
        except OSError as error:
            raise self._died() from error
        if not is_there:
            raise self.too_late("gave no answer", timeout_s, setting)
        return self.receive()

    def check_silence(self, what: str, patience_s: float, setting: str) -> None:
        """Look at the clock, twice a second or more often.

        Raises:
            EnvFailure, WorkerFailure: it has shown no sign of life for longer than `patience_s`.
        """
        if self.silence.look() > patience_s:
            raise self.too_late(what, patience_s, setting)

    def too_late(self, what: str, timeout_s: float, setting: str) -> EnvFailure | WorkerFailure:
        """Return the failure of a child that did `what` for so long, where `setting` allows no more."""
        seconds = f"{timeout_s:.3g}" if timeout_s < 100.0 else f"{timeout_s:.0f}"
        return self._failure(f"{self.name} {what} for {seconds} s (raise {setting} if it needs longer).")

    def _died(self) -> EnvFailure | WorkerFailure:
        """Return the failure of a child whose pipe is closed, which happens a moment before it has an exit code.

        Raises:
            ValueError: see `receive`.
        """
        self.process.join(_EXIT_TIMEOUT_S)
        if self.process.exitcode == UNGUARDED:
            raise ValueError(f"another process cannot import this script: {GUARD}.") from None  # its pipe's end
        return self._failure(f"{self.name} died (exit code {self.process.exitcode}).")

    def _to_error(self, failed: _Failed) -> ChildFailure:
        """Return what it sent as this process raises it; its traceback is the cause."""
        kinds: dict[str, type[ChildFailure]] = {
            "env": EnvFailure,
            "numbers": NonFiniteError,
            "other": self._failure,
        }
        # A child that runs nothing but environments has named the one that failed; its own name would add nothing.
        names_env = failed.of == "env" and self._failure is EnvFailure
        error = kinds[failed.of](failed.message if names_env else f"{self.name}: {failed.message}")
        error.__cause__ = WorkerTraceback(failed.traceback)
        return error

    @property
    def has_ended(self) -> bool:
        """Whether it was ended from here, which at exit happens without `end`."""
        return self.pipe.closed

    def hang_up(self) -> None:
        """Close the pipe, at which it ends by itself."""
        for end in (self.pipe, self._lifeline):
            end.close()
            atexit.unregister(end.close)

    def end(self, timeout_s: float = _END_TIMEOUT_S) -> None:
        """End it, and kill it if it has not ended after `timeout_s`; safe to call twice."""
        self.hang_up()
        if self._is_over:
            return
        self.process.join(timeout_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()
        self._is_over = True


class Children(list[Child]):
    """Several children; `with children:` ends them all, and empties the list, if the block raises."""

    def __enter__(self) -> Self:
        """Begin what either all of them survive or none does."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """End them after an exception; also after Ctrl-C, or a late reply would pass for the next one."""
        if kind is not None:
            self.end()

    @property
    def pids(self) -> list[int | None]:
        """Their process ids."""
        return [child.pid for child in self]

    def receive_within(self, timeout_s: float, setting: str) -> list[Message]:
        """Return a message of each, all of which come within `timeout_s`.

        Raises:
            Exception: see `Child.receive_within`.
        """
        watch = Stopwatch()
        return [child.receive_within(timeout_s, setting, watch) for child in self]

    def wait(self, timeout_s: float) -> list[Child]:
        """Wait until one of them has news, or for `timeout_s`; return those that have."""
        ready = wait([child.pipe for child in self], timeout_s)
        return [child for child in self if child.pipe in ready]

    def end(self, timeout_s: float = _END_TIMEOUT_S) -> None:
        """End them all, side by side, as `Child.end` does; safe to call twice."""
        for child in self:
            child.hang_up()
        while self:
            self[-1].end(timeout_s)
            self.pop()  # last, since an interrupt may come while it is being ended


class Restarts:
    """How often lost children have been started again.

    Attributes:
        count: so far.
    """

    def __init__(self, most: int) -> None:
        """Begin at 0; `most` is the setting max_restarts."""
        self.count, self._most = 0, most

    def add(self, lost: ChildFailure, how: str = "") -> None:
        """Count another restart, and warn of why and `how` the child is started again.

        Raises:
            EnvFailure, NonFiniteError, WorkerFailure: `lost`, where there have been `most` restarts before.
        """
        what = str(lost).removesuffix(".")
        if self.count >= self._most:
            allowed = f"{what}, after as many restarts as max_restarts allows ({self._most})."
            raise type(lost)(allowed) from lost.__cause__
        self.count += 1
        log.warning("%s: started again%s (%d of at most %d times)", what, how, self.count, self._most)


# --- starting it ----------------------------------------------------------------------------------


def start(
    name: str,
    work: Callable[[Parent], None],
    preload: str,
    sent: Pickled[object] | None = None,
    failure: type[EnvFailure | WorkerFailure] = WorkerFailure,
) -> Child:
    """Start a child, which does `work` and ends at the latest with this process.

    It is no daemon, as environments may have processes of their own.

    Args:
        name: what sentences call it.
        work: a function of a module, not of the user's script. What it raises is sent as a failure.
        preload: a module that the fork server imports once, and torch with it; children then start in milliseconds.
        sent: what of the user's is a part of `work`. The child imports the user's script only if that needs it.
        failure: what is raised here when it dies or hangs: `EnvFailure` where it runs nothing but environments.

    Raises:
        EnvFailure, WorkerFailure: there is no memory for it, or too many files are open.
    """
    context = _get_context(preload)
    try:
        ours, theirs = context.Pipe()
        held, lifeline = context.Pipe(duplex=False)
        process = context.Process(target=_live, args=(work, held, theirs), daemon=False)
        with _without_signals(context), suppress_script(sent is None or not sent.needs_script):
            process.start()
    except OSError as error:
        raise failure(f"{name} could not be started ({error}).") from error
    for end in (theirs, held):
        end.close()  # or this process would hold the pipe of a dead child open, and wait
    return Child(name, process, ours, lifeline, failure)


def _get_context(preload: str) -> SpawnContext | ForkServerContext:
    """Return a context that never forks this process; Windows has only spawn."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fastac.fork_server", preload])
    return context


@contextmanager
def _without_signals(context: SpawnContext | ForkServerContext) -> Iterator[None]:
    """Keep SIGINT and SIGTERM for later, so that a fork server that is being started inherits that they are blocked.

    `fastac.fork_server` unblocks them there. By itself it would import for seconds, deaf to nothing.
    """
    if not isinstance(context, ForkServerContext):
        yield
        return
    resource_tracker.ensure_running()  # it unblocks them when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- the parent, seen from its child ---------------------------------------------------------------


class ParentLeft(BaseException):
    """The parent has closed the pipe, or is gone: the child has nothing left to do.

    No `Exception`, so that nothing takes it for a failure of the work.
    """


class Parent:
    """The process that started this one."""

    def __init__(self, pipe: Connection) -> None:
        """Take this end of the pipe."""
        self._pipe = pipe

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            ParentLeft: it has closed the pipe, or is gone.
        """
        try:
            self._pipe.send(message)
        except OSError as error:
            raise ParentLeft from error

    def receive(self) -> Message:
        """Wait for the next message.

        Raises:
            ParentLeft: it has closed the pipe, or is gone.
        """
        try:
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise ParentLeft from error

    def has_news(self) -> bool:
        """Return whether there is a message, or that it has left, to receive."""
        return self._pipe.poll(0)

    def listen(self, take: Callable[[Message], None], grace_s: float) -> threading.Event:
        """Let this process end with its parent, whatever it is doing then.

        A thread receives every message and hands it to `take`. When the parent has left, the event that is returned
        is set; `grace_s` later the process ends itself, if it has not ended in order. (The lifeline that every child
        has does the same, but later.)
        """
        has_left = threading.Event()

        def read() -> None:
            with suppress(ParentLeft):
                while True:
                    take(self.receive())
            has_left.set()
            time.sleep(grace_s)
            os._exit(1)

        threading.Thread(target=read, daemon=True).start()
        return has_left


def _live(work: Callable[[Parent], None], lifeline: Connection, pipe: Connection) -> None:
    """Do `work`, but no longer than the parent lives, and tell the parent if it fails."""
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they may reach a whole group of processes, and are the parent's alone
    parent = Parent(pipe)
    with suppress(ParentLeft):
        try:
            work(parent)
        except Exception as error:
            parent.send(_to_failed(error))


def _end_with_parent(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv()  # nothing is ever sent
    time.sleep(_ORPHAN_S)
    os._exit(1)
