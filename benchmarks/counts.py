"""Counts what one warm iteration does, for a fixed list of configurations, and compares with `counts.json`.

This is the first tier of the regression gate: the counts are the same on every machine, whatever
else runs there and however many cores it has, so any difference fails. They are

* ops: torch operators as the dispatcher sees them, views and the backward pass among them;
* bytes: of the new storages that those operators return, freed again or not;
* reads: `item` (also as `bool`, `float`, `int`), `tolist` and `cpu`, for which a GPU would be waited;
* forwards and backwards, with autograd or without; a critic forward is one without the actor;
* calls of each kernel, by its name, within programs too;
* exchanges with the other workers, which a worker that is alone makes too, with itself;
* steps and resets of environments, a native batch of them counting as one.

They do not see how long anything takes, nor what numpy, Numba and Python do: an activation or a copy in
numpy changes no count. (tracemalloc knows numpy's blocks by a domain of their own, but only those that
are left at the end; its peak mixes in Python's.) Nor do they see what a session adds: logs,
evaluations, checkpoints. A count that is 0 is left out.

    python -m benchmarks.counts            compare, exit 1 if anything differs
    python -m benchmarks.counts --accept   write counts.json anew
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from fnmatch import filter as matching
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.envs.toy_text import TaxiEnv
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.tables import format_table
from fastac import kernels
from fastac.build import Streams, build, build_envs, shard_config, torch_threads
from fastac.build import sync as composition
from fastac.build.network import build_model
from fastac.build.sync import allocate_memory
from fastac.config import Config
from fastac.contract import Alone, Group, VecEnv
from fastac.envs.adapter import NextStepAdapter
from fastac.envs.sync import SyncEnvs
from fastac.kernels import Op, Program
from fastac.kernels.kernel import Kernel
from fastac.learning.fused.layers import LinearLayer
from fastac.learning.fused.network import BackwardPass, FusedNetwork
from fastac.learning.learner import Learner
from fastac.models import ActorCritic
from fastac.rollout import Collector
from fastac.rollout.collector import CompiledEnvs
from fastac.workers import Division, GroupMemory, SharedGroup

COUNTS_PATH = Path(__file__).with_name("counts.json")
ACCEPT = (
    "Any difference fails, fewer too: counts.json must be true of this commit. If the change is meant, "
    "run `make bench-accept` and commit benchmarks/counts.json with the reason."
)
_WARM_ITERATIONS = 2  # the first makes the views that later ones use again

Counts = dict[str, int | float]

# All explicit, not presets: tuning a preset must not move a count. Nor may chance: the gradient is always
# clipped, and where statistics gather valid rows, no episode ends (Pendulum's take 200 steps).
_A2C = Config().replace(
    env_id="CartPole-v1", algo="a2c", num_envs=64, num_steps=16, optimizer="adam", max_grad_norm=1e-6
)
_SHARED = _A2C.replace(hidden_sizes=(128, 128), activation="relu", shared_trunk=True)
_SEPARATE = _A2C.replace(hidden_sizes=(64, 64), activation="tanh", shared_trunk=False)
_PPO = _SEPARATE.replace(algo="ppo", num_envs=8, num_steps=32, num_epochs=4, normalize_advantage=True)
_PENDULUM = _SEPARATE.replace(env_id="Pendulum-v1", vectorization="sync", num_envs=8)
_PONG = _A2C.replace(env_id="ALE/Pong-v5", num_envs=4, num_steps=5, encoder="a3c")

CASES: dict[str, Config] = {
    "a2c 64x16, shared 128-128 relu": _SHARED,
    "a2c 64x16, separate 64-64 tanh": _SEPARATE,
    "a2c 64x16, separate, rmsprop_tf": _SEPARATE.replace(optimizer="rmsprop_tf"),
    "a2c 64x16, separate, no forward reused": _SEPARATE.replace(reuse_forward=False),
    "a2c 64x16, separate, of 2 workers": _SEPARATE.replace(num_envs=128, workers=2),
    "a2c 64x16, lstm 64": _A2C.replace(hidden_sizes=(64,), core="lstm", lstm_size=64),
    "a2c 64x16, gru 64": _A2C.replace(hidden_sizes=(64,), core="gru", lstm_size=64),
    "a2c 64x16, shared 256-256 tanh": _SHARED.replace(hidden_sizes=(256, 256), activation="tanh"),
    "a2c 8x16, Pendulum": _PENDULUM,
    "a2c 8x16, Pendulum, normalized": _PENDULUM.replace(normalize_obs=True, normalize_reward=True),
    "a2c 8x16, Taxi, masks": _SEPARATE.replace(env_id="Taxi-v4", vectorization="sync", num_envs=8),
    "a2c 4x5, Pong, the net of A3C": _PONG,
    "a2c 4x5, Pong, the net of A3C, standardised": _PONG.replace(normalize_obs=True),
    "ppo 4x5, Pong, 2 epochs of 2 minibatches": _PONG.replace(algo="ppo", num_epochs=2, num_minibatches=2),
    "ppo 8x32, 4 epochs of 4 minibatches": _PPO.replace(num_minibatches=4),
    "ppo 8x32, 4 epochs of the whole": _PPO,
}

KERNELS = tuple(name for name, value in vars(kernels).items() if isinstance(value, Kernel))
CALLS: tuple[tuple[object, str, str], ...] = (
    (CartPoleVectorEnv, "step", "env steps"),
    (CartPoleVectorEnv, "reset", "env resets"),
    (PendulumEnv, "step", "env steps"),
    (PendulumEnv, "reset", "env resets"),
    (TaxiEnv, "step", "env steps"),
    (TaxiEnv, "reset", "env resets"),
    (AtariVectorEnv, "step", "env steps"),
    (ActorCritic, "forward", "forwards"),
    (torch.autograd, "backward", "backwards"),
    (Tensor, "tolist", "reads"),
    (Tensor, "cpu", "reads"),
)
_PHASES: tuple[tuple[type, str, str], ...] = (
    (Collector, "collect", "collect"),
    (Learner, "learn", "update"),
    (Learner, "_estimate", "advantages"),  # within learn
)
# No iteration goes without these: where one is 0, the program calls something else and is not counted.
_ALWAYS = (
    "collect: env steps",
    "collect: forwards",
    "other: find_episodes",
    "advantages: gae",
    "advantages: exchanges",
    "update: *_loss",
    "update: backwards",
)


class Tally(TorchDispatchMode):
    """Counts by phase: `counts["collect: env steps"]` and the like; operators only while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.ops_at_steps: list[int] = []  # the ops so far, when the environments are stepped
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

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        around, self._phase = self._phase, name
        yield
        self._phase = around

    def mark_step(self) -> None:
        self.ops_at_steps.append(self.counts["collect: ops"])

    def clear(self) -> None:
        self.counts.clear()
        self.ops_at_steps.clear()


def _storages(tree: Any) -> dict[int, int]:
    """Address and size of the storages under the tensors in a tree; a view has its base's."""
    found = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


class CountedAlone(Alone):
    """One worker, counted."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def gather(self, array: Any) -> Any:
        self._tally.add("exchanges")
        return super().gather(array)

    def prepare_gather(self, array: Tensor) -> tuple[list[Op], Tensor]:
        return [partial(self._tally.add, "exchanges")], array

    def merge_statistics(self, name: Any, known: Any, parts: Any, merge: Any) -> Any:
        self._tally.add("exchanges")
        return super().merge_statistics(name, known, parts, merge)


class CountedGroup(SharedGroup):
    """The first of workers who all send the same: what one of several does, without the processes."""

    def __init__(self, tally: Tally, memory: GroupMemory) -> None:
        super().__init__(memory, 0, lambda _: None)
        self._tally = tally

    def gather(self, array: Any) -> Any:
        self._tally.add("exchanges")
        return np.repeat(array, self.size, axis=0)

    def wait(self) -> None:
        self._tally.add("exchanges")


def _count_exchanges(tally: Tally, config: Config, share: Config, envs: VecEnv) -> Group:
    """Return who the first worker of a configuration, whose share is `share`, exchanges with."""
    if config.num_workers == 1:
        return CountedAlone(tally)
    model = build_model(share.model, envs, Streams.spawn(config.run.seed).model, None)
    division = Division.divide(config.num_shards, config.num_workers)
    return CountedGroup(tally, allocate_memory(division, share, model))


def count(config: Config) -> Counts:
    """Count what the first warm iteration of a configuration does in its first worker."""
    tally, share = Tally(), shard_config(config, None)
    envs = build_envs(share.env, Streams.spawn(config.run.seed).env)
    group = _count_exchanges(tally, config, share, envs)
    # Watched from before anything is built, so that a method bound while building is a watched one.
    with closing(envs), torch_threads(1), _watched(tally, envs), patch.object(composition, "Alone", lambda _: group):
        reports = build(share, envs).trainer.run()
        for _ in range(_WARM_ITERATIONS):
            before = next(reports)
        tally.clear()
        with tally:
            after = next(reports)
    counts = _summarize(tally, after.updates - before.updates)
    for pattern in _ALWAYS:
        if not any(counts[name] for name in matching(counts, pattern)):
            raise RuntimeError(f"counted no {pattern!r}: benchmarks/counts.py no longer watches what is called.")
    return counts


@contextmanager
def _watched(tally: Tally, envs: VecEnv) -> Iterator[None]:
    """Tell the tally of every phase and call; the program itself knows nothing of being counted."""
    with ExitStack() as stack:

        def watch(owner: Any, name: str, decorate: Callable[[Any], Any]) -> None:
            stack.enter_context(patch.object(owner, name, decorate(getattr(owner, name))))

        for owner, name, phase in _PHASES:
            watch(owner, name, tally.phase(phase))
        for owner, name, what in CALLS:
            watch(owner, name, partial(_telling, partial(tally.add, what)))
        for backend in (NextStepAdapter, SyncEnvs):
            watch(backend, "step", partial(_telling, tally.mark_step))
        calls = _Calls(tally)
        watch(Kernel, "__call__", calls.watch_kernel)
        watch(Kernel, "prepare", calls.watch_prepare)
        watch(FusedNetwork, "__init__", calls.watch_network)
        watch(LinearLayer, "forward", calls.watch_layer)
        watch(BackwardPass, "prepare_backward", calls.watch_backward)
        watch(Program, "__call__", calls.watch_program)
        if isinstance(envs, CompiledEnvs):
            watch(type(envs), "prepare_step", calls.watch_envs)
        yield


class _Calls:
    """Tells of kernels that are called, by themselves or within a program, which calls them without Python.

    A program is a table of functions and blocks of arguments. Each block is made once, for one call, and keeps its
    place when programs are joined: so the block tells what a row of a program is.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._names: dict[int, list[str]] = {}  # of a block
        self._marked: list[Program] = []  # kept, so that no other block gets the address of one that was freed
        self._heads: dict[LinearLayer, str] = {}
        self._is_inside = False  # a kernel that is called, which may run a program of its own

    def watch_kernel(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            self._tally.add(kernel.__name__)
            around, self._is_inside = self._is_inside, True
            result = call(kernel, *args, **kwargs)
            self._is_inside = around
            return result

        return watched

    def watch_prepare(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        def watched(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            return self._mark(prepare(kernel, *args, **kwargs), kernel.__name__)

        return watched

    def watch_network(self, build: Callable[..., None]) -> Callable[..., None]:
        def watched(network: FusedNetwork, *args: Any) -> None:
            build(network, *args)
            self._heads = {**self._heads, network.policy: "actor heads", network.critic: "critic heads"}

        return watched

    def watch_layer(self, forward: Callable[..., list[Op]]) -> Callable[..., list[Op]]:
        """A pass forward with both heads is a forward, one with the critic's alone a critic forward."""

        def watched(layer: LinearLayer, *views: Any) -> list[Op]:
            ops = forward(layer, *views)
            if layer in self._heads:
                ops[-1] = self._mark(ops[-1], self._heads[layer])
            return ops

        return watched

    def watch_backward(self, prepare: Callable[..., list[Op]]) -> Callable[..., list[Op]]:
        def watched(step: BackwardPass, obs: Tensor) -> list[Op]:
            *ops, last = prepare(step, obs)
            return [*ops, self._mark(last, "backwards")]

        return watched

    def watch_envs(self, prepare: Callable[..., Program]) -> Callable[..., Program]:
        return lambda *args: self._mark(prepare(*args), "env steps")

    def watch_program(self, run: Callable[[Program], None]) -> Callable[[Program], None]:
        def watched(program: Program) -> None:
            if not self._is_inside:
                for block in program._table[:, 1].tolist():
                    for name in self._names.get(block, ["other compiled calls"]):
                        self._tally.add(name)
            run(program)

        return watched

    def _mark(self, op: Any, name: str) -> Any:
        """Name a call: the first row of a program, or any other."""
        if not isinstance(op, Program):
            return _telling(partial(self._tally.add, name), op)
        self._marked.append(op)
        block, kept = int(op._table[0, 1]), self._names
        others = [] if name in KERNELS else [known for known in kept.get(block, []) if known != name]
        kept[block] = [*others, name]
        return op


def _telling(tell: Callable[[], None], call: Callable[..., Any]) -> Callable[..., Any]:
    def watched(*args: Any, **kwargs: Any) -> Any:
        tell()
        return call(*args, **kwargs)

    return watched


def _summarize(tally: Tally, updates: int) -> Counts:
    _name_forwards(tally.counts)
    counts: Counts = {name: number for name, number in tally.counts.items() if number}
    per_step = [after - before for before, after in pairwise(tally.ops_at_steps)]
    if per_step:
        counts["collect: ops per step"] = _mean(sum(per_step), len(per_step))
    counts["update: updates"] = updates
    counts["update: ops per update"] = _mean(counts.pop("update: ops", 0), updates)
    return dict(sorted(counts.items()))


def _name_forwards(counts: Counter[str]) -> None:
    """Turn heads that were evaluated into forwards, with both heads, and critic forwards."""
    for phase in {name.partition(": ")[0] for name in counts}:
        both, critic = counts.pop(f"{phase}: actor heads", 0), counts.pop(f"{phase}: critic heads", 0)
        counts[f"{phase}: forwards"] += both
        counts[f"{phase}: critic forwards"] += critic - both


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
    # The file declares other bits too, see `benchmarks.gate`.
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, "torch": _torch_version(), "counts": now}, indent=1) + "\n")
    print(f"Wrote {path.name}: {sum(map(len, now.values()))} counts of {len(now)} configurations. Commit it.")


def _torch_version() -> str:
    return torch.__version__.partition("+")[0]  # the build for another device has the same operators


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counts", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--accept", action="store_true", help="write counts.json anew instead of comparing")
    arguments = parser.parse_args()
    if kernels.cache_folder() is None:
        print("counts.json is of the compiled kernels, which cannot be used here.", file=sys.stderr)
        return 1
    if arguments.accept:
        accept(COUNTS_PATH, CASES)
        return 0
    return check(COUNTS_PATH, CASES)


if __name__ == "__main__":
    sys.exit(main())
