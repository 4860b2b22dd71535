"""Environments that raise, return nonsense, hang or die: one sentence, and no process left."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from env_rows import begin, draw_actions, exit_with_parent, make_row
from probes import Probe

from fastac.config import EnvConfig
from fastac.contract import EnvFailure, VecEnv
from fastac.envs import adapt, make_vec, name_env
from fastac.envs.process import ProcessEnvs
from fastac.envs.sync import SyncEnvs
from fastac.processes import WorkerTraceback

SEEDS = [10, 11, 12, 13, 14]


class Broken(Probe):
    """Breaks in a way of choice at its second step, in the environment of a given seed."""

    def __init__(self, how: str, where: int) -> None:
        if how == "build":
            raise RuntimeError("no such track")
        self.how, self.where, self.elapsed, self.seed = how, where, 0, -1

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        self.seed = self.seed if seed is None else seed
        return super().reset(seed=seed)

    def step(self, action: object) -> tuple:
        self.elapsed += 1
        obs, reward, _, _, _ = super().step(action)
        if self.elapsed == 2 and self.seed == self.where:
            if self.how == "raise":
                raise RuntimeError("the wheel came off\nand more")
            if self.how == "hang":
                time.sleep(1000)
            if self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            obs = {"shape": np.zeros(7, np.float32), "dtype": np.array(["x"]), "lists": [[0.0], []]}.get(self.how, obs)
            reward = np.zeros(1) if self.how == "reward" else reward
        return obs, reward, False, False, {}


def in_processes(how: str, where: int, timeout_s: float = 60.0) -> ProcessEnvs:
    return ProcessEnvs(partial(Broken, how, where), Broken("", 0), SEEDS, 2, "", timeout_s=timeout_s)


def step_twice(env: VecEnv) -> None:
    begin(env)
    exit_with_parent(env, draw_actions(env, 1))
    env.step(draw_actions(env, 1)[0], make_row(env))


WAYS = [
    ("raise", "env 3 raised RuntimeError: the wheel came off in step"),
    ("shape", r"env 3 returned an observation of shape \(7,\), expected \(1,\)"),
    ("dtype", r"env 3 returned an observation of dtype <U1, expected float32"),
    ("lists", r"env 3 returned an observation that is no array \(ValueError: .*\)\.$"),
    ("reward", r"env 3 returned a reward of shape \(1,\), expected a number"),
]


@pytest.mark.parametrize(("how", "words"), WAYS)
def test_failures_name_the_env(how: str, words: str) -> None:
    with pytest.raises(EnvFailure, match=words):
        step_twice(SyncEnvs(partial(Broken, how, 13), SEEDS, ""))


@pytest.mark.parametrize(("how", "words"), WAYS[:2])
def test_failures_in_workers_name_the_env(how: str, words: str) -> None:
    env = in_processes(how, 13)
    workers = env.children.pids
    with pytest.raises(EnvFailure, match=words) as failure:
        step_twice(env)
    assert isinstance(failure.value.__cause__, WorkerTraceback)
    assert "Traceback" in str(failure.value.__cause__)
    assert_gone(workers)
    with pytest.raises(EnvFailure, match="closed"):
        env.step(np.zeros(5, np.int64), make_row(env))
    assert env.get_state() is None
    env.close()


def assert_gone(pids: list[int | None]) -> None:
    assert len(pids) == 2
    for pid in pids:
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_build_failure_names_the_env() -> None:
    with pytest.raises(EnvFailure, match=r"env 0 could not be built \(RuntimeError: no such track\)"):
        SyncEnvs(partial(Broken, "build", 0), SEEDS, "")
    with pytest.raises(EnvFailure, match=r"env 0 could not be built \(RuntimeError: no such track\)"):
        in_processes("build", 0)


def test_dead_worker() -> None:
    env = in_processes("die", 11)
    workers = env.children.pids
    with pytest.raises(EnvFailure, match=r"the worker of envs 0 to 1 died \(exit code -9\)"):
        step_twice(env)
    assert_gone(workers)


def test_worker_killed_between_steps() -> None:
    env = in_processes("", 0)
    begin(env)
    workers = env.children.pids
    os.kill(workers[1], signal.SIGKILL)
    env.children[1].process.join()
    with pytest.raises(EnvFailure, match=r"the worker of envs 2 to 4 died \(exit code -9\)"):
        env.step(np.zeros(5, np.int64), make_row(env))
    assert_gone(workers)


@pytest.mark.usefixtures("kills_early")
def test_hanging_worker() -> None:
    env = in_processes("hang", 14, timeout_s=0.5)
    workers = env.children.pids
    with pytest.raises(
        EnvFailure, match=r"the worker of envs 2 to 4 gave no answer for 0.5 s \(raise env_timeout_s if"
    ):
        step_twice(env)
    assert_gone(workers)


def test_interrupt_leaves_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(timeout_s: float, setting: str) -> list:
        raise KeyboardInterrupt

    env = in_processes("", 0)
    workers = env.children.pids
    monkeypatch.setattr(env.children, "receive_within", interrupt)
    with pytest.raises(KeyboardInterrupt):
        begin(env)
    assert_gone(workers)


def test_close_leaves_no_worker() -> None:
    env = in_processes("", 0)
    workers = env.children.pids
    env.close()
    env.close()
    assert_gone(workers)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_process_is_sync(env_id: str) -> None:
    sync, process = (make_vec(EnvConfig(env_id, 5, v), np.random.SeedSequence(7)) for v in ("sync", "process"))
    np.testing.assert_array_equal(begin(sync), begin(process))
    actions = draw_actions(sync, 250)
    trace = exit_with_parent(sync, actions)
    assert (~trace.valid).any()
    trace.assert_equal(exit_with_parent(process, actions))
    np.testing.assert_array_equal(begin(sync), begin(process))
    sync.close()
    process.close()


class BrokenBatch(gym.envs.classic_control.cartpole.CartPoleVectorEnv):
    """A user's batch that breaks in a way of choice."""

    how = ""

    def step(self, action: np.ndarray) -> tuple:
        obs, reward, terminated, truncated, infos = super().step(action)
        if self.how == "raise":
            raise RuntimeError("flat tyre")
        if self.how == "obs":
            obs = obs[:1]  # would broadcast
        if self.how == "reward":
            reward = reward[:1]
        if self.how == "list":
            reward = list(reward)
        return obs, reward, terminated, truncated, infos


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raise", r"the vector env \(BrokenBatch\) raised RuntimeError: flat tyre in step"),
        ("obs", r"the vector env returned an observation of shape \(1, 4\), expected \(3, 4\)"),
        ("reward", r"of shapes \(\(1,\), \(3,\), \(3,\)\), expected"),
        ("list", "the vector env"),
    ],
)
def test_failures_of_a_given_batch(how: str, words: str) -> None:
    batch = BrokenBatch(3)
    batch.how = how
    env = adapt(batch, np.random.SeedSequence(0))
    with pytest.raises(EnvFailure, match=words):
        step_twice(env)


def test_failure_when_tried() -> None:
    gym.register("fastac/Untried-v0", lambda: Broken("raise", 0))
    with pytest.raises(EnvFailure, match="Untried-v0 raised RuntimeError: the wheel came off when it was tried"):
        make_vec(EnvConfig("fastac/Untried-v0", 2), np.random.SeedSequence(0))
    del gym.registry["fastac/Untried-v0"]


class Mistaken(Probe):
    """Gets a method of Gymnasium's wrong, in a way of choice."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, how: str) -> None:
        self.how = how

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> object:
        obs = np.zeros(2, np.float32)  # as many numbers as a reset returns values
        return obs if self.how == "reset" else (obs, {})

    def step(self, action: object) -> object:
        obs = np.zeros(5 if self.how == "shape" else 2, np.float32)
        return (obs, 0.0, False, {}) if self.how == "step" else (obs, 0.0, False, False, {})


class Seedless(Mistaken):
    """Has a reset of long ago."""

    def reset(self) -> tuple:
        return np.zeros(2, np.float32), {}


class Optionless(Mistaken):
    """Has a reset of the days when it had no options."""

    def reset(self, seed: int | None = None) -> tuple:
        return np.zeros(2, np.float32), {}


def of_wrapped(kind: type, how: str) -> gym.Env:
    return gym.wrappers.TimeLimit(kind(how), 9)


def of_plain(kind: type, how: str) -> gym.Env:
    return kind(how)


MISTAKES = [
    (Mistaken, "reset", r": reset\(\) returned one value, expected \(observation, info\)\.$"),
    (
        Mistaken,
        "step",
        r": step\(\) returned 4 values, expected \(observation, reward, terminated, truncated, info\)\.$",
    ),
    (Seedless, "", r": reset\(\) does not take seed and options, expected reset\(\*, seed=None, options=None\)\.$"),
    (Optionless, "", r": reset\(\) does not take options, expected reset\(\*, seed=None, options=None\)\.$"),
    (Mistaken, "shape", r" returned an observation of shape \(5,\), expected \(2,\)\.$"),
]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # Gymnasium's, of the same
@pytest.mark.parametrize("make", [of_plain, of_wrapped])
@pytest.mark.parametrize(("kind", "how", "words"), MISTAKES)
def test_a_mistake_is_told_when_it_is_tried(
    monkeypatch: pytest.MonkeyPatch, make: object, kind: type, how: str, words: str
) -> None:
    monkeypatch.setattr("fastac.envs.make.count_cores", lambda: 2)
    named = name_env(lambda: make(kind, how))
    with pytest.raises(EnvFailure, match="lambda>" + words):
        make_vec(EnvConfig(named.env_id, 2), np.random.SeedSequence(0), given=named.given)


@pytest.mark.parametrize(("kind", "how", "words"), MISTAKES)
def test_a_mistake_of_what_is_not_tried_is_told_in_its_first_step(kind: type, how: str, words: str) -> None:
    with pytest.raises(EnvFailure, match="^env 0" + words):
        step_twice(SyncEnvs(partial(of_wrapped, kind, how), SEEDS, ""))


class TakesApart(Mistaken):
    """Fails with Python's words for what it does itself."""

    def step(self, action: object) -> object:
        _, _ = 1, 2, 3


def test_what_an_environment_raises_itself_keeps_its_words() -> None:
    with pytest.raises(EnvFailure, match=r"env 0 raised ValueError: too many values to unpack .* in step"):
        step_twice(SyncEnvs(partial(of_wrapped, TakesApart, ""), SEEDS, ""))
