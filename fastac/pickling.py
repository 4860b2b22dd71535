"""What of the user's is sent to another process, and the script that the process imports for it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Generic, TypeVar

Thing = TypeVar("Thing")
Thing_co = TypeVar("Thing_co", covariant=True)

# What is told to those whose functions cannot be sent, and to those whose script starts processes when imported.
UNSENDABLE = (
    "the env and encoder functions are sent to other processes, so they must be defined at the top level of a module"
)
GUARD = "put what it does below `if __name__ == '__main__':`, or move what other processes need to a module of its own"
UNGUARDED = 97  # the exit code of a process that was to import a script and found it training

_NOTEBOOK = (
    "other processes cannot import what a notebook or a console defines: put it in a module, as with %%writefile"
)
_SCRIPT = b"__main__"  # the module's name, as it stands in what is pickled
_script_lock = threading.Lock()


class UnsendableError(ValueError):
    """Something of the user's cannot be sent to another process.

    Attributes:
        reason: why, without what to do about it.
    """

    def __init__(self, what: str, reason: str) -> None:
        """Take what the sentence begins with, and why."""
        super().__init__(f"{what} ({reason}).")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Pickled(Generic[Thing_co]):
    """Something of the user's on its way to another process, which may fail to rebuild it and say so.

    Attributes:
        content: from `pickle`; it never comes from a file.
    """

    content: bytes

    @property
    def needs_script(self) -> bool:
        """Whether something in it is defined in the user's script."""
        return _SCRIPT in self.content

    def load(self) -> Thing_co:
        """Rebuild it; called in the process that it was sent to.

        Raises:
            Exception: whatever the user's modules raise when they are imported.
        """
        thing: Thing_co = pickle.loads(self.content)
        return thing


def pickled(thing: Thing, what: str) -> Pickled[Thing]:
    """Return `thing` for another process.

    Raises:
        UnsendableError: it cannot be pickled, or is defined where others cannot import it from; `what` begins the
            sentence and says what to do.
    """
    try:
        sent: Pickled[Thing] = Pickled(pickle.dumps(thing))
    except Exception as error:  # pickling runs foreign code, which may raise anything
        raise UnsendableError(what, f"other processes cannot have it, {type(error).__name__}: {error}") from error
    if sent.needs_script and not _has_script():
        raise UnsendableError(what, _NOTEBOOK)
    return sent


def _has_script() -> bool:
    """Return whether this process runs a script or module, as multiprocessing asks it."""
    main = sys.modules["__main__"]
    return hasattr(main, "__file__") or getattr(main, "__spec__", None) is not None


@contextmanager
def suppress_script(is_suppressed: bool) -> Iterator[None]:
    """Start processes that do not import the user's script, whose module is another one meanwhile.

    A script without a main guard would train once more where it is imported.
    """
    if not is_suppressed:
        yield
        return
    with _script_lock:
        script = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = script


def end_where_imported() -> None:
    """End this process if it is only importing the script of the process that started it.

    Called where training begins: a script without a main guard would begin it in every process.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself asks
        sys.stdout.flush()
        os._exit(UNGUARDED)
