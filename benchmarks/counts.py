"""Counts what one warm iteration does, for a fixed list of configurations, and compares with `counts.json`.

This is the first tier of the regression gate: the counts are the same on every machine, whatever
else runs there and however many cores it has, so any difference fails. They are

* ops: torch operators as the dispatcher sees them, views and the backward pass among them;
* bytes: of the new storages that those operators return, freed again or not;
* reads: `item` (also as `bool`, `float`, `int`), `tolist` and `cpu`, for which a GPU would be waited;
* forwards of the model, steps and resets of the vector environment, calls of the advantage kernel.

They do not see how long anything takes, what numpy, numba and Python do (one more numpy copy changes
no count), nor what a session adds: logs, evaluations, checkpoints. A count that is 0 is left out.

    python -m benchmarks.counts            compare, exit 1 if anything differs
    python -m benchmarks.counts --accept   write counts.json anew
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv, VectorWrapper
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.tables import format_table
from fastac import learner
from fastac.build import build, build_envs
from fastac.config import Config
from fastac.learner import Learner
from fastac.models import ActorCritic
from fastac.rollout import Collector

COUNTS_PATH = Path(__file__).with_name("counts.json")
ACCEPT = (
    "Any difference fails, fewer too: counts.json must be true of this commit. If the change is meant, "
    "run `make bench-accept` and commit benchmarks/counts.json with the reason."
)
_WARM_ITERATIONS = 2  # the first allocates the optimiser's slots

Counts = dict[str, int | float]

_A2C = Config().replace(env_id="CartPole-v1", algo="a2c", num_envs=64, num_steps=16, optimizer="adam")
_SEPARATE = _A2C.replace(hidden_sizes=(64, 64), activation="tanh", shared_trunk=False)
_PPO = _SEPARATE.replace(algo="ppo", num_envs=8, num_steps=32, num_epochs=4, num_minibatches=4)

# All explicit, not presets: tuning a preset must not move a count.
CASES: dict[str, Config] = {
    "a2c 64x16, shared 128-128 relu": _A2C.replace(hidden_sizes=(128, 128), activation="relu", shared_trunk=True),
    "a2c 64x16, separate 64-64 tanh": _SEPARATE,
    "ppo 8x32, 4 epochs of 4 minibatches": _PPO.replace(normalize_advantage=True),
    "a2c 64x16, lstm 64": _A2C.replace(hidden_sizes=(64,), core="lstm", lstm_size=64),
}


class Tally(TorchDispatchMode):
    """Counts by phase while it is entered: `counts["collect: ops"]` and the like."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.ops_at_steps: list[int] = []  # the ops so far, at every step of the environment
        self._phase = "other"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add("ops")
        if func is torch.ops.aten._local_scalar_dense.default:
            self.add("reads")
        given = _storages((args, kwargs))
        self.add("bytes", sum(size for address, size in _storages(result).items() if address not in given))
        return result

    def add(self, what: str, number: int = 1) -> None:
        self.counts[f"{self._phase}: {what}"] += number

    def enter_phase(self, phase: str) -> None:
        self._phase = phase

    def count_env_step(self) -> None:
        self.add("env steps")
        self.ops_at_steps.append(self.counts["collect: ops"])


def _storages(tree: Any) -> dict[int, int]:
    """Address and size of the storages under the tensors in a tree; a view has its base's."""
    found = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


class CountedEnv(VectorWrapper):
    """Sits below the adapter, so that what the adapter does is counted too."""

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self.tally = Tally()

    def step(self, actions: Any) -> Any:
        self.tally.count_env_step()
        return self.env.step(actions)

    def reset(self, **options: Any) -> Any:
        self.tally.add("env resets")
        return self.env.reset(**options)


def count(config: Config) -> Counts:
    """Count what the first warm iteration of a configuration does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    env = CountedEnv(gym.make_vec(config.env.env_id, config.env.num_envs, vectorization_mode="vector_entry_point"))
    try:
        parts = build(config, build_envs(config.env, np.random.SeedSequence(0), lambda _: env))
        reports = parts.trainer.run()
        for _ in range(_WARM_ITERATIONS):
            before = next(reports)
        tally = env.tally = Tally()
        with _watched(tally), tally:
            after = next(reports)
    finally:
        env.close()
        torch.set_num_threads(threads)
    return _summarize(tally, after.updates - before.updates)


@contextmanager
def _watched(tally: Tally) -> Iterator[None]:
    """Tell the tally of every phase and call; the program itself knows nothing of being counted."""
    enter, add = tally.enter_phase, tally.add
    with ExitStack() as stack:
        for owner, name, before, after in (
            (Collector, "collect", partial(enter, "collect"), partial(enter, "other")),
            (Learner, "learn", partial(enter, "advantages"), partial(enter, "other")),
            (learner, "gae", partial(add, "kernel calls"), None),
            (learner, "gae", partial(enter, "advantages"), partial(enter, "update")),  # before it is counted
            (ActorCritic, "forward", partial(add, "forwards"), None),
            (Tensor, "tolist", partial(add, "reads"), None),
            (Tensor, "cpu", partial(add, "reads"), None),
        ):
            stack.enter_context(patch.object(owner, name, _around(getattr(owner, name), before, after)))
        yield


def _around(call: Callable[..., Any], before: Callable[[], None], after: Callable[[], None] | None) -> Any:
    @wraps(call)
    def watched(*args: Any, **kwargs: Any) -> Any:
        before()
        result = call(*args, **kwargs)
        if after is not None:
            after()
        return result

    return watched


def _summarize(tally: Tally, updates: int) -> Counts:
    counts: Counts = {name: number for name, number in sorted(tally.counts.items()) if number}
    per_step = [after - before for before, after in pairwise(tally.ops_at_steps)]
    if per_step:
        counts["collect: ops per step"] = _mean(sum(per_step), len(per_step))
    counts["update: updates"] = updates
    counts["update: ops per update"] = _mean(counts.pop("update: ops"), updates)
    return dict(sorted(counts.items()))


def _mean(total: int | float, number: int) -> int | float:
    """A whole number unless the parts differ."""
    return int(total // number) if total % number == 0 else round(total / number, 3)


class Difference(NamedTuple):
    case: str
    name: str
    committed: int | float
    now: int | float

    @property
    def verdict(self) -> str:
        if self.name == "update: updates":
            return "another schedule"
        return "more" if self.now > self.committed else "fewer: better, accept it"


def compare(committed: Mapping[str, Counts], now: Mapping[str, Counts]) -> list[Difference]:
    """List every count that differs; one that is absent is 0."""
    found = []
    for case in dict.fromkeys([*now, *committed]):
        before, after = committed.get(case, {}), now.get(case, {})
        for name in sorted({*before, *after}):
            difference = Difference(case, name, before.get(name, 0), after.get(name, 0))
            if difference.committed != difference.now:
                found.append(difference)
    return found


def format_differences(differences: list[Difference]) -> str:
    header = ("configuration: what", "committed", "now", "which is")
    rows = [(f"{d.case}: {d.name}", f"{d.committed:,}", f"{d.now:,}", d.verdict) for d in differences]
    return format_table(header, rows)


def check(path: Path, cases: Mapping[str, Config]) -> int:
    """Compare with the file; return the exit code."""
    if not path.exists():
        print(f"{path.name} does not exist yet: run `make bench-accept` and commit it.", file=sys.stderr)
        return 1
    file = json.loads(path.read_text())
    now = {name: count(config) for name, config in cases.items()}
    differences = compare(file["counts"], now)
    if not differences:
        print(f"{path.name} holds: {sum(map(len, now.values()))} counts of {len(now)} configurations.")
        return 0
    print(format_differences(differences), file=sys.stderr)
    if file["torch"] != _torch_version():
        print(f"counts.json is of torch {file['torch']}, this is torch {_torch_version()}.", file=sys.stderr)
    print(ACCEPT, file=sys.stderr)
    return 1


def accept(path: Path, cases: Mapping[str, Config]) -> None:
    now = {name: count(config) for name, config in cases.items()}
    path.write_text(json.dumps({"torch": _torch_version(), "counts": now}, indent=1) + "\n")
    print(f"Wrote {path.name}: {sum(map(len, now.values()))} counts of {len(now)} configurations. Commit it.")


def _torch_version() -> str:
    return torch.__version__.partition("+")[0]  # the build for another device has the same operators


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counts", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--accept", action="store_true", help="write counts.json anew instead of comparing")
    if parser.parse_args().accept:
        accept(COUNTS_PATH, CASES)
        return 0
    return check(COUNTS_PATH, CASES)


if __name__ == "__main__":
    sys.exit(main())
