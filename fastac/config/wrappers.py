"""How a wrapper is written in one line: `module:name key=value ...`, in the words of a shell."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TypeAlias

from fastac.config.values import JsonValue, read_word

# Takes an environment and keyword arguments, and returns an environment: a wrapper's class, or a function.
WrapperFactory: TypeAlias = Callable[..., object]


def read_wrapper(line: str) -> tuple[str, dict[str, JsonValue]]:
    """Return a wrapper's `module:name` and its arguments; a value that is JSON is read as such, others are texts.

    Raises:
        ValueError: the line is not of this form.
    """
    name, *words = shlex.split(line) or [""]
    pairs = [word.partition("=") for word in words]
    module, colon, own = name.rpartition(":")
    if not (module and colon and own) or not all(key.isidentifier() and equals for key, equals, _ in pairs):
        raise ValueError(f"{line!r} is no wrapper, expected module:name, with arguments as level=3.")
    return name, {key: read_word(value) for key, _, value in pairs}


def is_wrapper(line: str) -> bool:
    """Return whether `read_wrapper` can read a line."""
    try:
        read_wrapper(line)
    except ValueError:
        return False
    return True
