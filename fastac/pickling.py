"""Pickling of user objects for other processes, and control over whether those import the user's script."""

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

# Messages for functions that cannot be sent, and for scripts that start processes when imported.
UNSENDABLE = (
    "the env and encoder functions are sent to other processes, so they must be defined at the top level of a module"
)
GUARD = "put what it does below `if __name__ == '__main__':`, or move what other processes need to a module of its own"
UNGUARDED = 97  # exit code of a process that imported a script which starts training

_NOTEBOOK = (
    "other processes cannot import what a notebook or a console defines: put it in a module, as with %%writefile"
)
_SCRIPT = b"__main__"  # the module's name as it appears in pickled data
_script_lock = threading.Lock()


class UnsendableError(ValueError):
    """A user object cannot be sent to another process.

    Attributes:
        reason: the cause, without the remedy.
    """

    def __init__(self, what: str, reason: str) -> None:
        """Take the beginning of the sentence, and the cause."""
        super().__init__(f"{what} ({reason}).")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Pickled(Generic[Thing_co]):
    """A pickled user object for another process; rebuilding it there may fail.

    Attributes:
        content: output of `pickle`; it never comes from a file.
    """

    content: bytes

    @property
    def needs_script(self) -> bool:
        """Whether it refers to something defined in the user's script."""
        return _SCRIPT in self.content

    def load(self) -> Thing_co:
        """Rebuild the object; call it in the receiving process.

        Raises:
            Exception: any exception of the user's modules while they are imported.
        """
        thing: Thing_co = pickle.loads(self.content)
        return thing


def pickled(thing: Thing, what: str) -> Pickled[Thing]:
    """Return `thing` pickled for another process.

    Raises:
        UnsendableError: it cannot be pickled, or is defined where other processes cannot import it; `what` begins the
            sentence and names the remedy.
    """
    try:
        sent: Pickled[Thing] = Pickled(pickle.dumps(thing))
    except Exception as error:  # pickling runs third-party code, which may raise anything
        raise UnsendableError(what, f"other processes cannot have it, {type(error).__name__}: {error}") from error
    if sent.needs_script and not _has_script():
        raise UnsendableError(what, _NOTEBOOK)
    return sent


def _has_script() -> bool:
    """Return whether this process runs a script or module, by multiprocessing's own criterion."""
    main = sys.modules["__main__"]
    return hasattr(main, "__file__") or getattr(main, "__spec__", None) is not None


@contextmanager
def suppress_script(is_suppressed: bool) -> Iterator[None]:
    """Start processes that do not import the user's script, by replacing the `__main__` module meanwhile.

    A script without a main guard would train again when imported.
    """
    with _script_lock:  # also if it is not replaced: another thread may have replaced it
        if not is_suppressed:
            yield
            return
        script = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = script


def end_where_imported() -> None:
    """End this process if it is a child that is only importing its parent's script.

    Call it where training begins: otherwise a script without a main guard would train in every process.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # multiprocessing's own check
        sys.stdout.flush()
        os._exit(UNGUARDED)
