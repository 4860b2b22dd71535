"""One contestant in a process of its own: builds a workload and times rounds of it, as the parent asks.

    python -m benchmarks.contestant MODULE THREADS

A process of its own has its own heap, thread pool and imports. Commands come as lines of JSON on
standard input, one at a time, and every one is answered by a line on standard output; between two
commands the parent stops the process, so that nothing in it takes time from the others.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.peers.settings import Task

_BATCH_S = 0.002  # calls between two looks at the clock take about this long
_MEMORY_CALLS = 4

Reply = dict[str, float]


class Contestant:
    """Holds at most one task, and answers commands by the name of a method."""

    def __init__(self, module: str) -> None:
        self._module = import_module(f"benchmarks.peers.{module}")
        self._stack = ExitStack()
        self._task: Task
        self._batch = 1

    def build(self, function: str, settings: dict[str, Any]) -> Reply:
        """Build a task and warm it up."""
        self._task = self._stack.enter_context(getattr(self._module, function)(**settings))
        self._task()
        began = perf_counter()
        self._task()
        self._batch = max(1, round(_BATCH_S / (perf_counter() - began)))
        return {}

    def round(self, seconds: float) -> Reply:
        """Repeat the work for so long; return the steps and the seconds on the task's clock.

        Once it is done before the clock starts: worker processes that were stopped for seconds sleep longer and longer
        while they wait, up to 50 ms, which no run does in the midst of training.
        """
        work, clock, steps = self._task.work, self._task.clock, 0
        work()
        clock_began, began = clock(), perf_counter()
        while True:
            for _ in range(self._batch):
                steps += work()
            if perf_counter() - began >= seconds:
                break
        return {"steps": steps, "seconds": clock() - clock_began}

    def facts(self) -> Reply:
        """Whatever else the task tells of itself."""
        return self._task.facts()

    def memory(self, function: str, settings: dict[str, Any], first: dict[str, Any]) -> Reply:
        """Return how many bytes a task takes at its peak; a small one comes `first`, for what any takes once."""
        self.build(function, settings | first)
        self.close()
        before = _resident_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self.build(function, settings)
        for _ in range(_MEMORY_CALLS):
            self._task()
        return {"bytes": _resident_bytes("VmHWM") - before, **self.facts()}

    def footprint(self, function: str, settings: dict[str, Any], first: dict[str, Any]) -> Reply:
        """Return what this process and its children hold at their peak, and what they held doing something small.

        Args:
            function: builds the task.
            settings: its arguments.
            first: `function` and `settings` of the small task, for what a program takes that does next to nothing.
        """
        self.build(**first)
        program = sum(_resident_bytes("VmRSS", process) for process in _family())
        self.close()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self.build(function, settings)
        for _ in range(_MEMORY_CALLS):
            self._task()
        peak = sum(_resident_bytes("VmHWM", process) for process in _family())
        return {"program_bytes": program, "peak_bytes": peak, **self.facts()}

    def close(self) -> Reply:
        """Drop the task."""
        self._stack.close()
        gc.collect()
        return {}


def _resident_bytes(name: str, process: Path = Path("/proc/self")) -> int:
    """Read a size from Linux's process status, where it is in KiB; a process that is ending has none."""
    lines = (process / "status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0) * 1024


def _family() -> list[Path]:
    """This process and its descendants: the parent has given them a process group of their own."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            group = int((process / "stat").read_text().rpartition(")")[2].split()[2])
        except OSError:  # ended meanwhile
            continue
        if group == os.getpgrp():
            found.append(process)
    return found


def serve(module: str, threads: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    import torch

    torch.set_num_threads(threads)
    contestant = Contestant(module)
    for line in sys.stdin:
        command = json.loads(line)
        answer: Callable[..., Reply] = getattr(contestant, command.pop("do"))
        print(json.dumps(answer(**command)), file=answers, flush=True)
    contestant.close()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
