"""One side of a comparison: trains on command with the code of one tree, and tells what it measured.

    python -P driver.py SPEC

SPEC is JSON: `modules`, which must come from the folder `tree`, and `workloads`, settings by name. The first line of
output is JSON, by workload: None, or why it does not run. Then each line of input, a JSON list that names a
measurement and its arguments, is answered by a line:

    ["time", name, iterations]        mean seconds of an iteration by part
    ["rebuild", name]                 null; from now on the workload is a new one, in other memory
    ["memory"]                        bytes: the peak beyond the imports, and each workload's rollout
    ["count", name]                   torch operators, copies and item() calls of one iteration
    ["train", settings, iterations]   a digest of the parameters after that many iterations; None: that failed

This one script also runs old revisions, so it imports nothing of the package at the top, and uses no more of it than
`Config`, `build`, the trainer's stream, and the names `Collector.collect` and `Learner.learn`. It times these from
outside: with the clock of a revision's own report, a slowdown could hide in what that revision does not count.

Seconds are this process's CPU time. On a machine that others use too, wall-clock measures them as well: with two busy
neighbours on two cores, the fastest slices of two equal trees differed by up to a factor of 2, in CPU time by 10 %.
CPU time does not see waiting (a sleep, a lock, a pipe), so the iteration's wall-clock is told too.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch._ops import OpOverload
    from torch.utils._python_dispatch import TorchDispatchMode

    from fastac.build import Training
    from fastac.config import ConfigValue
    from fastac.contract import Report

_WARM_S, _WARM_AGAIN_S = 0.3, 0.1


class Stopwatch:
    """Adds up the CPU time of a method, in seconds."""

    def __init__(self, owner: type, method: str) -> None:
        """Time every call of the method from now on."""
        self.seconds = 0.0
        call: Callable[..., object] = getattr(owner, method)

        def timed(*args: object, **kwargs: object) -> object:
            began = process_time()
            result = call(*args, **kwargs)
            self.seconds += process_time() - began
            return result

        setattr(owner, method, timed)


def start(settings: Mapping[str, ConfigValue]) -> Training:
    """Build a run whose policy stays the untrained one, so that every iteration is the same work."""
    import numpy as np

    from fastac.build import build, build_envs
    from fastac.config import Config

    still: dict[str, ConfigValue] = {"env_id": "CartPole-v1", "learning_rate": 1e-12, "total_env_steps": 10**12}
    config = Config().replace(**{**still, **settings})
    return build(config, build_envs(config.env, np.random.SeedSequence(0)))


class Workload:
    """A run that goes on for as long as it is measured."""

    def __init__(self, settings: Mapping[str, ConfigValue], watches: Mapping[str, Stopwatch]) -> None:
        """Build it and warm it up.

        Raises:
            RuntimeError: a timed method is not called.
        """
        self._settings, self._watches = settings, watches
        self._begin(_WARM_S)

    def _begin(self, warm_s: float) -> None:
        self._training = start(self._settings)
        self._reports: Iterator[Report] = self._training.trainer.run()
        until = perf_counter() + warm_s
        seconds = self.time(1)
        while perf_counter() < until:
            next(self._reports)
        for part, spent in seconds.items():
            if spent == 0.0:
                raise RuntimeError(f"the {part} is not where it is timed")

    def rebuild(self) -> None:
        """Go on with a new run; the old one is still there while it is built, so that it gets other memory."""
        old = self._training
        self._begin(_WARM_AGAIN_S)
        del old

    def time(self, iterations: int) -> dict[str, float]:
        """Return the mean seconds of an iteration by part."""
        for watch in self._watches.values():
            watch.seconds = 0.0
        began, wall_began = process_time(), perf_counter()
        for _ in range(iterations):
            next(self._reports)
        spent = {"iteration": process_time() - began, "wall": perf_counter() - wall_began}
        spent |= {part: watch.seconds for part, watch in self._watches.items()}
        return {part: seconds / iterations for part, seconds in spent.items()}

    def count(self, folder: str) -> dict[str, int]:
        """Count one iteration; what is called from a file below `folder` counts as its own, too."""
        counts = dict.fromkeys(("operators", "copies", "item() calls"), 0)
        counts |= {f"own {name}": 0 for name in counts}
        with make_counter(counts, folder):
            next(self._reports)
        return counts

    @property
    def rollout_bytes(self) -> int | None:
        """Bytes of the rollout and of the activations kept with it; None where the revision does not tell."""
        info = getattr(self._training, "info", None)
        rollout, activations = getattr(info, "rollout_nbytes", None), getattr(info, "activations_nbytes", None)
        return None if rollout is None or activations is None else rollout + activations


def make_counter(counts: dict[str, int], folder: str) -> TorchDispatchMode:
    """Return a context in which the operators that torch dispatches are counted, the backward pass among them."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    kinds = {
        **dict.fromkeys((aten.copy_, aten.clone, aten._to_copy), "copies"),
        aten._local_scalar_dense: "item() calls",
    }

    class Counter(TorchDispatchMode):
        def __init__(self) -> None:
            TorchDispatchMode.__init__(self)

        def __torch_dispatch__(
            self,
            func: OpOverload,
            types: Sequence[type],
            args: tuple[object, ...] = (),
            kwargs: dict[str, object] | None = None,
        ) -> object:
            is_own = is_called_from(folder)
            for name in filter(None, ("operators", kinds.get(func.overloadpacket))):
                counts[name] += 1
                counts[f"own {name}"] += is_own
            return func(*args, **(kwargs or {}))

    return Counter()


def is_called_from(folder: str) -> bool:
    """Return whether a caller's file is in a folder."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(folder):
        frame = frame.f_back
    return frame is not None


def train(settings: Mapping[str, ConfigValue], iterations: int) -> str | None:
    """Return a digest of the parameters' bits after some iterations, or None if that fails."""
    try:
        training = start(settings)
        reports = training.trainer.run()
        for _ in range(iterations):
            next(reports)
        return digest(training.model.state_dict().values())
    except Exception as error:  # whatever an old revision says to what it does not know
        print(f"{type(error).__name__}: {error}")
        return None


def digest(tensors: Iterable[Tensor]) -> str:
    """Return a digest of the bits of tensors, whatever their names and order."""
    parts = sorted(hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for tensor in tensors)
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def resident_bytes(peak: bool) -> int:
    """Return this process's resident memory, the most so far or that of now; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux
        return 0
    label = "VmHWM:" if peak else "VmRSS:"
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(label)), 0)


def check_home(modules: Sequence[str], tree: str) -> None:
    """Import modules.

    Raises:
        ImportError: one is not from the tree.
    """
    for name in modules:
        found = import_module(name).__file__
        if found is None or Path(tree).resolve() not in Path(found).resolve().parents:
            raise ImportError(f"{name} is imported from {found}, expected a file below {tree}")


def watch() -> dict[str, Stopwatch]:
    """Time the two parts of an iteration."""
    from fastac.learning.learner import Learner
    from fastac.rollout import Collector

    return {"collector": Stopwatch(Collector, "collect"), "update": Stopwatch(Learner, "learn")}


def main(text: str) -> None:
    """Answer until the input ends."""
    spec = json.loads(text)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed must not look like an answer

    import torch

    torch.set_num_threads(1)
    workloads: dict[str, Workload] = {}
    failures: dict[str, str | None] = dict.fromkeys(spec["workloads"])
    imported = 0
    try:
        check_home(spec["modules"], spec["tree"])
        watches = watch()
        imported = resident_bytes(peak=False)
    except Exception as error:  # whatever an old revision, or the user's module, says
        failures = dict.fromkeys(spec["workloads"], f"{type(error).__name__}: {error}")
    for name, settings in spec["workloads"].items():
        if failures[name] is None:
            try:
                workloads[name] = Workload(settings, watches)
            except Exception as error:
                failures[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(failures), file=replies, flush=True)

    def tell_memory() -> dict[str, int | None]:
        rollouts = {f"rollout, {name}": workload.rollout_bytes for name, workload in workloads.items()}
        return {"peak": resident_bytes(peak=True) - imported, **rollouts}

    answers: dict[str, Callable[..., object]] = {
        "time": lambda name, iterations: workloads[name].time(iterations),
        "rebuild": lambda name: workloads[name].rebuild(),
        "memory": tell_memory,
        "count": lambda name: workloads[name].count(spec["tree"]),
        "train": train,
    }
    for line in sys.stdin:
        what, *given = json.loads(line)
        print(json.dumps(answers[what](*given)), file=replies, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
