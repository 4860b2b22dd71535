"""What may stand for an environment: which call builds it, and the name that it is recorded by."""

from __future__ import annotations

import pickle
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import given_envs
import gymnasium as gym
import numpy as np
import pytest
from env_rows import begin, draw_actions, exit_with_parent, make_row
from given_envs import Batch, Counted, HasProcess, Plain, make_leveled, make_many, make_many_leveled, make_one

from fastac.config import OWN_ENVS, EnvConfig
from fastac.contract import VecEnv
from fastac.envs import has_compiled, has_native, make_single, make_vec, name_env
from fastac.envs.source import ScriptEnv

SEED = np.random.SeedSequence(0)


def build(env: object, num_envs: int = 3, vectorization: str = "sync", **kwargs: object) -> VecEnv:
    """Build as a run does, from what is recorded and what is at hand."""
    named = name_env(env)
    config = EnvConfig(named.env_id, num_envs, vectorization, env_kwargs={**named.kwargs, **kwargs})
    return make_vec(config, SEED, given=named.given)


def reward_of(envs: VecEnv) -> set[float]:
    begin(envs)
    rewards = exit_with_parent(envs, draw_actions(envs, 1)).reward
    assert rewards.shape == (1, 3)
    envs.close()
    return set(rewards.flat)


def local() -> gym.Env:
    return Plain(7)


WAYS = [
    (Plain, {}, 1.0, "given_envs:Plain"),
    (Plain, {"level": 4}, 4.0, "given_envs:Plain"),
    ("given_envs:Plain", {"level": 4}, 4.0, "given_envs:Plain"),
    (make_one, {}, 1.0, "given_envs:make_one"),
    ("given_envs:make_one", {}, 1.0, "given_envs:make_one"),
    (make_leveled, {"level": 2}, 2.0, "given_envs:make_leveled"),
    (partial(make_leveled, level=5), {}, 5.0, "given_envs:make_leveled"),
    (partial(make_leveled, 5), {}, 5.0, "<functools:partial(make_leveled)>"),
    (partial(make_leveled, level=np.int64(5)), {}, 5.0, "<functools:partial(make_leveled)>"),
    (lambda: Plain(6), {}, 6.0, "<test_env_sources:lambda>"),
    (lambda level=6: Plain(level), {}, 6.0, "<test_env_sources:lambda>"),
    (Batch, {}, 1.0, "given_envs:Batch"),
    (Batch, {"level": 3}, 3.0, "given_envs:Batch"),
    (make_many, {}, 1.0, "given_envs:make_many"),
    ("given_envs:make_many_leveled", {"level": 8}, 8.0, "given_envs:make_many_leveled"),
    (partial(make_many_leveled, level=8), {}, 8.0, "given_envs:make_many_leveled"),
    (lambda n: Batch(n, 9), {}, 9.0, "<test_env_sources:lambda>"),
    (lambda num_envs=1, level=2: Batch(num_envs, level), {}, 2.0, "<test_env_sources:lambda>"),
    (partial(gym.make_vec, "Given-v0", vectorization_mode="sync"), {}, 1.0, "<functools:partial(make_vec)>"),
    ("Given-v0", {}, 1.0, "given_envs:Given-v0"),
    (gym.spec("Given-v0"), {"level": 2}, 2.0, "given_envs:Given-v0"),
    (gym.make("Given-v0", level=3), {}, 3.0, "given_envs:Given-v0"),
]


@pytest.mark.parametrize(
    ("env", "kwargs", "reward", "recorded"), WAYS, ids=[f"{i}-{way[3]}" for i, way in enumerate(WAYS)]
)
def test_each_way_builds_what_it_says(env: object, kwargs: dict, reward: float, recorded: str) -> None:
    assert name_env(env).env_id == recorded
    assert reward_of(build(env, **kwargs)) == {reward}
    if not recorded.startswith("<"):  # the name is enough, as for `fastac eval`
        arguments = {**name_env(env).kwargs, **kwargs}
        assert reward_of(make_vec(EnvConfig(recorded, 3, "sync", env_kwargs=arguments), SEED)) == {reward}


@pytest.mark.parametrize(("env_id", "module"), OWN_ENVS.items())
def test_fastacs_own_ids_need_no_module(env_id: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(gym.registry, env_id, raising=False)
    monkeypatch.delitem(sys.modules, module, raising=False)
    build(env_id).close()
    assert module in sys.modules
    with pytest.raises(ValueError, match=f"did you mean {env_id}"):
        build(env_id[:-1])


def test_a_made_environment_s_time_limit_is_kept() -> None:
    named = name_env(gym.make("CartPole-v1", max_episode_steps=20))
    assert (named.env_id, named.kwargs, named.given) == ("CartPole-v1", {"max_episode_steps": 20}, None)
    for vectorization in ("sync", "native"):
        envs = build(gym.make("CartPole-v1", max_episode_steps=20), 2, vectorization)
        assert envs.max_episode_steps == 20
        envs.close()


def test_a_made_environment_s_wrappers_are_kept_but_have_no_name() -> None:
    wrapped = gym.wrappers.RescaleObservation(gym.make("Given-v0"), np.zeros(1, np.float32), np.ones(1, np.float32))
    named = name_env(wrapped)
    assert named.env_id == "<Given-v0>" and named.given is not None
    envs = build(wrapped)
    assert begin(envs).min() >= 0.0
    envs.close()


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (Plain(), "env is an environment that was built already, .*Plain.*: give its class"),
        (gym.make_vec("CartPole-v1", 2), "a batch that was built already: give a function that builds it"),
        (5, "env is 5, expected an environment's id, class or function"),
        ([make_one] * 4, "env is a list of 4, expected .*: give one of them, and num_envs=4"),
    ],
)
def test_what_is_no_environment(env: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        name_env(env)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ("given_envs:Plian", r"env_id is 'given_envs:Plian', but 'given_envs' has no 'Plian': did you mean Plain"),
        ("given_envs:zzzz", r"has no 'zzzz': expected a class or function of it"),
        ("given_envs:NOT_A_FUNCTION", r"which is 3, expected a class or function"),
        *((name, "is a part of Python itself: name a module of yours") for name in ("os:abort", "os.path:x", "this:s")),
        ("no_such_module:make", r"'no_such_module' cannot be imported .*: start where it lies, or set PYTHONPATH"),
        ("no_such_package.module:make", r"'no_such_package.module' cannot be imported .* set PYTHONPATH"),
        ("<__main__:make>", r"was given in Python and cannot be imported: give it again there, as env=\.\.\."),
        (lambda n: Plain(), r"called with num_envs = 3 and returned .*, expected a gymnasium.vector.VectorEnv"),
        (lambda n: Batch(2), r"returned 2 envs, expected num_envs = 3"),
        (lambda: Batch(3), r"was called for one environment and returned .*: give the function a parameter num_envs"),
        (
            lambda env_id, seed, idx: Plain(),
            r"lambda> takes env_id and idx, expected a function of no arguments that returns one environment, or one "
            "with a parameter num_envs: give it the rest as env_kwargs",
        ),
        (lambda num_envs, level: Batch(num_envs), r"takes num_envs and level, expected a function of no arguments"),
        (lambda: 3, r"was called for one environment and returned 3, expected a gymnasium.Env"),
    ],
)
def test_what_does_not_go_is_one_sentence(env: object, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        build(env)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import no_such_package", "(ModuleNotFoundError: No module named 'no_such_package')."),
        ("raise ValueError('state_size is 0.')", "(ValueError: state_size is 0)."),
    ],
)
def test_a_module_that_is_found_and_fails_gets_no_advice_where_to_start(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_envs.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=f"'failing_envs' cannot be imported {re.escape(says)}$"):
        build("failing_envs:make")


def test_a_batch_is_given_its_seed_where_it_takes_one() -> None:
    seeds = []

    def make(num_envs: int, seed: int) -> gym.vector.VectorEnv:
        seeds.append(seed)
        return Batch(num_envs)

    for entropy in (0, 0, 1):
        named = name_env(make)
        make_vec(EnvConfig(named.env_id, 2), np.random.SeedSequence(entropy), given=named.given).close()
    assert seeds[0] == seeds[1] != seeds[2]
    assert all(0 <= seed < 2**31 - 1 for seed in seeds)


def test_no_more_are_open_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for vectorization, num_envs, most in (
        ("sync", 1, 1),
        ("auto", 1, 1),
        ("sync", 3, 3),
        ("auto", 3, 3),
        ("process", 2, 1),
    ):
        Counted.now = Counted.most = Counted.made = 0
        envs = build(Counted, num_envs, vectorization)
        assert Counted.most == most, (vectorization, num_envs)  # those in other processes are not counted here
        begin(envs)
        envs.close()
        assert Counted.now == 0
    Counted.now = Counted.made = 0
    build(Counted, 3, "sync").close()
    assert Counted.made == 3, "what was looked at first is one of them"


def test_environments_may_have_processes_of_their_own() -> None:
    envs = build(HasProcess, 2, "process")
    begin(envs)
    assert exit_with_parent(envs, draw_actions(envs, 7)).valid.any()
    envs.close()


def test_what_processes_cannot_have_stays_here_and_a_caution_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fastac.envs.trial.measure_step_us", lambda *_: 900.0)
    monkeypatch.setattr("fastac.envs.make.count_cores", lambda: 2)
    envs = build(lambda: Plain(), 2, "auto")
    assert envs.description == "sync (other processes cannot have them)"
    (caution,) = envs.cautions
    assert caution.startswith("the environments are stepped in this process: other processes cannot have it, ")
    envs.close()
    with pytest.raises(ValueError, match="vectorization 'process' cannot send the environment to its workers"):
        build(lambda: Plain(), 2, "process")


def test_what_a_notebook_defines_stays_here_and_the_caution_says_how_it_would_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fastac.envs.trial.measure_step_us", lambda *_: 900.0)
    monkeypatch.setattr("fastac.envs.make.count_cores", lambda: 2)
    main = ModuleType("__main__")
    main.InNotebook = InNotebook
    monkeypatch.setattr(InNotebook, "__module__", "__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    envs = build(InNotebook, 2, "auto")
    assert envs.description == "sync (other processes cannot have them)"
    assert envs.cautions == (
        "the environments are stepped in this process: other processes cannot import what a notebook or a console "
        "defines: put it in a module, as with %%writefile",
    )
    envs.close()


class InNotebook(Plain):
    """Stands in for what is defined in a notebook."""


def test_an_id_is_sent_with_what_it_is_registered_as() -> None:
    given = name_env("Given-v0").given
    assert pickle.loads(pickle.dumps(given)).entry_point is Plain
    gym.register("Local-v0", lambda: Plain())
    try:
        named = name_env("Local-v0")
        assert named.given == ScriptEnv("Local-v0")
        assert b"__main__" in pickle.dumps(named.given), "who gets this imports the script that registers it"
        assert make_vec(EnvConfig(named.env_id, 2, "sync"), SEED, given=named.given).num_envs == 2
    finally:
        del gym.registry["Local-v0"]


def test_a_single_one_can_be_filmed() -> None:
    for env_id in ("given_envs:Plain", "given_envs:Given-v0"):
        env = make_single(EnvConfig(env_id), "rgb_array")
        env.reset(seed=0)
        assert env.render().shape == (16, 16, 3)
    with pytest.raises(ValueError, match="builds batches of environments, and only a single one can be rendered"):
        make_single(EnvConfig("given_envs:make_many"), "rgb_array")


def test_kwargs_that_its_batch_does_not_take_make_single_ones() -> None:
    for kwargs, is_native in (({"max_episode_steps": 30}, True), ({"disable_env_checker": True}, False)):
        config = EnvConfig("CartPole-v1", 8, env_kwargs=kwargs)
        assert has_native(config) == is_native
        assert has_compiled(config) == is_native
        envs = make_vec(config, SEED)
        assert envs.description.startswith("compiled" if is_native else "sync")
        envs.close()


def test_rows_of_a_class_are_those_of_its_id() -> None:
    traces = []
    for env in ("given_envs:Plain", given_envs.Plain, lambda num_envs: Batch(num_envs)):
        envs = build(env)
        begin(envs)
        row = make_row(envs)
        envs.step(draw_actions(envs, 1)[0], row)
        traces.append(row.reward.tolist())
        envs.close()
    assert traces[0] == traces[1] == traces[2]


def test_a_module_that_registers_by_a_function_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import gymnasium\n\ndef register_envs(prefix='Late'):\n"
    (tmp_path / "late_envs.py").write_text(
        text + "    gymnasium.register(f'{prefix}-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    (tmp_path / "broken_envs.py").write_text("def register_envs():\n    raise OSError('no display')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    env = make_vec(EnvConfig("late_envs:Late-v0", 2, "sync"), np.random.SeedSequence(0))
    assert begin(env).shape == (2, 4)
    with pytest.raises(ValueError, match=r"broken_envs.register_envs\(\) raised OSError: no display"):
        make_vec(EnvConfig("broken_envs:Any-v0", 2, "sync"), np.random.SeedSequence(0))
