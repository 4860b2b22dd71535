"""The command line: read the words, call the Python face, say what happened.

Wrong input is one sentence on stderr and exit code 2. What a command does not need is imported by none:
`fastac --help` does not wait for torch.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from fastac import __version__
from fastac.cli import completion, policy, train
from fastac.cli.interrupts import Terminated, hearing_sigterm, name_of
from fastac.text import fit

__all__ = ["main"]

_COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train.train, "train an agent: fastac train CartPole-v1"),
    "resume": (train.resume, "continue a run: fastac resume DIR"),
    "tune": (train.tune, "find the fastest settings on this machine: fastac tune CartPole-v1"),
    "eval": (policy.evaluate, "play episodes: fastac eval DIR --episodes 100"),
    "record": (policy.record, "record an episode as GIF or MP4: fastac record DIR"),
    "plot": (policy.plot, "draw learning curves: fastac plot DIR..."),
    "list": (policy.list_presets, "list the presets and what they reach"),
    "completion": (completion.complete, "print what completes commands in a shell: fastac completion bash"),
}


def _help() -> str:
    lines = [fit(f"  {name:<12}{what}", sys.stdout, hang=12) for name, (_, what) in _COMMANDS.items()]
    more = "fastac COMMAND --help tells a command's flags."
    return "\n".join(["usage: fastac COMMAND [...]", "", "Fast, exact actor-critic training.", "", *lines, "", more])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 for bad input, 1 for a run that failed."""
    words = list(sys.argv[1:] if argv is None else argv)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for module:EnvId beside the user, as `python -m` would find it
    if words[:1] == ["--version"]:
        print(f"fastac {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else 2
    if words[0] not in _COMMANDS:
        near = get_close_matches(words[0], _COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(_COMMANDS)}."
        print(f"fastac: {words[0]!r} is not a command: {hint}", file=sys.stderr)
        return 2
    _log_to_stderr()
    logging.getLogger("fastac").setLevel(logging.INFO)  # and of other packages only warnings
    try:
        with hearing_sigterm():
            return _COMMANDS[words[0]][0](words[1:])
    except ValueError as error:
        print(fit(f"fastac: {error}", sys.stderr), file=sys.stderr)
        return 2
    except RuntimeError as error:
        return _tell_failure(error)
    except KeyboardInterrupt as error:  # while starting or evaluating; a run that trains ends in order
        number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
        if argv is None:
            signal.signal(number, signal.SIG_IGN)  # another one would only disturb the exit
        print(fit(f"fastac: {str(error) or name_of(error)}", sys.stderr), file=sys.stderr)
        return 128 + number


def _log_to_stderr() -> None:
    """Let log lines fit the terminal."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Fitting("%(message)s"))
    logging.basicConfig(handlers=[handler])


class _Fitting(logging.Formatter):
    """Breaks lines between words."""

    def format(self, record: logging.LogRecord) -> str:
        """See `fastac.text.fit`."""
        return fit(super().format(record), sys.stderr)


def _tell_failure(error: RuntimeError) -> int:
    """Tell of an environment, disk or numbers that failed; anything else is a bug and keeps its traceback."""
    from fastac.contract import EnvFailure, NonFiniteError, WorkerFailure
    from fastac.runs.files import RecordError

    if not isinstance(error, EnvFailure | NonFiniteError | RecordError | WorkerFailure):
        raise error
    print(_find_traceback(error), end="", file=sys.stderr)
    print(fit(f"fastac: {error}", sys.stderr), file=sys.stderr)
    return 1 if isinstance(error, NonFiniteError | WorkerFailure) else 2


def _find_traceback(error: BaseException) -> str:
    """Return the traceback that a worker sent, or nothing where it died without one."""
    from fastac.processes import WorkerTraceback

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, WorkerTraceback):
        cause = cause.__cause__
    return str(cause or "")
