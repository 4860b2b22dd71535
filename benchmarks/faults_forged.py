"""Damages and forges what runs have left, lets commands read it, and counts what they make of it (Linux).

    python -m benchmarks.faults_forged --number 2000

Each time a small run's directory is copied, and one thing in it changed: a bit flipped, a file cut, removed or
replaced by a pipe, device, socket, directory or link; a value, key, shape or type in a checkpoint forged with its
digests computed anew; a setting edited; a checkpoint, or a part of one, taken from another run. Then `fastac resume`
and `fastac eval` read it, each in a process of its own. They may refuse in one sentence, or go on; never with a
traceback, never for ever, never by a signal, never by running anything else, and never with what another run wrote.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from benchmarks.forked import Ended, in_shards, prepare, publish, run_forked
from benchmarks.machine import describe_machine, format_machine

_OUTPUT = Path("runs/forged.txt")  # committed results are replaced only with --output
_TIMEOUT_S = 60.0
_SMALL = (
    "--num-envs",
    "2",
    "--hidden-sizes",
    "4",
    "--total-env-steps",
    "160",
    "--eval-episodes",
    "2",
    "--no-tensorboard",
)
_ONE = ("--checkpoint-every", "0", "--eval-every", "0")  # a single checkpoint, so that whatever is changed is read
_SEVERAL = ("--checkpoint-every", "48", "--eval-every", "64")
_PPO = (*_ONE, "--algo", "ppo", "--num-steps", "16", "--num-minibatches", "2")
_NORMALIZED = ("--vectorization", "sync", "--normalize-obs", "--normalize-reward")
# By name: the environment and the flags.
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "several": ("CartPole-v1", (*_SMALL, *_SEVERAL, "--vectorization", "native")),
    "a2c": ("CartPole-v1", (*_SMALL, *_ONE, "--vectorization", "native")),
    "ppo": ("Pendulum-v1", (*_SMALL, *_PPO, *_NORMALIZED)),
    "lstm": ("fastac.envs.masked:fastac/MaskedCartPole-v1", (*_SMALL, *_PPO, "--core", "lstm", "--lstm-size", "4")),
    "reinforce": (
        "FrozenLake-v1",
        (*_SMALL, *_ONE, "--vectorization", "sync", "--algo", "reinforce", "--num-steps", "200"),
    ),
}
# Of events that no reading of a run causes.
_FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pickle.", "pty.")
Tree = dict[str, object]


def train(kind: str, run_dir: Path, seed: int) -> int:
    from fastac.cli import main

    env, flags = RUNS[kind]
    return main(["train", env, *flags, "--seed", str(seed), "--run-dir", str(run_dir)])


def read_from_command_line(command: str, run_dir: Path) -> int:
    from fastac.cli import main

    return main(
        [command, str(run_dir), *(["--total-env-steps", "224"] if command == "resume" else ["--episodes", "1"])]
    )


def read_from_python(command: str, run_dir: Path) -> int:
    """Do the same in less time, with the same exit codes."""
    import fastac
    from fastac.runs.files import RecordError

    try:
        if command == "resume":
            session = fastac.resume(run_dir, total_env_steps=224)
            for _ in session:
                pass
            fastac.finish(session)
        else:
            fastac.evaluate(fastac.load(run_dir), episodes=1)
    except (ValueError, fastac.EnvFailure, fastac.NonFiniteError, fastac.WorkerFailure, RecordError) as error:
        print(f"fastac: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


def read(how: Callable[[str, Path], int], command: str, run_dir: Path) -> int:
    """Resume a run for some steps, or evaluate it; exit with 99 where anything is run that is none of it."""

    def listen(event: str, args: tuple[object, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            sys.stderr.write(f"\nexecuted: {event} {args[0]!r}\n")
            sys.stderr.flush()
            os._exit(99)

    sys.addaudithook(listen)
    return how(command, run_dir)


# --- what is changed -------------------------------------------------------------------------------


def files_of(run_dir: Path) -> list[Path]:
    return sorted(path for path in run_dir.rglob("*") if path.is_file() and "tb" not in path.parts)


def flip(run_dir: Path, other: Path, chance: random.Random) -> str:
    path = chance.choice(files_of(run_dir))
    data = bytearray(path.read_bytes())
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    return f"a bit of {path.name}"


def cut(run_dir: Path, other: Path, chance: random.Random) -> str:
    path = chance.choice(files_of(run_dir))
    data = path.read_bytes()
    how = chance.choice(("cut", "cut", "longer", "zeros", "gone"))
    if how == "gone":
        path.unlink()
        return f"{path.name} gone"
    changed = {"cut": data[: chance.randrange(len(data) + 1)], "longer": data + data[:50], "zeros": bytes(len(data))}
    path.write_bytes(changed[how])
    return f"{path.name} {how}"


def special(run_dir: Path, other: Path, chance: random.Random) -> str:
    """Put something in the place of a file or folder that is none."""
    folders = [run_dir / "checkpoints", *(run_dir / "checkpoints").glob("step-*")]
    path = chance.choice([*files_of(run_dir), *folders])
    kept = other / path.relative_to(run_dir)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    how = chance.choice(("pipe", "folder", "socket", "zeros", "random", "terminal", "outside", "itself", "nothing"))
    if how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            short = Path(tempfile.mkdtemp(dir="/tmp"), "s")
            made.bind(str(short))
            short.rename(path)
            short.parent.rmdir()
    else:
        to = {"zeros": "/dev/zero", "random": "/dev/urandom", "terminal": "/dev/ptmx", "nothing": "nothing"}
        path.symlink_to(to.get(how, str(path if how == "itself" else kept)))
    return f"{path.name} {how}"


def foreign(run_dir: Path, other: Path, chance: random.Random) -> str:
    """Put in a checkpoint of another run, or a part of one."""
    theirs = sorted((other / "checkpoints").glob("step-*"))
    mine = sorted((run_dir / "checkpoints").glob("step-*"))
    how = chance.choice(("beside", "instead", "later", "file", "config"))
    if how == "config":
        shutil.copy(other / "config.json", run_dir / "config.json")
    elif how == "file":
        name = chance.choice(("state.json", "state.safetensors"))
        for path in mine:
            shutil.copy(theirs[-1] / name, path / name)
        return f"foreign {name}"
    elif how == "instead":
        shutil.rmtree(run_dir / "checkpoints")
        shutil.copytree(other / "checkpoints", run_dir / "checkpoints")
    else:
        name = "step-000000000999" if how == "later" else theirs[-1].name
        shutil.copytree(theirs[-1], run_dir / "checkpoints" / name, dirs_exist_ok=True)
    return f"foreign {how}"


def edit(run_dir: Path, other: Path, chance: random.Random) -> str:
    """Change a setting in config.json."""
    path = run_dir / "config.json"
    content = json.loads(path.read_text())
    what = forge_tree(content, chance)
    path.write_text(json.dumps(content))
    return f"config.json: {what}"


WEIRD: tuple[object, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3.5, -0.0, 10**30, -(10**30), 10**400, 2**63, 2**64 - 1, 1e308, 1e-320),
    *(float("nan"), float("inf"), float("-inf"), "", "test", "seed", "\ud800", "x" * 100_000, "os:abort", "../../x"),
    *([], [1, 2], {}, {"tuple": 3}, {"bit_generator": "test"}, [[[]]], "PCG64", "MT19937", "Philox", "SFC64"),
    *("nan", "None", "__class__", "cuda", "cuda:9", "auto", "linear", "lstm", "a3c", "process"),
)


def nodes_of(tree: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(tree, dict):
        return [path]
    return [*([path] if path else []), *(p for key, value in tree.items() for p in nodes_of(value, (*path, key)))]


def forge_tree(tree: Tree, chance: random.Random) -> str:
    """Change one node of a tree."""
    path = chance.choice(nodes_of(tree))
    branch: Tree = tree
    for key in path[:-1]:
        inner = branch[key]
        assert isinstance(inner, dict)
        branch = inner
    leaf, name = path[-1], "/".join(path)
    how = chance.choice(("value", "value", "value", "scaled", "gone", "renamed", "added", "swapped"))
    value = branch[leaf]
    if how == "value":
        branch[leaf] = copy.deepcopy(chance.choice(WEIRD))
    elif how == "scaled" and isinstance(value, int | float):
        branch[leaf] = value * chance.choice((-1, 2, 10**6, 10**18, 10**60)) + chance.choice((0, 1))
    elif how == "gone":
        del branch[leaf]
    elif how == "renamed":
        branch[chance.choice(("x", "__class__", "a/b", "test", "0", leaf + "~"))] = branch.pop(leaf)
    elif how == "added":
        branch[chance.choice(("x", "model", "0", "1", "rng", "own", "robot"))] = copy.deepcopy(chance.choice(WEIRD))
    else:
        other = chance.choice(list(branch))
        branch[leaf], branch[other] = branch[other], value
        return f"{name} with {other}"
    return f"{name} {how} {repr(branch.get(leaf))[:40]}"


def forge_scalars(run_dir: Path, other: Path, chance: random.Random) -> str:
    """Change one node of a checkpoint's JSON, and seal it anew."""
    checkpoint = chance.choice(list((run_dir / "checkpoints").glob("step-*")))
    body = json.loads((checkpoint / "state.json").read_text())
    part = body["state"] if chance.random() < 0.8 else body
    what = forge_tree(part, chance)
    seal(checkpoint, body)
    return f"state.json: {what}"


def forge_arrays(run_dir: Path, other: Path, chance: random.Random) -> str:
    """Change one array of a checkpoint, and seal it anew."""
    checkpoint = chance.choice(list((run_dir / "checkpoints").glob("step-*")))
    arrays = load((checkpoint / "state.safetensors").read_bytes())
    name = chance.choice(sorted(arrays))
    array = arrays[name]
    changes: dict[str, Callable[[], object]] = {
        "nan": lambda: array.astype(np.float64) * np.nan,
        "huge": lambda: np.full_like(array, np.iinfo(array.dtype).max if array.dtype.kind in "iu" else 1),
        "negative": lambda: -array.astype(np.float32),
        "float64": lambda: array.astype(np.float64),
        "int8": lambda: array.astype(np.int8),
        "bool": lambda: array.astype(np.bool_),
        "empty": lambda: array[:0] if array.ndim else array[None][:0],
        "longer": lambda: np.concatenate([np.atleast_1d(array)] * 2),
        "flat": lambda: array.reshape(-1),
        "deeper": lambda: array[None],
        "scalar": lambda: np.array(7, array.dtype),
        "million": lambda: np.zeros(10**6, array.dtype),
        "random": lambda: np.frombuffer(chance.randbytes(array.nbytes), array.dtype).reshape(array.shape),
    }
    how = chance.choice([*changes, "gone", "renamed", "header"])
    packed = None
    if how in changes:
        arrays[name] = np.ascontiguousarray(changes[how]()).reshape(np.shape(changes[how]()))
    elif how == "gone":
        del arrays[name]
    elif how == "renamed":
        arrays[chance.choice(("x", "training", "training/model", "a/b/c", "//", name + "/x"))] = arrays.pop(name)
    else:
        packed = forge_header(save(arrays), name, chance)
    (checkpoint / "state.safetensors").write_bytes(save(arrays) if packed is None else packed)
    seal(checkpoint, json.loads((checkpoint / "state.json").read_text()))
    return f"{name} {how}"


def forge_header(packed: bytes, name: str, chance: random.Random) -> bytes:
    """Change what the header of a safetensors file says of an array."""
    size = int.from_bytes(packed[:8], "little")
    header = json.loads(packed[8 : 8 + size])
    key = chance.choice(("dtype", "shape", "data_offsets"))
    values = {
        "dtype": ("F8_E4M3", "BF16", "U64", "C64", "", None, "I4"),
        "shape": ([2**40, 2**40], [-1], [0], "x", None, [10**30]),
        "data_offsets": ([0, 2**60], [5, 1], [-1, 3], [0, 0], None),
    }
    header[name][key] = chance.choice(values[key])
    made = json.dumps(header).encode()
    length = chance.choice((len(made), len(made), len(made), 2**62, 0))
    return length.to_bytes(8, "little") + made + packed[8 + size :]


NAMES = (
    "os:abort",
    "os:_exit",
    "antigravity:x",
    "subprocess:run",
    "this:s",
    "builtins:exec",
    "shutil:rmtree",
    "os.path:x",
)


def forge_names(run_dir: Path, other: Path, chance: random.Random) -> str:
    """Let config.json and all checkpoints say that environments or encoder come from somewhere else."""
    section, key = chance.choice((("env", "env_id"), ("model", "encoder")))
    name = chance.choice(NAMES)
    config = json.loads((run_dir / "config.json").read_text())
    config[section][key] = name
    (run_dir / "config.json").write_text(json.dumps(config))
    for checkpoint in (run_dir / "checkpoints").glob("step-*"):
        body = json.loads((checkpoint / "state.json").read_text())
        body["config"][section][key] = name
        seal(checkpoint, body)
    return f"{key} {name}"


def seal(checkpoint: Path, body: Tree) -> None:
    """Write a checkpoint's JSON with digests that are right."""
    from hashlib import sha256

    body.pop("sha256", None)
    arrays = checkpoint / "state.safetensors"
    if "arrays_sha256" in body:
        body["arrays_sha256"] = sha256(arrays.read_bytes()).hexdigest()
    digest = sha256(json.dumps(body).encode()).hexdigest()
    (checkpoint / "state.json").write_bytes(json.dumps({**body, "sha256": digest}).encode() + b"\n")


# How often in 21.
CHANGES: tuple[tuple[Callable[[Path, Path, random.Random], str], int], ...] = (
    (flip, 2),
    (cut, 2),
    (special, 3),
    (foreign, 2),
    (edit, 2),
    (forge_scalars, 5),
    (forge_arrays, 4),
    (forge_names, 1),
)


# --- what comes of it ------------------------------------------------------------------------------


def judge(kind: str, bases: Path, chance: random.Random) -> dict[str, object]:
    """Change a run, have it read, and say what came of it."""
    change = chance.choices([change for change, _ in CHANGES], [weight for _, weight in CHANGES])[0]
    command = chance.choice(("resume", "resume", "resume", "eval"))
    with tempfile.TemporaryDirectory() as name:
        run_dir, other = Path(name, "run"), bases / f"{kind}-other"
        shutil.copytree(bases / kind, run_dir)
        what = change(run_dir, other, chance)
        how = chance.choice((read_from_python,) * 7 + (read_from_command_line,))
        ended = run_forked(partial(read, how, command, run_dir), Path(name, "own"), _TIMEOUT_S)
    # One that lies beside the run's own concerns only who goes on from the last, or wants the best.
    is_foreign = change is foreign and not (command == "eval" and what in ("foreign beside", "foreign later"))
    came, wrong = _classify(ended, is_foreign)
    return {"kind": kind, "change": change.__name__, "what": f"{command} {what}", "came": came, "wrong": wrong}


def _classify(ended: Ended, is_foreign: bool) -> tuple[str, str]:
    """Return what came of a reading, and what is wrong with that."""
    if ended.code is None:
        return "hangs", f"it hangs: {ended.last_words}"
    if ended.code == 99:
        return "executed", ended.last_words
    if "Traceback (most recent call last)" in ended.err or ended.code < 0:
        return "traceback", f"code {ended.code}: {ended.err[-1500:]}"
    said = [line for line in ended.err.splitlines() if line.startswith("fastac: ")]
    if ended.code == 0:
        return ("foreign accepted", "accepted") if is_foreign else ("goes on", "")
    if len(said) != 1 or ended.err.splitlines()[-1] != said[0] or len(said[0]) > 2000:
        return "no sentence", f"code {ended.code}: {ended.err[-1500:]}"
    return ("refused", "") if ended.code == 2 else ("fails in a sentence", "")


def main(argv: Sequence[str] | None = None) -> int:
    """Change and read all, write the page; exit 1 if anything came out wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults_forged", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--number", type=int, default=2000, metavar="N", help="of changed runs")
    parser.add_argument("--seed", type=int, default=0, help="of the changes")
    parser.add_argument("--jobs", type=int, default=2, help="processes that change and read")
    parser.add_argument("--output", type=Path, default=_OUTPUT)
    options = parser.parse_args(argv)
    prepare()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        bases = Path(name)
        for kind in RUNS:
            for seed, path in enumerate((bases / kind, bases / f"{kind}-other")):
                ended = run_forked(partial(train, kind, path, seed), bases / "own", _TIMEOUT_S)
                assert ended.code == 0, ended.err

        def do(job: int) -> dict[str, object]:
            chance = random.Random(f"{options.seed}-{job}")
            row = judge(chance.choice(list(RUNS)), bases, chance)
            if row["wrong"]:
                print(f"{job}: {row['kind']}, {row['what']}: {row['came']}: {row['wrong']}", flush=True)
            return row

        rows = in_shards(options.number, options.jobs, do)
    page = _page(rows, time.perf_counter() - began)
    return publish(page, rows, options.output)


def _page(rows: list[dict[str, object]], took_s: float) -> str:
    columns = ("refused", "goes on", "fails in a sentence", "wrong")
    lines = [
        "python -m benchmarks.faults_forged",
        f"{'changed':<16}{'number':>8}" + "".join(f"{c:>21}" for c in columns),
    ]
    for change in [*(change.__name__ for change, _ in CHANGES), "all"]:
        own = [row for row in rows if change in (row["change"], "all")]
        came = Counter("wrong" if row["wrong"] else str(row["came"]) for row in own)
        lines.append(f"{change:<16}{len(own):>8}" + "".join(f"{came[column]:>21}" for column in columns))
    lines += [f"{row['kind']}, {row['what']}: {row['came']}" for row in rows if row["wrong"]]
    lines += [f"{took_s:.0f} s", format_machine(describe_machine(torch_threads=1))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
