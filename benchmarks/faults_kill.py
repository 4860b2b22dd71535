"""Kills runs by SIGKILL at random moments, resumes them, and compares them with a run that nobody killed (Linux).

    python -m benchmarks.faults_kill --kills 200

Every run is `fastac train` in a process of its own. It is killed at a random moment of its life, or right before a
random change to its directory (so that every moment of saving and ending is met), once or twice. After the last
`fastac resume` it has to be, but for clocks and names, bit for bit the run that was never killed: checkpoints, the
best one and its mark, all rows once, no file and no process left over. A run that was killed before its first
checkpoint has to be refused in one sentence.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.forked import Ended, in_shards, prepare, publish, run_forked
from benchmarks.machine import describe_machine, format_machine
from fastac.runs.checkpoint import best_mean_return, find_checkpoint

_OUTPUT = Path("runs/kills.txt")  # committed results are replaced only with --output
_TIMEOUT_S = 120.0
_ENV = "CartPole-v1"
_FEW = (
    *("--num-envs", "8", "--hidden-sizes", "16", "--checkpoint-every", "700", "--keep-checkpoints", "2"),
    "--no-tensorboard",
)
_SMALL = (*_FEW, "--eval-every", "1500", "--eval-episodes", "5")
_PPO = ("--algo", "ppo", "--num-steps", "32", "--num-epochs", "2", "--num-minibatches", "4")
# By name: the environment, the flags, and of how many runs in 20 they are.
KINDS: dict[str, tuple[str, tuple[str, ...], int]] = {
    "a2c": (_ENV, (*_SMALL, "--algo", "a2c", "--num-steps", "8", "--total-env-steps", "10000"), 4),
    "ppo": (_ENV, (*_SMALL, *_PPO, "--normalize-obs", "--normalize-reward", "--total-env-steps", "10000"), 4),
    "lstm": (
        "fastac.envs.masked:fastac/MaskedCartPole-v1",
        (*_SMALL, *_PPO, "--core", "lstm", "--lstm-size", "16", "--total-env-steps", "5000"),
        3,
    ),
    "evaluation": (
        _ENV,
        (*_SMALL, "--num-steps", "8", "--total-env-steps", "3000", "--eval-every", "300", "--eval-episodes", "20"),
        4,
    ),
    "until": (_ENV, (*_FEW, "--num-steps", "8", "--until-return", "60", "--total-env-steps", "20000"), 3),
    "workers": (_ENV, (*_SMALL, "--num-steps", "8", "--workers", "2", "--total-env-steps", "10000"), 2),
}
# What differs between two runs that did the same.
_APART = {
    *("train_wall_s", "eval_wall_s", "total_wall_s", "wall_s", "solved_wall_s", "sps", "sps_window", "phases"),
    *("sha256", "run_id"),
}
_SUMMED = ("env_steps", "updates", "episodes", "mean_return", "eval_mean_return", "best_eval_mean_return", "ended_by")
_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "open"}


@dataclass(frozen=True, slots=True)
class Whole:
    """A run that nobody killed: what it left, how long it took, and how often it changed its directory."""

    left: dict[str, object]
    took_s: float
    changes: int


def train(kind: str, run_dir: Path) -> int:
    from fastac.cli import main

    env, flags, _ = KINDS[kind]
    return main(["train", env, *flags, "--run-dir", str(run_dir)])


def resume(run_dir: Path) -> int:
    from fastac.cli import main

    return main(["resume", str(run_dir)])


def at_change(number: int, run_dir: Path, work: Callable[[], int]) -> int:
    """Do `work`, but die right before the change to `run_dir` of that number; write down how many there were."""
    seen, is_own = 0, False

    def look(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if is_own or event not in _CHANGES or not str(args[0]).startswith(str(run_dir)):
            return
        if event == "open" and not int(str(args[2] or 0)) & (os.O_WRONLY | os.O_RDWR):
            return
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    code = work()
    is_own = True
    (run_dir.parent / "changes").write_text(str(seen))
    return code


def timeless(tree: object) -> object:
    """Return JSON data without what differs between two runs that did the same."""
    if isinstance(tree, dict):
        return {key: timeless(value) for key, value in tree.items() if key not in _APART}
    return [timeless(item) for item in tree] if isinstance(tree, list) else tree


def left_by(run_dir: Path) -> dict[str, object]:
    """Return all that a run has left in its directory, but for clocks and names."""
    checkpoints = {path.name: _digest(path) for path in (run_dir / "checkpoints").iterdir()}
    rows = {p.name: [timeless(json.loads(x)) for x in p.read_text().splitlines()] for p in run_dir.glob("*.jsonl")}
    summary = json.loads((run_dir / "summary.json").read_text())
    return {
        "names": sorted(p.name for p in run_dir.iterdir()),
        "checkpoints": checkpoints,
        "best": [find_checkpoint(run_dir, "best").name, best_mean_return(run_dir)],
        "summary": {name: summary[name] for name in _SUMMED},
        **rows,
    }


def _digest(checkpoint: Path) -> list[object]:
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()} if checkpoint.is_dir() else {}
    rest = timeless(json.loads(files.get("state.json", b"null")))
    return [sorted(files), rest, hashlib.sha256(files.get("state.safetensors", b"")).hexdigest()]


def make_whole(kind: str, folder: Path) -> Whole:
    run_dir = folder / "run"
    began = time.perf_counter()
    ended = run_forked(partial(at_change, 0, run_dir, partial(train, kind, run_dir)), folder / "own", _TIMEOUT_S)
    took_s = time.perf_counter() - began
    assert ended.code == 0, ended.err
    return Whole(left_by(run_dir), took_s, int((folder / "changes").read_text()))


def judge(kind: str, chance: random.Random, whole: Whole) -> dict[str, object]:
    """Kill a run once or twice, resume it, and say what came of it."""
    with tempfile.TemporaryDirectory() as name:
        folder, run_dir = Path(name), Path(name, "run")
        work: Callable[[], int] = partial(train, kind, run_dir)
        moments: list[str] = []
        for _ in range(chance.choice((1, 1, 1, 2))):
            for _ in range(20):  # until it dies before its end
                ended, moment = _kill(work, run_dir, folder, chance, whole)
                if ended.code == -signal.SIGKILL:
                    moments.append(moment)
                    break
                if moments:
                    if ended.code != 0:  # refused, as it was killed before its first checkpoint
                        return _verdict(kind, moments, *_compare(ended, run_dir, folder, whole))
                    break  # the end was nearer than that
                if ended.code != 0:
                    return _verdict(kind, moments, f"code {ended.code} with no kill: {ended.last_words}", "")
                shutil.rmtree(run_dir)
            work = partial(resume, run_dir)
        ended = run_forked(work, folder / "own", _TIMEOUT_S)
        return _verdict(kind, moments, *_compare(ended, run_dir, folder, whole))


def _kill(
    work: Callable[[], int], run_dir: Path, folder: Path, chance: random.Random, whole: Whole
) -> tuple[Ended, str]:
    if chance.random() < 0.5:
        change = chance.randint(1, whole.changes)
        return run_forked(partial(at_change, change, run_dir, work), folder / "own", _TIMEOUT_S), f"change {change}"
    after_s = chance.uniform(0.0, whole.took_s)
    return run_forked(work, folder / "own", _TIMEOUT_S, after_s), f"{after_s:.2f} s"


def _compare(ended: Ended, run_dir: Path, folder: Path, whole: Whole) -> tuple[str, str]:
    """Return what is wrong, and what came of it."""
    ends = time.monotonic() + _TIMEOUT_S  # a fork server that is still importing sees later that it is alone
    while leftovers := [path.name for path in (folder / "own").glob("pymp-*")]:
        if time.monotonic() > ends:
            return f"left {leftovers}", ""
        time.sleep(0.05)
    lines = [line for line in ended.err.splitlines() if line.startswith("fastac: ")]
    if ended.code == 2 and len(lines) == 1 and "Traceback" not in ended.err:
        if "is complete" in lines[0]:
            return _differences(run_dir, whole), "had ended"
        has_checkpoint = any((run_dir / "checkpoints").glob("step-*"))
        if not has_checkpoint and ("holds no checkpoint yet" in lines[0] or "holds no fastac run" in lines[0]):
            return "", "refused"
    if ended.code != 0:
        return f"code {ended.code}: {ended.last_words}", ""
    return _differences(run_dir, whole), "equal"


def _differences(run_dir: Path, whole: Whole) -> str:
    left, expected = (json.loads(json.dumps(found)) for found in (left_by(run_dir), whole.left))
    other = _other(left, expected)
    return "; ".join(f"{where} is {found!r:.200}, expected {value!r:.200}" for where, found, value in other)


def _other(found: object, expected: object, where: str = "") -> Iterator[tuple[str, object, object]]:
    """Yield where two trees of JSON data differ, and how."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys()):
            yield from _other(found.get(key), expected.get(key), f"{where}/{key}")
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for at, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from _other(one, other, f"{where}/{at}")
    elif found != expected:
        yield where, found, expected


def _verdict(kind: str, moments: list[str], wrong: str, came: str) -> dict[str, object]:
    return {"kind": kind, "killed": moments, "wrong": wrong, "came": came}


def main(argv: Sequence[str] | None = None) -> int:
    """Kill all, write the page; exit 1 if anything came out wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults_kill", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="runs to kill, some twice")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--jobs", type=int, default=2, help="processes that kill")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="of runs")
    parser.add_argument("--output", type=Path, default=_OUTPUT)
    options = parser.parse_args(argv)
    prepare()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        wholes = {kind: make_whole(kind, Path(folder, kind)) for kind in options.kinds}
    kinds = [kind for kind in options.kinds for _ in range(KINDS[kind][2])]
    random.Random(options.seed).shuffle(kinds)

    def do(job: int) -> dict[str, object]:
        kind = kinds[job % len(kinds)]
        row = judge(kind, random.Random(f"{options.seed}-{job}"), wholes[kind])
        print(f"{job}: {kind} killed at {row['killed']}: {row['wrong'] or row['came']}", flush=True)
        return row

    rows = in_shards(options.kills, options.jobs, do)
    page = _page(rows, time.perf_counter() - began)
    return publish(page, rows, options.output)


def _page(rows: list[dict[str, object]], took_s: float) -> str:
    kinds = sorted({str(row["kind"]) for row in rows})
    lines = ["python -m benchmarks.faults_kill", f"{'runs of':<12}{'kills':>7}{'equal':>7}{'refused':>9}{'wrong':>7}"]
    for kind in [*kinds, "all"]:
        own = [row for row in rows if kind in (row["kind"], "all")]
        kills = sum(len(row["killed"]) for row in own if isinstance(row["killed"], list))
        came = Counter("wrong" if row["wrong"] else str(row["came"]) for row in own)
        equal = came["equal"] + came["had ended"]
        lines.append(f"{kind:<12}{kills:>7}{equal:>7}{came['refused']:>9}{came['wrong']:>7}")
    lines += [f"{row['kind']} killed at {row['killed']}: {row['wrong']}" for row in rows if row["wrong"]]
    lines += [f"{took_s:.0f} s", format_machine(describe_machine(torch_threads=1))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
