"""A process that trains with the code of one tree and is measured, see `driver`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeAlias, cast

from fastac.config import ConfigValue
from fastac.system import keep_to_core

# Settings that differ from the defaults, by the name of the workload.
Workloads: TypeAlias = Mapping[str, Mapping[str, ConfigValue]]

_DRIVER = Path(__file__).with_name("driver.py")
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "PYTHONHASHSEED": "0",
    # glibc: never give memory back. Whether it does depends on where in the heap a process happens to put
    # things, and then every update faults its pages in again: equal trees differed by 40 %.
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_MMAP_THRESHOLD_": str(2**40),
}


class DriverError(Exception):
    """A tree cannot be measured; the message is a sentence for the user."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The code of one side.

    Attributes:
        folder: where it lies.
        modules: what must be imported from there.
        paths: folders below it that Python searches, in this order.
        python: the interpreter that runs it.
    """

    folder: Path
    modules: Sequence[str] = ("fastac",)
    paths: Sequence[str] = (".",)
    python: str = sys.executable


class Side:
    """A process that works only when it is asked to.

    Attributes:
        failures: why a workload does not run there, by name; after `wait`.
    """

    def __init__(self, tree: Tree, workloads: Workloads) -> None:
        """Start it; `wait` until it is ready.

        Raises:
            DriverError: there is no such interpreter.
        """
        self._names = list(workloads)
        found = [str((tree.folder / path).resolve()) for path in tree.paths]
        path = os.pathsep.join([*found, *filter(None, [os.environ.get("PYTHONPATH")])])
        spec = {"tree": str(tree.folder.resolve()), "modules": list(tree.modules), "workloads": workloads}
        try:
            self._process = subprocess.Popen(
                [tree.python, "-P", str(_DRIVER), json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=tree.folder,
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
            )
        except OSError as error:
            raise DriverError(f"python is {tree.python!r}, which cannot be started: {error.strerror}.") from error
        self.failures: dict[str, str] = {}

    def wait(self) -> None:
        """Wait until every workload is warm, or known not to run."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = json.loads(line) if line else dict.fromkeys(self._names, "its process did not start, see above")
        self.failures = {name: failure for name, failure in found.items() if failure}

    def time(self, workload: str, iterations: int) -> dict[str, float]:
        """Return the mean seconds of an iteration by part.

        Raises:
            DriverError: the process is gone.
        """
        return cast("dict[str, float]", self._ask("time", workload, iterations))

    def rebuild(self, workload: str) -> None:
        """Replace a workload by a new one, in other memory."""
        self._ask("rebuild", workload)

    def keep_to(self, core: int) -> None:
        """Run on one core from now on; what the process has started may use any."""
        keep_to_core(self._process.pid, core)

    def memory(self) -> dict[str, float]:
        """Return bytes by name: the peak beyond the imports, and every workload's rollout."""
        found = cast("dict[str, float | None]", self._ask("memory"))
        return {name: number for name, number in found.items() if number is not None}

    def count(self, workload: str) -> dict[str, int]:
        """Return what one iteration does in torch."""
        return cast("dict[str, int]", self._ask("count", workload))

    def train(self, settings: Mapping[str, ConfigValue], iterations: int) -> str | None:
        """Return a digest of the parameters after some iterations; None: they do not run there."""
        return cast("str | None", self._ask("train", settings, iterations))

    def _ask(self, *question: object) -> object:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            asked = " ".join(word for word in question if isinstance(word, str))
            raise DriverError(f"The process that was asked for {asked} ended, see above.") from error

    def __enter__(self) -> Side:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the process; it keeps nothing."""
        self._process.kill()
        self._process.communicate()
