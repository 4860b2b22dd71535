"""One side of a comparison: trains on command with the `fastac` of one tree, and tells how long it took.

    python -P driver.py TREE WORKLOADS

TREE holds the package; WORKLOADS is JSON, `{name: settings}`. The first line of output is JSON, `{name: null or
why it does not run}`. Then every line of input, `[name, iterations]`, is answered by the mean seconds of an
iteration by part, `{"collector": s, "update": s, "iteration": s, "wall": s}`.

This one script runs old revisions too, so it uses no more of them than `Config`, `build`, the trainer's
stream, and the names `Collector.collect` and `Learner.learn`, which it times from outside: with the clock of
a revision's own report, a slowdown could hide in what that revision does not count.

Seconds are this process's CPU time. On a machine that others use too, wall-clock measures them as well: with
two busy neighbours on two cores, the fastest slices of two equal trees differed by up to a factor of 2, in CPU
time by 10 %. CPU time does not see waiting (a sleep, a lock, a pipe), so the iteration's wall-clock is told too.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

_WARM_S = 0.5


class Stopwatch:
    """Adds up the CPU time of a method."""

    def __init__(self, owner: type, method: str) -> None:
        self.seconds = 0.0
        self._call: Callable[..., Any] = getattr(owner, method)
        watch = self

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = process_time()
            result = watch._call(*args, **kwargs)
            watch.seconds += process_time() - began
            return result

        setattr(owner, method, timed)


def begin(settings: dict[str, Any]) -> Iterator[Any]:
    import numpy as np

    from fastac.build import build, build_envs
    from fastac.config import Config

    config = Config().replace(
        env_id="CartPole-v1",
        # Too small to move the policy: it stays the untrained one, and an iteration the same work.
        learning_rate=1e-12,
        total_env_steps=10**12,
        **settings,
    )
    return build(config, build_envs(config.env, np.random.SeedSequence(0))).trainer.run()


def measure(reports: Iterator[Any], watches: dict[str, Stopwatch], iterations: int) -> dict[str, float]:
    for watch in watches.values():
        watch.seconds = 0.0
    began, wall_began = process_time(), perf_counter()
    for _ in range(iterations):
        next(reports)
    spent = {"iteration": process_time() - began, "wall": perf_counter() - wall_began}
    spent |= {name: watch.seconds for name, watch in watches.items()}
    return {part: seconds / iterations for part, seconds in spent.items()}


def try_workload(settings: dict[str, Any], watches: dict[str, Stopwatch]) -> tuple[Iterator[Any] | None, str | None]:
    """Return the warm stream of reports, or why there is none."""
    try:
        reports = begin(settings)
        until = perf_counter() + _WARM_S
        seconds = measure(reports, watches, 1)
        while perf_counter() < until:
            next(reports)
    except Exception as error:  # whatever an old revision says to what it does not know
        return None, f"{type(error).__name__}: {error}"
    unused = [name for name, spent in seconds.items() if spent == 0.0]
    return (None, f"the {unused[0]} is not where it is timed") if unused else (reports, None)


def main(tree: str, workloads: str) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever fastac prints must not look like an answer

    import torch

    import fastac

    home = Path(fastac.__file__).resolve().parents[1]
    if home != Path(tree).resolve():
        sys.exit(f"measuring {home}, expected {tree}")
    from fastac.rollout import Collector

    try:
        from fastac.learning.learner import Learner
    except ModuleNotFoundError:  # a base from before this module had its place
        from fastac.learner import Learner

    torch.set_num_threads(1)
    watches = {"collector": Stopwatch(Collector, "collect"), "update": Stopwatch(Learner, "learn")}
    tried = {name: try_workload(settings, watches) for name, settings in json.loads(workloads).items()}
    print(json.dumps({name: failure for name, (_, failure) in tried.items()}), file=replies, flush=True)
    for line in sys.stdin:
        name, iterations = json.loads(line)
        print(json.dumps(measure(tried[name][0], watches, iterations)), file=replies, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
