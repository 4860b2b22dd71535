"""One supervised child process: starting, messages, silence, death, restarting and ending.

Children are never forked from this process: its threads (torch's, CUDA's) make a fork unsafe. A child runs a
module-level function that receives its `Parent`; the parent holds a `Child`, or several of them as `Children`.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal, Self, TypeAlias

from fastac.contract import EnvFailure, NonFiniteError, WorkerFailure
from fastac.pickling import GUARD, UNGUARDED, Pickled, suppress_script
from fastac.system import start_context, stop_signals_blocked

log = logging.getLogger("fastac")

ChildFailure: TypeAlias = EnvFailure | NonFiniteError | WorkerFailure
Message: TypeAlias = Any  # any type that child and parent agree on; the receiver annotates it
CHILD_FAILURES = (EnvFailure, NonFiniteError, WorkerFailure)

ANSWER_TIMEOUT_S = 120.0  # maximum time for a child's answer if env_timeout_s is unset
_EXIT_TIMEOUT_S = 10.0  # from the end of a child's pipe to its exit code, on a busy machine
_END_TIMEOUT_S = 2.0  # for a child to end by itself before it is killed
_ORPHAN_S = 5.0  # for a child to end in order after its parent has gone

_LOOK_S = 0.5  # maximum interval between looks at the clock while waiting
_MOST_S = 1.0  # maximum that one look adds to a stopwatch


# --- waiting --------------------------------------------------------------------------------------


class Stopwatch:
    """Measures how long this process has waited for another one.

    It stands still while this process itself is stopped (Ctrl-Z, `docker pause`, a debugger), so that time does not
    count as lateness of the other process. For this, `look` must be called at least twice a second.
    """

    def __init__(self) -> None:
        """Start at 0."""
        self.restart()

    def restart(self) -> None:
        """Start at 0 again."""
        self.elapsed_s = 0.0
        self._looked = time.monotonic()

    def skip(self) -> None:
        """Do not count the time since the last look: nothing was asked of the other process."""
        self._looked = time.monotonic()

    def look(self) -> float:
        """Return the seconds waited so far."""
        now = time.monotonic()
        self.elapsed_s += min(now - self._looked, _MOST_S)
        self._looked = now
        return self.elapsed_s


def has_news(pipe: Connection, watch: Stopwatch, timeout_s: float) -> bool:
    """Wait until there is a message to receive, or `watch` reaches `timeout_s`; return whether there is one.

    Raises:
        OSError: the pipe is broken.
    """
    while not pipe.poll(min(_LOOK_S, max(0.0, timeout_s - watch.elapsed_s))):
        if watch.look() >= timeout_s:
            return pipe.poll(0.0)
    return True


# --- failing --------------------------------------------------------------------------------------


class WorkerTraceback(Exception):
    """A child's traceback as text; the cause of the failure raised in the parent."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """The message of a child that failed.

    Attributes:
        message: one sentence.
        traceback: its traceback as text.
        of: the source of the failure: an environment, numbers that are not finite, or anything else.
    """

    message: str
    traceback: str
    of: Literal["env", "numbers", "other"] = "other"


def _to_failed(error: Exception) -> _Failed:
    """Return the failure message for an exception; call it in the exception's handler."""
    text = traceback.format_exc()
    if isinstance(error, EnvFailure):
        return _Failed(str(error), text, "env")
    if isinstance(error, NonFiniteError):
        return _Failed(str(error), text, "numbers")
    lines = str(error).splitlines() or [""]
    return _Failed(f"raised {type(error).__name__}: {lines[0]}".removesuffix(": "), text)


def was_sent(error: ChildFailure) -> bool:
    """Return whether a child sent this failure itself; False if it died or hung."""
    return isinstance(error.__cause__, WorkerTraceback)


# --- the child, seen from its parent ---------------------------------------------------------------


class Child:
    """A started process and the parent's end of its pipe.

    Attributes:
        name: its name in messages, such as "worker 3".
        pid: its process id, also after it has ended.
        process: the process object.
        pipe: the connection to it.
        silence: time since its last sign of life; the caller restarts it at every sign of life.
    """

    def __init__(
        self,
        name: str,
        process: BaseProcess,
        pipe: Connection,
        lifeline: Connection,
        failure: type[EnvFailure | WorkerFailure],
    ) -> None:
        """Take what `start` has created; the child notices the end of `lifeline`, whatever it is doing."""
        self.name, self.process, self.pipe = name, process, pipe
        self.pid, self.silence = process.pid, Stopwatch()
        self._lifeline, self._failure = lifeline, failure
        self._is_over = False
        self._exit_code: int | None = None
        for end in (pipe, lifeline):
            atexit.register(end.close)  # before multiprocessing joins children that were not ended

    def send(self, message: Message) -> None:
        """Send a message; this blocks while the pipe is full and the child does not read.

        Raises:
            EnvFailure, WorkerFailure: it has died.
            ValueError: see `receive`.
        """
        try:
            self.pipe.send(message)
        except OSError as error:
            raise self._died() from error

    def has_news(self, timeout_s: float = 0.0) -> bool:
        """Wait up to `timeout_s`; return whether `receive` would not block: a message arrived, or the child died."""
        try:
            return self.pipe.poll(timeout_s)
        except OSError:
            return True

    def receive(self) -> Message:
        """Return the child's next message; wait without limit.

        Raises:
            EnvFailure: the child reported a failed environment, or it died and runs only environments.
            NonFiniteError: the child reported numbers that are not finite.
            WorkerFailure: the child reported another failure, or died.
            ValueError: the user's script that started it trains whenever it is imported.
        """
        try:
            message = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(message, _Failed):
            raise self._to_error(message)
        return message

    def receive_within(self, timeout_s: float, setting: str, watch: Stopwatch | None = None) -> Message:
        """Return the child's next message; it must arrive before `watch`, a new one by default, reaches `timeout_s`.

        Raises:
            EnvFailure, WorkerFailure: no message in time; the sentence says to raise `setting`.
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
        """Check the child's silence; call it at least twice a second.

        Raises:
            EnvFailure, WorkerFailure: the child has shown no sign of life for longer than `patience_s`.
        """
        if self.silence.look() > patience_s:
            raise self.too_late(what, patience_s, setting)

    def too_late(self, what: str, timeout_s: float, setting: str) -> EnvFailure | WorkerFailure:
        """Return the failure of a child that did `what` for `timeout_s`, the limit given by `setting`."""
        seconds = f"{timeout_s:.3g}" if timeout_s < 100.0 else f"{timeout_s:.0f}"
        return self._failure(f"{self.name} {what} for {seconds} s (raise {setting} if it needs longer).")

    def _died(self) -> EnvFailure | WorkerFailure:
        """Return the failure of a child whose pipe is closed; its exit code follows a moment later.

        Raises:
            ValueError: see `receive`.
        """
        if not self._is_over:
            self.process.join(_EXIT_TIMEOUT_S)
            self._exit_code = self.process.exitcode
        if self._exit_code == UNGUARDED:
            raise ValueError(f"another process cannot import this script: {GUARD}.") from None  # hide the pipe's end
        return self._failure(f"{self.name} died (exit code {self._exit_code}).")

    def _to_error(self, failed: _Failed) -> ChildFailure:
        """Return the exception for a child's failure message; the child's traceback is its cause."""
        kinds: dict[str, type[ChildFailure]] = {
            "env": EnvFailure,
            "numbers": NonFiniteError,
            "other": self._failure,
        }
        # A child that runs only environments has already named the failed one; its own name would add nothing.
        names_env = failed.of == "env" and self._failure is EnvFailure
        error = kinds[failed.of](failed.message if names_env else f"{self.name}: {failed.message}")
        error.__cause__ = WorkerTraceback(failed.traceback)
        return error

    @property
    def has_ended(self) -> bool:
        """Whether this process ended the child; at interpreter exit this happens without `end`."""
        return self.pipe.closed

    def hang_up(self) -> None:
        """Close the pipe; the child then ends by itself."""
        for end in (self.pipe, self._lifeline):
            end.close()
            atexit.unregister(end.close)

    def end(self, timeout_s: float = _END_TIMEOUT_S) -> None:
        """End the child; kill it if it has not ended after `timeout_s`. Safe to call twice."""
        self.hang_up()
        if self._is_over:
            return
        self.process.join(timeout_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self._exit_code = self.process.exitcode
        self.process.close()
        self._is_over = True


class Children(list[Child]):
    """A list of children; `with children:` ends them all, and empties the list, if the block raises."""

    def __enter__(self) -> Self:
        """Return the list."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """End all after an exception; also after Ctrl-C, or a late reply would be taken for the next one."""
        if kind is not None:
            self.end()

    @property
    def pids(self) -> list[int | None]:
        """Process ids of the children."""
        return [child.pid for child in self]

    def receive_within(self, timeout_s: float, setting: str) -> list[Message]:
        """Return one message of each child; all must arrive within `timeout_s`.

        Raises:
            Exception: see `Child.receive_within`.
        """
        watch = Stopwatch()
        return [child.receive_within(timeout_s, setting, watch) for child in self]

    def wait(self, timeout_s: float) -> list[Child]:
        """Wait until a child has news, or for `timeout_s`; return the children with news."""
        ready = wait([child.pipe for child in self], timeout_s)
        return [child for child in self if child.pipe in ready]

    def end(self, timeout_s: float = _END_TIMEOUT_S) -> None:
        """End all children; kill those that have not ended after `timeout_s`. Safe to call twice."""
        for child in self:
            child.hang_up()
        until = time.monotonic() + timeout_s
        while self:
            self[-1].end(max(0.0, until - time.monotonic()))
            self.pop()  # after `end`, which an interrupt may abort


class Restarts:
    """Counts restarts of lost children.

    Attributes:
        count: restarts so far.
    """

    def __init__(self, most: int) -> None:
        """Start at 0; `most` is the setting max_restarts."""
        self.count, self._most = 0, most

    def add(self, lost: ChildFailure, how: str = "") -> None:
        """Count a restart, and log a warning with its reason and `how` the child is restarted.

        Raises:
            EnvFailure, NonFiniteError, WorkerFailure: `lost`, if there were already `most` restarts.
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
    """Start a child that runs `work` and ends no later than this process.

    It is not daemonic, since environments may start processes of their own.

    Args:
        name: its name in messages.
        work: a module-level function, not from the user's script. Its exceptions are sent as failures.
        preload: a module that the fork server imports once, including torch; children then start in milliseconds.
        sent: the user's objects in `work`. The child imports the user's script only if they need it.
        failure: raised in this process if the child dies or hangs: `EnvFailure` if it runs only environments.

    Raises:
        EnvFailure, WorkerFailure: there is not enough memory, or too many files are open.
    """
    context = start_context(["fastac.fork_server", preload])
    try:
        ours, theirs = context.Pipe()
        held, lifeline = context.Pipe(duplex=False)
        process = context.Process(target=_live, args=(work, held, theirs), daemon=False)  # type: ignore[attr-defined]  # all have it
        with stop_signals_blocked(), suppress_script(sent is None or not sent.needs_script):
            process.start()
    except (OSError, EOFError) as error:  # EOFError: the fork server failed to fork, and died
        raise failure(f"{name} could not be started ({error}).") from error
    for end in (theirs, held):
        end.close()  # else this process would keep a dead child's pipe open, and wait forever
    return Child(name, process, ours, lifeline, failure)


# --- the parent, seen from its child ---------------------------------------------------------------


class ParentLeft(BaseException):
    """The parent has closed the pipe or died: the child must end.

    Not an `Exception`, so that no handler takes it for a failure of the work.
    """


class Parent:
    """The process that started this one."""

    def __init__(self, pipe: Connection) -> None:
        """Take the child's end of the pipe."""
        self._pipe = pipe

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            ParentLeft: the parent has closed the pipe or died.
        """
        try:
            self._pipe.send(message)
        except OSError as error:
            raise ParentLeft from error

    def receive(self) -> Message:
        """Wait for the next message.

        Raises:
            ParentLeft: the parent has closed the pipe or died.
        """
        try:
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise ParentLeft from error

    def has_news(self) -> bool:
        """Return whether `receive` would not block: a message arrived, or the parent has left."""
        return self._pipe.poll(0)

    def listen(self, take: Callable[[Message], None], grace_s: float) -> threading.Event:
        """End this process with its parent, whatever it is doing then.

        A thread receives every message and passes it to `take`. When the parent leaves, the returned event is set;
        after another `grace_s` the process exits hard, unless it has ended in order. (Every child's lifeline does the
        same, but later.)
        """
        has_left = threading.Event()

        def read() -> None:
            try:
                while True:
                    take(self.receive())
            except ParentLeft:
                has_left.set()
            except Exception:  # else the parent would wait for an answer in vain
                traceback.print_exc()
                os._exit(1)
            time.sleep(grace_s)
            os._exit(1)

        threading.Thread(target=read, daemon=True).start()
        return has_left


def _live(work: Callable[[Parent], None], lifeline: Connection, pipe: Connection) -> None:
    """Run `work`, at most as long as the parent lives; report its failure to the parent."""
    gc.freeze()  # what the fork server has imported is permanent
    gc.enable()
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a signal to the process group is for the parent alone
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
