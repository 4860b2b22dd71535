"""Checkpoints: exact round trips, every damage found, nothing lost to a kill or a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import random
import resource
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fastac.config import Config
from fastac.contract import StateTree
from fastac.runs import checkpoint
from fastac.runs.checkpoint import (
    best_mean_return,
    damaged_marks,
    find_checkpoint,
    load_checkpoint,
    mark_best,
    prune_checkpoints,
    save_checkpoint,
)
from fastac.runs.files import RecordError
from fastac.runs.older_checkpoints import upgrade

CONFIG = Config().replace(env_id="Acrobot-v1", hidden_sizes=(8, 4), max_grad_norm=None)
STATE: StateTree = {"model": {"w.0": np.arange(6.0).reshape(2, 3)}, "rng": {"state": 2**127 + 1}, "iteration": 7}


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def steps_of(run_dir: Path) -> list[int]:
    return [int(name.removeprefix("step-")) for name in names(run_dir) if name.startswith("step-")]


@pytest.mark.parametrize(
    "array",
    [
        np.array(3.5),
        np.array(True),
        np.zeros((0, 4), np.float32),
        np.array([True, False]),
        np.array([2**64 - 1, 0], np.uint64),
        np.array([-(2**63)], np.int64),
        np.array([math.nan, math.inf, -0.0, 5e-324]),
        np.arange(24, dtype=np.int16).reshape(2, 3, 4)[:, ::2].transpose(2, 0, 1),
        np.arange(4, dtype=">f4"),
        *(np.array([[1, 0]], dtype) for dtype in ("u1", "u2", "u4", "i1", "i4", "f2")),
    ],
)
def test_array_comes_back_bit_for_bit(tmp_path: Path, array: np.ndarray) -> None:
    back = load_checkpoint(save_checkpoint(tmp_path, 5, {"a": {"b": array}}, CONFIG)).state
    loaded = back["a"]["b"]
    assert isinstance(loaded, np.ndarray)
    assert loaded.dtype == array.dtype.newbyteorder("=")
    assert loaded.shape == array.shape
    assert loaded.tobytes() == array.astype(loaded.dtype).tobytes()
    assert loaded.flags.writeable  # torch.from_numpy warns otherwise


@pytest.mark.parametrize(
    "leaf", [0, -1, 2**127 + 1, 0.1, -0.0, 5e-324, math.inf, -math.inf, "", 'a/"\\\n\ud800é', True, False, None]
)
def test_scalar_comes_back_with_its_type(tmp_path: Path, leaf: int | float | str | bool | None) -> None:
    loaded = load_checkpoint(save_checkpoint(tmp_path, 5, {"leaf": leaf}, CONFIG)).state["leaf"]
    assert type(loaded) is type(leaf)
    assert loaded == leaf
    assert str(loaded) == str(leaf)  # tells -0.0 from 0.0


def test_nan_comes_back(tmp_path: Path) -> None:
    loaded = load_checkpoint(save_checkpoint(tmp_path, 5, {"x": math.nan}, CONFIG)).state["x"]
    assert isinstance(loaded, float)
    assert math.isnan(loaded)


def test_tensors_empty_branches_config_and_counter_come_back(tmp_path: Path) -> None:
    weight = torch.arange(6.0, requires_grad=True).reshape(2, 3).t()
    state: StateTree = {"a": {}, "b": {"c": {}, "net.0.weight": weight, "": np.ones(1)}, "__metadata__x": 1}
    path = save_checkpoint(tmp_path, 123_456, state, CONFIG)
    assert path == tmp_path / "checkpoints" / "step-000000123456"
    loaded = load_checkpoint(path, "Acrobot-v1")
    assert loaded.config == CONFIG
    assert loaded.env_steps == 123_456
    branch = loaded.state["b"]
    assert loaded.state["a"] == {}
    assert branch["c"] == {}
    assert branch[""].tolist() == [1.0]
    assert torch.equal(torch.from_numpy(branch["net.0.weight"]), weight.detach())


def test_loaded_state_can_be_saved_again(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path, 1, STATE, CONFIG)
    second = save_checkpoint(tmp_path, 2, load_checkpoint(first).state, CONFIG)
    assert (first / "state.safetensors").read_bytes() == (second / "state.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("state", "culprit"),
    [
        ({"a": {"x/y": 1}}, "x/y"),
        ({"a": {1: 2}}, "1"),
        ({"a": {"b": [1, 2]}}, "a/b"),
        ({"a": {"b": np.float32(1)}}, "a/b"),
        ({"a": {"b": np.array(["s"])}}, "a/b"),
        ({"a": {"b": np.array([None])}}, "a/b"),
        ({"a": {"b": np.array([1j])}}, "a/b"),
        ({"a": {"b": torch.ones(1, dtype=torch.bfloat16)}}, "a/b"),
    ],
)
def test_what_cannot_be_saved_is_refused_by_name(tmp_path: Path, state: StateTree, culprit: str) -> None:
    with pytest.raises(ValueError, match=culprit):
        save_checkpoint(tmp_path, 5, state, CONFIG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_every_flipped_byte_and_every_truncation_is_found(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path, 5, STATE, CONFIG)
    file, whole, rng = path / name, (path / name).read_bytes(), random.Random(0)
    for position in {0, len(whole) - 1, *rng.sample(range(len(whole)), min(150, len(whole)))}:
        flipped = bytes([whole[position] ^ (1 << rng.randrange(8))])
        file.write_bytes(whole[:position] + flipped + whole[position + 1 :])
        with pytest.raises(ValueError, match=r"damaged|newer fastac"):
            load_checkpoint(path)
    for length in {0, 1, len(whole) - 1, *rng.sample(range(len(whole)), 40)}:
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"{name} is damaged.*no older good checkpoint"):
            load_checkpoint(path)
    file.write_bytes(whole + b" ")
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        load_checkpoint(path)
    file.write_bytes(whole)
    load_checkpoint(path)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path, 5, STATE, CONFIG)
    (path / name).unlink()
    with pytest.raises(ValueError, match=f"{name} cannot be read: No such file"):
        load_checkpoint(path)


def test_damage_names_the_older_good_checkpoint_and_the_way_back_works(tmp_path: Path) -> None:
    for steps in (1, 2, 3):
        save_checkpoint(tmp_path, steps, STATE, CONFIG)
    last = find_checkpoint(tmp_path, "last")
    for damaged in (last, tmp_path / "checkpoints" / "step-000000000002"):
        (damaged / "state.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"damaged.*step-000000000001 beside it is older and good: delete .*003 to"):
        load_checkpoint(last)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(ValueError, match="not a fastac checkpoint"):
            load_checkpoint(path)


def test_newer_schema_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, STATE, CONFIG)
    body = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**body, "schema": 5}))
    with pytest.raises(ValueError, match=r"newer fastac \(schema 5, this one reads up to 4\): upgrade fastac"):
        load_checkpoint(path)


def test_config_key_this_fastac_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Config, "to_dict", lambda self: {"env": {"no_such_key": 1}})
        path = save_checkpoint(tmp_path, 5, STATE, CONFIG)
    with pytest.raises(ValueError, match=r"does not fit this fastac.*no_such_key"):
        load_checkpoint(path)


def test_other_environment_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, STATE, CONFIG)
    with pytest.raises(ValueError, match="trained on Acrobot-v1, expected CartPole-v1"):
        load_checkpoint(path, "CartPole-v1")


def test_no_pickle_and_digest_of_arrays(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, STATE, CONFIG)
    body = json.loads((path / "state.json").read_text())
    assert sorted(file.name for file in path.iterdir()) == ["state.json", "state.safetensors"]
    assert body["arrays_sha256"] == hashlib.sha256((path / "state.safetensors").read_bytes()).hexdigest()
    assert body["versions"]["torch"] == torch.__version__
    assert body["config"]["env"]["env_id"] == "Acrobot-v1"


def test_last_best_and_retention(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint yet"):
        find_checkpoint(tmp_path, "last")
    for steps in (10, 20, 30, 40, 10**13):
        save_checkpoint(tmp_path, steps, STATE, CONFIG)
    assert find_checkpoint(tmp_path, "best") == find_checkpoint(tmp_path, "last")
    assert find_checkpoint(tmp_path, "last").name == "step-10000000000000"  # 14 digits, sorted as a number
    best = tmp_path / "checkpoints" / "step-000000000020"
    assert best_mean_return(tmp_path) is None
    mark_best(tmp_path, best, 99.5)
    assert best_mean_return(tmp_path) == 99.5
    prune_checkpoints(tmp_path, 2)
    assert steps_of(tmp_path) == [20, 40, 10**13]
    assert find_checkpoint(tmp_path, "best") == best
    mark_best(tmp_path, find_checkpoint(tmp_path, "last"), 98.0)  # it was evaluated anew, and the other one too
    assert best_mean_return(tmp_path) == 98.0
    prune_checkpoints(tmp_path, 2)
    assert steps_of(tmp_path) == [40, 10**13]


def test_a_checkpoint_is_saved_with_its_mark(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path, 10, {"x": 1}, CONFIG, 7.0)
    save_checkpoint(tmp_path, 20, {"x": 1}, CONFIG)
    assert (find_checkpoint(tmp_path, "best"), best_mean_return(tmp_path)) == (first, 7.0)
    save_checkpoint(tmp_path, 10, {"x": 2}, CONFIG)  # the same policy once more
    assert (find_checkpoint(tmp_path, "best"), best_mean_return(tmp_path)) == (first, 7.0)
    second = save_checkpoint(tmp_path, 20, {"x": 1}, CONFIG, 8)
    assert (find_checkpoint(tmp_path, "best"), best_mean_return(tmp_path)) == (second, 8.0)


def seal_mark(**content: object) -> bytes:
    return checkpoint._seal(content)


@pytest.mark.parametrize(
    "mark",
    [
        *(b"", b"[]", b"{}", b'{"mean_return": 900.0, "number": 9}', b"[" * 100_000),
        *(seal_mark(number=9), seal_mark(mean_return=9.0), seal_mark(mean_return=math.inf, number=9)),
        *(seal_mark(mean_return=9.0, number="9"), seal_mark(mean_return=9.0, number=True)),
    ],
)
def test_a_mark_that_is_not_as_it_was_written_is_none(tmp_path: Path, mark: bytes) -> None:
    path = save_checkpoint(tmp_path, 5, STATE, CONFIG, 1.0)
    last = save_checkpoint(tmp_path, 6, STATE, CONFIG)
    (path / "best.json").write_bytes(mark)
    assert find_checkpoint(tmp_path, "best") == last
    assert best_mean_return(tmp_path) is None
    assert damaged_marks(tmp_path) == [path / "best.json"]
    prune_checkpoints(tmp_path, 1)
    assert steps_of(tmp_path) == [6]


def test_same_steps_again_replaces(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, {"x": 1}, CONFIG)
    path = save_checkpoint(tmp_path, 5, {"x": 2}, CONFIG)
    assert load_checkpoint(path).state == {"x": 2}
    assert names(tmp_path) == [path.name]


def killed_before(operation: int, action: Callable[[], object]) -> bool:
    """Run `action` in a child that is killed before its nth fsync or rename; return whether it got there."""
    child = os.fork()
    if child == 0:
        count = 0

        def armed(original: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal count
                if count == operation:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return original(*args, **kwargs)

            return call

        os.fsync = armed(os.fsync)
        Path.rename, Path.replace = armed(Path.rename), armed(Path.replace)
        try:
            action()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def has_both_or_none(run_dir: Path, steps: int) -> bool:
    """Whether the new checkpoint and its mark are there, or the old ones."""
    best = find_checkpoint(run_dir, "best")
    expected = (2.0, steps) if load_checkpoint(best).state == {"x": 2} else (1.0, 1)
    return (best_mean_return(run_dir), int(best.name[5:17])) == expected


@pytest.mark.parametrize("steps", [1, 2])
def test_kill_at_any_moment_leaves_a_good_checkpoint_with_its_mark(tmp_path: Path, steps: int) -> None:
    kills = 0
    while True:
        run_dir = tmp_path / str(kills)
        run_dir.mkdir()
        save_checkpoint(run_dir, 1, {"x": 1}, CONFIG, 1.0)
        killed = killed_before(kills, partial(save_checkpoint, run_dir, steps, {"x": 2}, CONFIG, 2.0))
        assert load_checkpoint(find_checkpoint(run_dir, "last")).state in ({"x": 1}, {"x": 2})
        assert has_both_or_none(run_dir, steps)
        save_checkpoint(run_dir, steps, {"x": 3}, CONFIG)  # the next save works and tidies
        assert load_checkpoint(find_checkpoint(run_dir, "last")).state == {"x": 3}
        assert names(run_dir) == [f"step-{n:012d}" for n in range(1, steps + 1)]
        if not killed:
            break
        kills += 1
    assert kills == (7 if steps == 1 else 6)  # 5 fsyncs and a rename, one more where it replaces


def test_kill_at_any_moment_leaves_the_mark_or_the_one_before(tmp_path: Path) -> None:
    kills = 0
    while True:
        run_dir = tmp_path / str(kills)
        run_dir.mkdir()
        first = save_checkpoint(run_dir, 1, STATE, CONFIG, 1.0)
        second = save_checkpoint(run_dir, 2, STATE, CONFIG)
        killed = killed_before(kills, partial(mark_best, run_dir, second, 0.5))
        found = find_checkpoint(run_dir, "best"), best_mean_return(run_dir)
        assert found in ((first, 1.0), (second, 0.5))
        save_checkpoint(run_dir, 3, STATE, CONFIG)
        assert not list(run_dir.rglob(".*"))
        if not killed:
            break
        kills += 1
    assert found == (second, 0.5)
    assert kills == 3


def test_leftovers_of_a_killed_save_are_not_checkpoints(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, STATE, CONFIG)
    leftover = path.with_name(".saving-step-000000000009")
    leftover.mkdir()
    (leftover / "state.json").write_text("{")
    assert find_checkpoint(tmp_path, "last") == path
    save_checkpoint(tmp_path, 6, STATE, CONFIG)
    assert not leftover.exists()


@pytest.mark.parametrize("failing", ["state.safetensors", "state.json"])
def test_full_disk_keeps_the_last_good_one(tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = checkpoint.write_durably

    def write(path: Path, data: bytes) -> None:
        if path.name == failing:
            path.write_bytes(data[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        original(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_durably", write)
        with pytest.raises(RecordError, match=r"step-000000000005: No space left on device; there is no earlier"):
            save_checkpoint(tmp_path, 5, STATE, CONFIG)
    assert names(tmp_path) == []
    path = save_checkpoint(tmp_path, 5, STATE, CONFIG)
    monkeypatch.setattr(checkpoint, "write_durably", write)
    for steps in (5, 6):
        with pytest.raises(RecordError, match="the last good checkpoint, step-000000000005, is kept"):
            save_checkpoint(tmp_path, steps, STATE, CONFIG)
    assert names(tmp_path) == [path.name]
    load_checkpoint(path)


def test_failed_exchange_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_checkpoint(tmp_path, 5, {"x": 1}, CONFIG)
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.startswith(".saving-"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(RecordError, match="Input/output error"):
        save_checkpoint(tmp_path, 5, {"x": 2}, CONFIG)
    assert names(tmp_path) == [path.name]
    assert load_checkpoint(path).state == {"x": 1}


def test_file_size_limit_is_one_sentence(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, STATE, CONFIG)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # a real refusal by the system, in mid-file
    try:
        with pytest.raises(RecordError, match=r"File too large; the last good checkpoint, .*, is kept\.$"):
            save_checkpoint(tmp_path, 6, {"x": np.zeros(10_000)}, CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == [path.name]


def test_unwritable_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(RecordError, match="cannot save checkpoint"):
        save_checkpoint(tmp_path, 5, STATE, CONFIG)
    with pytest.raises(RecordError, match="cannot save checkpoint"):
        save_checkpoint(tmp_path / "missing", 5, STATE, CONFIG)


def test_a_state_of_before_there_were_shards_is_brought_into_their_layout() -> None:
    shards = {number: {"reward_normalizer": {}, "collector": number, "envs": None} for number in ("0", "1")}
    first = {**shards["0"], "episode_counter": 7}
    new = {"training": {"model": 1, "trainer": {"learner": 2}, "shards": {**shards, "0": first}}, "run_id": "x"}
    trainer = {"learner": 2, **{name: first[name] for name in ("collector", "episode_counter", "envs")}}
    old = {"training": {"model": 1, "reward_normalizer": {}, "trainer": trainer, "workers": {"1": shards["1"]}}}
    assert upgrade({**old, "run_id": "x"}, 3) == new
    assert upgrade(new, 4) == new
    of_a3c = {"training": {"model": 1, "reward_normalizer": {}, "trainer": {}}}
    assert upgrade(of_a3c, 3) == of_a3c
    assert Config.from_dict({"run": {"workers": 2}}).run.shards == 2
