"""The numbers that environments give in `info` at the end of an episode."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from env_rows import begin, make_row
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from probes import Probe

from fastac.contract import MAX_EXTRAS, VecEnv
from fastac.envs import adapt
from fastac.envs.infos import ENVPOOLS, InfoReader
from fastac.envs.process import ProcessEnvs
from fastac.envs.sync import SyncEnvs

LENGTHS = (2, 3)  # of the episodes of env 0 and 1
STEPS = 14


class Telling(Probe):
    """Episodes of `length` steps that tell all kinds of things, at every step."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int) -> None:
        self._length, self._episode, self._step = length, 0, 0

    def first(self) -> float:
        self._episode += 1
        self._step = 0
        return 0.0

    def step(self, action):
        self._step += 1
        info = {
            "is_success": np.bool_(self._episode % 2 == 0),
            "score": 10 * self._episode + self._step,
            "array": np.array(0.5 * self._length),  # a number in an array without dimensions
            "words": "all went well",
            "vector": np.zeros(3),
            "nan": float("nan"),
            "_private": 1.0,
        }
        if self._episode % 2:
            info["odd"] = self._length
        return self._show(0.0), 1.0, self._step == self._length, False, info


def build(length: int = LENGTHS[0]) -> Telling:
    return Telling(length)


BUILDS = [partial(build, length) for length in LENGTHS]


def make(kind: str) -> VecEnv:
    if kind == "own":
        builds = iter(BUILDS)
        return SyncEnvs(lambda: next(builds)(), [0, 1], "")
    if kind == "async":
        return adapt(AsyncVectorEnv(BUILDS, autoreset_mode=AutoresetMode.NEXT_STEP), np.random.SeedSequence(0))
    return adapt(SyncVectorEnv(BUILDS, autoreset_mode=AutoresetMode(kind)), np.random.SeedSequence(0))


def expected(env: int, episodes: int) -> dict[str, list[float]]:
    """By hand: what the first episodes of an environment end with."""
    numbers, length = range(1, episodes + 1), LENGTHS[env]
    return {
        "is_success": [float(k % 2 == 0) for k in numbers],
        "score": [10.0 * k + length for k in numbers],
        "array": [0.5 * length] * episodes,
        "odd": [float(length) for k in numbers if k % 2],
    }


@pytest.mark.parametrize("kind", ["own", "async", *(mode.value for mode in AutoresetMode)])
def test_every_mode_gives_the_numbers_of_ended_episodes_and_only_those(kind: str) -> None:
    envs = make(kind)
    begin(envs)
    found: list[dict[str, list[float]]] = [{}, {}]
    episodes = [0, 0]
    for _ in range(STEPS):
        row = make_row(envs)
        envs.step(np.zeros(2, np.int64), row)
        ended = row.terminated | row.truncated
        assert ended.any() or not envs.extras
        for key, values in envs.extras.items():
            assert not (np.isfinite(values) & ~ended).any()
            for env in np.flatnonzero(np.isfinite(values)):
                found[env].setdefault(key, []).append(float(values[env]))
        for env in np.flatnonzero(ended):
            episodes[env] += 1
    envs.close()
    assert min(episodes) >= 3
    assert found == [expected(0, episodes[0]), expected(1, episodes[1])]


def test_processes_give_what_they_give_here() -> None:
    here = SyncEnvs(build, [0, 1, 2], "")
    there = ProcessEnvs(build, build(), [0, 1, 2], 2, "")
    try:
        seen = []
        for envs in (here, there):
            begin(envs)
            steps = []
            for _ in range(7):
                envs.step(np.zeros(3, np.int64), make_row(envs))
                steps.append({key: values.tolist() for key, values in envs.extras.items()})
            seen.append(steps)
        assert repr(seen[0]) == repr(seen[1])  # as text, where NaN is NaN
        assert [bool(step) for step in seen[0]] == [False, True, False, False, True, False, False]
    finally:
        there.close()


def test_gymnasiums_older_final_infos_are_read() -> None:
    final = np.array([None, {"is_success": True, "score": 2}], dtype=object)
    extras = InfoReader(2).read_batch({"final_info": final, "score": np.array([7, 7])}, np.array([False, True]))
    np.testing.assert_array_equal(extras["score"], [np.nan, 2.0])
    np.testing.assert_array_equal(extras["is_success"], [np.nan, 1.0])


def test_what_a_pool_of_environments_counts_is_no_number_of_the_environments() -> None:
    counted = {"env_id": np.array([0]), "elapsed_step": np.array([12]), "score": np.array([3.0])}
    assert list(InfoReader(1, ENVPOOLS).read_batch(counted, np.array([True]))) == ["score"]
    assert len(InfoReader(1).read_batch(counted, np.array([True]))) == 3  # others may mean something by them


@pytest.mark.parametrize("value", [None, "1.0", [1.0], 1j, 10**400, float("inf"), np.zeros((1, 1)), object()])
def test_what_is_no_finite_number_is_left_alone(value: object) -> None:
    reader, ended = InfoReader(1), np.array([True])
    assert reader.read({0: {"key": value}}) == {}
    assert reader.read_batch({"key": value}, ended) == {}
    boxed = np.empty(1, dtype=object)
    boxed[0] = value
    assert reader.read_batch({"key": boxed}, ended) == {}


@pytest.mark.parametrize("info", [None, [1.0], {5: 1.0, None: 2.0}])
def test_an_info_that_is_no_dict_of_names_is_left_alone(info: object) -> None:
    assert InfoReader(1).read({0: info}) == InfoReader(1).read_batch(info, np.array([True])) == {}


def test_keys_are_bounded_in_number_and_length() -> None:
    reader = InfoReader(1)
    infos = {f"key {k}": float(k) for k in range(100)}
    assert list(reader.read({0: {"x" * 65: 1.0, "": 1.0, **infos}})) == [f"key {k}" for k in range(MAX_EXTRAS)]
    assert reader.read({0: {"key 99": 1.0}}) == {}
    assert list(reader.read({0: {"key 3": 1.0}})) == ["key 3"]
