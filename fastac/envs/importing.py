"""Names of classes and functions that another process can import: `module:name`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial, reduce
from types import ModuleType

from fastac.envs.failure import describe

_SCRIPT = "__main__"
_UNNAMED = "<"  # objects that cannot be imported are recorded as <module:name>


def name_of(thing: Callable[..., object]) -> str:
    """Return `module:name` of a class or function, in angle brackets if other processes cannot import it.

    That is the case for names in the user's script or a notebook, for nested functions, and for unnamed objects.
    """
    if not hasattr(thing, "__qualname__"):  # a partial, or a callable object
        kind = type(thing)
        inside = f"({getattr(thing.func, '__name__', '')})" if isinstance(thing, partial) else ""
        return f"<{kind.__module__}:{kind.__qualname__}{inside}>"
    module, name = thing.__module__, thing.__qualname__
    if module != _SCRIPT and _is_at(module, name, thing):
        return f"{module}:{name}"
    return f"<{module}:{name.replace('<', '').replace('>', '')}>"


def _is_at(module: str, name: str, thing: object) -> bool:
    try:
        found: object = reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, TypeError, ValueError):
        return False
    return found is thing


def is_unnamed(name: str) -> bool:
    """Return whether a recorded name belongs to an object that cannot be imported."""
    return name.startswith(_UNNAMED)


def check_named(setting: str, name: str) -> None:
    """Reject a recorded name of an object that cannot be imported.

    Raises:
        ValueError: the name is of that kind.
    """
    if is_unnamed(name):
        keyword = setting.removesuffix("_id")
        raise ValueError(
            f"{setting} is {name!r}, which was given in Python and cannot be imported: give it again there, as "
            f"{keyword}=..., or train with one that is defined at the top level of a module."
        )


def import_home(setting: str, name: str) -> ModuleType:
    """Import the module of `module:name`.

    Raises:
        ValueError: it cannot be imported; the message begins with the setting.
    """
    module = name.rpartition(":")[0]
    if module.partition(".")[0] in sys.stdlib_module_names:
        # Security: the name may come from a run's file written by someone else, and Python has os.abort and the like.
        raise ValueError(f"{setting} is {name!r}, but {module!r} is a part of Python itself: name a module of yours.")
    try:
        return importlib.import_module(module)
    except Exception as error:  # foreign code may raise anything
        is_missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        hint = ": start where it lies, or set PYTHONPATH" if is_missing else ""
        raise ValueError(
            f"{setting} is {name!r}, but {module!r} cannot be imported ({describe(error).removesuffix('.')}){hint}."
        ) from error


def find_thing(setting: str, name: str, others: Iterable[str] = ()) -> Callable[..., object]:
    """Return the class or function named by `module:name`.

    Args:
        setting: the setting that holds the name.
        name: `module:name`.
        others: further names to suggest in the error.

    Raises:
        ValueError: not found; the message begins with the setting.
    """
    check_named(setting, name)
    home = import_home(setting, name)
    own = name.rpartition(":")[2]
    try:
        found: object = reduce(getattr, own.split("."), home)
    except AttributeError:
        near = get_close_matches(own, [*others, *vars(home)], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "expected a class or function of it."
        raise ValueError(f"{setting} is {name!r}, but {home.__name__!r} has no {own!r}: {hint}") from None
    if not callable(found):
        raise ValueError(f"{setting} is {name!r}, which is {found!r}, expected a class or function.")
    return found
