"""Classes and functions by the name that another process can import them by, `module:name`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial, reduce
from types import ModuleType

from fastac.envs.failure import describe

_SCRIPT = "__main__"
_UNNAMED = "<"  # what cannot be imported is recorded as <module:name>


def name_of(thing: Callable[..., object]) -> str:
    """Return `module:name` of a class or function, in angle brackets where importing the module does not give it.

    That is so in the user's script and in a notebook, for what is defined in a function, and for what has no name.
    """
    if not hasattr(thing, "__qualname__"):  # a partial, or an object that can be called
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
    """Return whether a recorded name is of what cannot be imported."""
    return name.startswith(_UNNAMED)


def check_named(setting: str, name: str) -> None:
    """Refuse a recorded name of what cannot be imported.

    Raises:
        ValueError: it is one.
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
        ValueError: it cannot be imported; the sentence begins with the setting.
    """
    module = name.rpartition(":")[0]
    if module.partition(".")[0] in sys.stdlib_module_names:
        # The name may stand in a run's file that somebody else wrote, and Python itself has os.abort and the like.
        raise ValueError(f"{setting} is {name!r}, but {module!r} is a part of Python itself: name a module of yours.")
    try:
        return importlib.import_module(module)
    except Exception as error:  # foreign code, which may raise anything
        raise ValueError(
            f"{setting} is {name!r}, but {module!r} cannot be imported ({describe(error)}): start where it lies, or "
            "set PYTHONPATH."
        ) from error


def find_thing(setting: str, name: str, others: Iterable[str] = ()) -> Callable[..., object]:
    """Return the class or function that `module:name` names.

    Args:
        setting: which the name is of.
        name: with its module.
        others: what could be meant besides names of the module.

    Raises:
        ValueError: there is none; the sentence begins with the setting.
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
