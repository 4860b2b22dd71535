"""The command line: parse arguments, call the Python interface, report the result.

Invalid input gives one sentence on stderr and exit code 2. Each command imports only what it needs: `fastac --help`
does not import torch.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

from fastac import __version__
from fastac.cli import completion, config, doctor, gate, hosts, policy, studies, train
from fastac.cli.flags import asks_for_help
from fastac.cli.interrupts import Terminated, hearing_sigterm, name_of
from fastac.text import StderrHandler, fit
from fastac.torchrun import end_agent, is_launched

__all__ = ["main"]

_COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train.train, "train an agent: fastac train CartPole-v1"),
    "resume": (train.resume, "continue a run: fastac resume DIR"),
    "config": (config.config, "print a run's complete configuration, as a file: fastac config CartPole-v1"),
    "tune": (train.tune, "find the fastest settings on this machine: fastac tune CartPole-v1"),
    "doctor": (doctor.doctor, "examine an environment before training: fastac doctor mymodule:MyEnv"),
    "sweep": (studies.sweep, "search for settings: fastac sweep CartPole-v1 --algo a2c --minutes 30"),
    "hosts": (hosts.hosts, "train on several machines: fastac hosts CartPole-v1 --hosts 2"),
    "eval": (policy.evaluate, "play episodes: fastac eval DIR --episodes 100"),
    "record": (policy.record, "record an episode as GIF or MP4: fastac record DIR"),
    "export": (policy.export, "write a policy for programs without fastac: fastac export DIR --format onnx"),
    "plot": (policy.plot, "draw learning curves: fastac plot DIR..."),
    "list": (policy.list_presets, "list the presets and what they reach"),
    "gate": (gate.gate, "is your code slower than before: fastac gate --target mypackage:make_env --base main"),
    "completion": (completion.complete, "print what completes commands in a shell: fastac completion bash"),
}


def _help() -> str:
    lines = [fit(f"  {name:<12}{what}", sys.stdout, hang=12) for name, (_, what) in _COMMANDS.items()]
    more = "fastac COMMAND --help tells a command's flags."
    return "\n".join(["usage: fastac COMMAND [...]", "", "Fast, exact actor-critic training.", "", *lines, "", more])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 for bad input or a failed environment, 1 for other failures."""
    words = list(sys.argv[1:] if argv is None else argv)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for module:EnvId in the working directory, as with `python -m`
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
    logging.basicConfig(format="%(message)s", handlers=[StderrHandler()])
    logging.getLogger("fastac").setLevel(logging.INFO)  # other packages log only warnings
    try:
        with hearing_sigterm():
            return _COMMANDS[words[0]][0](words[1:])
    except BrokenPipeError:  # the reader, such as head, has closed the pipe; no error for commands that only print
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if words[0] in ("list", "config", "completion") or asks_for_help(words) else 1
    except ValueError as error:
        print(fit(f"fastac: {error}", sys.stderr), file=sys.stderr)
        _give_up(words[0])
        return 2
    except RuntimeError as error:
        return _tell_failure(error, words[0])
    except KeyboardInterrupt as error:  # while starting or evaluating; a training run handles signals itself
        number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
        if argv is None:
            signal.signal(number, signal.SIG_IGN)  # another signal would only disturb the exit
        print(fit(f"fastac: {str(error) or name_of(error)}", sys.stderr), file=sys.stderr)
        return 128 + number


def _tell_failure(error: RuntimeError, command: str) -> int:
    """Report a failed environment, disk or non-finite number; any other error is a bug and keeps its traceback."""
    from fastac.contract import EnvFailure, NonFiniteError, WorkerFailure
    from fastac.runs.files import RecordError

    if not isinstance(error, EnvFailure | NonFiniteError | RecordError | WorkerFailure):
        raise error
    print(_find_traceback(error), end="", file=sys.stderr)
    print(fit(f"fastac: {error}", sys.stderr), file=sys.stderr)
    if not isinstance(error, WorkerFailure):
        _give_up(command)
    return 1 if isinstance(error, NonFiniteError | WorkerFailure) else 2


def _give_up(command: str) -> None:
    """End torchrun, if it has started this training: it would start the same again and again."""
    if is_launched() and command == "train":
        end_agent()


def _find_traceback(error: BaseException) -> str:
    """Return a worker's traceback, or else the frames in the user's own files that raised the first cause."""
    from fastac.processes import WorkerTraceback

    while error.__cause__ is not None and not isinstance(error, WorkerTraceback):
        error = error.__cause__
    if isinstance(error, WorkerTraceback):
        return str(error)
    if isinstance(error, OSError):
        return ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_installed(frame.filename)]
    return "".join(traceback.format_list(frames))


def _is_installed(path: str) -> bool:
    """Return whether a file belongs to fastac, Python or another package, not to the user."""
    places = (Path(__file__).parents[1], sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
    return path.startswith("<") or any(Path(path).is_relative_to(place) for place in places)
