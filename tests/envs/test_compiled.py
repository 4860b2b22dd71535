"""Compiled environments: the step contract, streams, states, other code's interfaces, and the sentences of mistakes."""

from __future__ import annotations

import errno
import math
import os
import pickle
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from pathlib import Path

import grid_world
import gymnasium as gym
import numba
import numpy as np
import pytest
from env_rows import begin, draw_actions, exit_with_parent, make_row
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from numba.core.caching import IndexDataCacheFile
from run_support import spawn

import fastac
from fastac.config import EnvConfig
from fastac.contract import EnvFailure, VecEnv
from fastac.envs import adapt, has_compiled, make_vec, name_env
from fastac.envs.compiled import CompiledEnv, CompiledVectorEnv, compiling, registry, trial
from fastac.envs.compiled.adapter import CompiledEnvs
from fastac.envs.compiled.fingerprint import hash_env
from fastac.envs.compiled.single import PlainEnv
from fastac.envs.compiled.streams import draw, make_streams
from fastac.kernels.program import Program

GRID = "tests/GridWorld-v0"


def build(env_id: str = GRID, num_envs: int = 7, seed: int = 0, vectorization: str = "compiled", **kwargs) -> VecEnv:
    return make_vec(EnvConfig(env_id, num_envs, vectorization, env_kwargs=kwargs), np.random.SeedSequence(seed))


def of(env: CompiledEnv, num_envs: int = 7, seed: int = 0) -> CompiledEnvs:
    return CompiledEnvs(env, num_envs, np.random.SeedSequence(seed), "Grid")


# --- the step ------------------------------------------------------------------------------------------


def play_plainly(env: CompiledEnv, num_envs: int, seed: int, actions: np.ndarray) -> dict[str, np.ndarray]:
    """Play as the compiled loop does, in plain Python: the readable twin."""
    streams = make_streams(np.random.SeedSequence(seed).generate_state(num_envs, np.uint64))
    states, ages, done = np.zeros((num_envs, env.state_size)), np.zeros(num_envs, int), np.zeros(num_envs, bool)
    for i in range(num_envs):
        env.reset(draw(streams[i], env.reset_draws), states[i])
    rows: dict[str, list[list[object]]] = {name: [] for name in ("obs", "reward", "terminated", "truncated", "start")}
    for action in actions:
        row: dict[str, list[object]] = {name: [] for name in rows}
        for i in range(num_envs):
            reward, terminated, truncated, start = 0.0, False, False, bool(done[i])
            if done[i]:
                env.reset(draw(streams[i], env.reset_draws), states[i])
                ages[i] = 0
            else:
                reward, terminated = env.step(states[i], int(action[i]), draw(streams[i], env.step_draws))
                ages[i] += 1
                truncated = env.max_episode_steps is not None and ages[i] >= env.max_episode_steps
            done[i] = terminated or truncated
            out = np.zeros(env.obs_size, np.float32)
            env.observe(states[i], out)
            for name, value in zip(rows, (out, reward, terminated, truncated, start), strict=True):
                row[name].append(value)
        for name in rows:
            rows[name].append(row[name])
    return {name: np.array(each) for name, each in rows.items()}


@pytest.mark.parametrize("limit", [1, 20, None])
def test_a_compiled_step_is_the_plain_one(limit: int | None) -> None:
    declared = grid_world.declare(limit)
    envs = of(declared)
    begin(envs)
    actions = draw_actions(envs, 100)
    found = exit_with_parent(envs, actions)
    expected = play_plainly(declared, 7, 0, actions)
    for name, value in expected.items():
        np.testing.assert_array_equal(getattr(found, name), value.astype(getattr(found, name).dtype), err_msg=name)
    np.testing.assert_array_equal(found.valid, ~found.start)
    assert found.terminated.any() or limit == 1
    assert found.truncated.any() == (limit is not None)
    assert not found.life_lost.any(), "only environments with lives write it"


def test_both_flags_may_be_set_and_discrete_actions_are_those_of_the_space() -> None:
    envs = of(
        CompiledEnv(_start, _end_at_three, _show, 1, Box(-9, 9, (1,)), Discrete(3, start=-1), max_episode_steps=3)
    )
    begin(envs)
    actions = draw_actions(envs, 8)  # a policy counts from 0
    found = exit_with_parent(envs, actions)
    assert found.terminated[:, 0].tolist() == found.truncated[:, 0].tolist() == [False, False, True, False] * 2
    assert found.obs[:, 0, 0].tolist() == [1, 2, 3, 0] * 2
    np.testing.assert_array_equal(found.start[:, 0], [False, False, False, True] * 2)
    np.testing.assert_array_equal(found.reward, np.where(found.valid, actions - 1, 0))


def _start(draws, state):
    state[0] = 0.0


def _end_at_three(state, action):
    state[0] += 1.0
    return action, state[0] == 3.0


def _show(state, out):
    out[0] = state[0]


def test_prepared_steps_joined_to_a_program_give_the_same_bits() -> None:
    stepped, prepared = build(), build()
    np.testing.assert_array_equal(begin(stepped), begin(prepared))
    actions = draw_actions(stepped, 30)
    expected = exit_with_parent(stepped, actions)
    rows = [make_row(prepared) for _ in actions]
    assert isinstance(prepared, CompiledEnvs)
    calls = [prepared.prepare_step(action, row) for action, row in zip(actions, rows, strict=True)]
    Program.join(calls)()
    prepared.check()
    for name in ("obs", "start", "reward", "terminated", "truncated", "valid"):
        np.testing.assert_array_equal(np.stack([getattr(row, name) for row in rows]), getattr(expected, name))


def test_a_second_reset_goes_on_with_the_streams_and_a_new_seed_begins_others() -> None:
    env, twin = build("CartPole-v1"), build("CartPole-v1")
    first, second = begin(env), begin(env)
    assert not np.isin(second, first).any()
    np.testing.assert_array_equal(begin(twin), first)
    twin.reseed(np.random.SeedSequence(5))
    np.testing.assert_array_equal(begin(twin), begin(build("CartPole-v1", seed=5)))
    # A reset in the middle of episodes forgets which have ended.
    exit_with_parent(env, draw_actions(env, 60))
    begin(env)
    row = make_row(env)
    env.step(np.zeros(7, np.int64), row)
    assert row.valid.all() and not row.start.any()


def _reach(state, action):
    state[0], state[1] = action[0], action[1]
    return action[0] + action[1], False


def _show_two(state, out):
    out[0], out[1] = state[0], state[1]


def _zero_two(draws, state):
    state[0] = state[1] = 0.0


BOUNDED = CompiledEnv(
    _zero_two,
    _reach,
    _show_two,
    2,
    Box(-9, 9, (2,)),
    Box(np.array([-1, 0], np.float32), np.array([1, 4], np.float32)),
)


@pytest.mark.parametrize("squashes", [False, True])
def test_actions_of_a_box_are_clipped_or_squashed_as_those_of_other_environments(squashes: bool) -> None:
    envs = CompiledEnvs(BOUNDED, 5, np.random.SeedSequence(0), "Box", squashes)
    begin(envs)
    actions = np.concatenate([draw_actions(envs, 40), np.full((1, 5, 2), 50.0, np.float32)])
    found = exit_with_parent(envs, actions).obs
    from fastac.envs.spaces import map_actions

    expected = np.stack([map_actions(envs.single_action_space)(action) for action in actions])
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=3e-7)
    if not squashes:
        np.testing.assert_array_equal(found, expected)
    row = make_row(envs)
    envs.step(np.full((5, 2), np.nan, np.float32), row)
    assert np.isnan(row.obs).all() and np.isnan(row.reward).all()  # which the rollout's check names


# --- random streams --------------------------------------------------------------------------------------


def test_streams_are_those_of_javas_splittable_random() -> None:
    # SplitMix64 with its default step, from 0: the reference outputs of its authors' program.
    stream = np.array([0, np.uint64(0x9E3779B97F4A7C15).astype(np.int64)])
    words = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert draw(stream, 3).tolist() == [(word >> 11) / 2**53 for word in words]


def test_compiled_draws_are_uniform_and_differ_among_environments() -> None:
    def reset(draws, state):
        for k in range(8):
            state[k] = draws[k]

    def observe(state, out):
        for k in range(8):
            out[k] = state[k]

    def step(state, action):
        return 0.0, True

    envs = of(CompiledEnv(reset, step, observe, 8, Box(0, 1, (8,)), Discrete(1), reset_draws=8), num_envs=5000)
    found = np.concatenate([begin(envs), begin(envs)]).astype(np.float64)
    assert (found >= 0).all() and (found < 1).all()
    np.testing.assert_allclose(found.mean(axis=0), 0.5, atol=0.012)  # 4 standard errors
    np.testing.assert_allclose(found.var(axis=0), 1 / 12, atol=0.004)
    assert len(np.unique(found)) > 0.99 * found.size
    correlation = np.corrcoef(found.T) - np.eye(8)
    assert np.abs(correlation).max() < 0.045
    assert len({int(step) for step in make_streams(range(1000))[:, 1]}) == 1000  # no stream is a part of another


# --- states ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", [GRID, "CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0"])
def test_continuation_is_bit_equal(env_id: str) -> None:
    env, fresh = build(env_id), build(env_id, seed=9)
    begin(env)
    begin(fresh)
    actions = draw_actions(env, 337)
    exit_with_parent(env, actions[:137])
    fresh.set_state(env.get_state())
    exit_with_parent(env, actions[137:]).assert_equal(exit_with_parent(fresh, actions[137:]))
    np.testing.assert_array_equal(begin(env), begin(fresh))


def test_a_state_from_before_the_first_reset_still_seeds() -> None:
    env, other = build(), build()
    other.set_state(env.get_state())
    np.testing.assert_array_equal(begin(env), begin(other))


def test_impossible_states_are_refused() -> None:
    env = build()
    begin(env)
    state = env.get_state()
    changes = {
        "of 'other', expected 'grid_world.step'": {"kind": "other"},
        "'steps' .* are negative": {"steps": np.full(7, -1)},
        "'state' .* expected an array": {"state": np.zeros((6, 2))},
    }
    for words, change in changes.items():
        with pytest.raises(ValueError, match=words):
            env.set_state({**state, "compiled": {**state["compiled"], **change}})
    with pytest.raises(ValueError, match="has no part 'compiled'"):
        env.set_state(build("CartPole-v1", vectorization="native").get_state())
    with pytest.raises(ValueError, match="has no part 'env'"):
        build("CartPole-v1", vectorization="native").set_state(state)


def test_a_forged_state_is_a_failure_and_not_a_wrong_memory_access() -> None:
    env = build()
    begin(env)
    state = env.get_state()
    places = np.full((7, 2), 3e5)
    env.set_state({**state, "compiled": {**state["compiled"], "state": places}})
    row = make_row(env)
    env.step(np.zeros(7, np.int64), row)  # outside of the grid, where this environment does not move
    assert np.isfinite(row.obs).all()


# --- for other code: Gymnasium's interfaces ------------------------------------------------------------------


def test_a_single_environment_passes_gymnasiums_checker() -> None:
    env = gym.make(GRID)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    assert type(env.unwrapped) is PlainEnv


def test_a_registered_id_is_made_single_and_as_a_compiled_batch() -> None:
    env = gym.make(GRID)
    obs, _ = env.reset(seed=3)
    assert env.observation_space.contains(obs)
    for age in range(1, 21):
        _, _, terminated, truncated, _ = env.step(0)  # north, where the wind alone can bring it to the goal
        assert truncated == (age == 20) and not terminated
    with pytest.raises(ValueError, match="the action is 4, expected one of Discrete"):
        gym.make(GRID, disable_env_checker=True).unwrapped.step(4)
    envs = gym.make_vec(GRID, num_envs=3)
    assert type(envs) is CompiledVectorEnv and envs.max_episode_steps == 20
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert gym.make_vec(GRID, num_envs=3, max_episode_steps=5).max_episode_steps == 5
    with pytest.raises(TypeError, match="level"):
        gym.make(GRID, level=3)
    with pytest.raises(TypeError, match="render_mode, but compiled environments render nothing"):
        gym.make(GRID, render_mode="rgb_array")


def test_the_vector_environment_is_one_of_gymnasiums() -> None:
    envs = CompiledVectorEnv(grid_world.declare(), 4)
    with pytest.raises(ValueError, match="call reset before step"):
        envs.step(np.zeros(4, np.int64))
    obs, infos = envs.reset(seed=5)
    assert infos == {} and envs.observation_space.contains(obs)
    again = CompiledVectorEnv(grid_world.declare(), 4)
    np.testing.assert_array_equal(again.reset(seed=[5, 6, 7, 8])[0], obs)
    actions = np.random.default_rng(0).integers(0, 4, (40, 4))
    kept = [envs.step(action) for action in actions]
    copies = [tuple(np.copy(part) for part in again.step(action)[:4]) for action in actions]
    for one, other in zip(kept, copies, strict=True):  # results stay as they were
        for part, copy in zip(one[:4], other, strict=True):
            np.testing.assert_array_equal(part, copy)
    assert [part.dtype.name for part in kept[0][:4]] == ["float32", "float32", "bool", "bool"]
    for wrong, words in (
        (np.zeros(3, np.int64), "shape"),
        (np.full(4, 4), "from 0 to 3"),
        (np.zeros(4), "whole numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            envs.step(wrong)


def test_seeds_of_the_vector_environment() -> None:
    def first(seed: object, envs: CompiledVectorEnv | None = None) -> np.ndarray:
        made = CompiledVectorEnv(_cartpole(), 3) if envs is None else envs
        return made.reset(seed=seed)[0]

    np.testing.assert_array_equal(first(4)[1], first(5)[0])  # environment i has the seed s + i
    np.testing.assert_array_equal(first([9, 9, 9])[0], first([9, 9, 9])[2])
    assert not np.isin(first(None), first(None)).any()
    envs = CompiledVectorEnv(_cartpole(), 3)
    start = first(4, envs)
    assert not np.isin(first(None, envs), start).any(), "without a seed, the streams go on"
    first(4, envs)
    mixed = first([4, None, None], envs)
    np.testing.assert_array_equal(mixed[0], start[0])
    assert not np.isin(mixed[1:], start).any()
    with pytest.raises(ValueError, match="2 numbers, expected one for each of 3"):
        first([1, 2], envs)


def _cartpole() -> CompiledEnv:
    from fastac.envs.compiled.cartpole import cartpole

    return cartpole()


def test_a_mask_resets_a_part_of_the_vector_environment() -> None:
    envs = CompiledVectorEnv(_cartpole(), 3, max_episode_steps=2)
    with pytest.raises(ValueError, match="reset_mask was given to the first reset, expected none"):
        envs.reset(seed=0, options={"reset_mask": np.array([True, False, False])})
    envs.reset(seed=0)
    envs.step(np.ones(3, np.int64))
    before, _, _, truncated, _ = envs.step(np.ones(3, np.int64))
    assert truncated.all()
    obs, _ = envs.reset(options={"reset_mask": np.array([True, False, False])})
    np.testing.assert_array_equal(obs[1:], before[1:])
    assert np.abs(obs[0]).max() <= 0.05
    _, reward, _, _, _ = envs.step(np.ones(3, np.int64))
    assert reward.tolist() == [1.0, 0.0, 0.0]  # the others were still to be reset
    with pytest.raises(ValueError, match="a boolean array of 3 with at least one True"):
        envs.reset(options={"reset_mask": np.zeros(3, np.bool_)})


def test_vector_environment_continues_from_a_state() -> None:
    envs = CompiledVectorEnv(grid_world.declare(), 3)
    envs.reset(seed=0)
    envs.step(np.zeros(3, np.int64))
    other = CompiledVectorEnv(grid_world.declare(), 3)
    other.set_state(envs.get_state())
    for action in np.random.default_rng(0).integers(0, 4, (30, 3)):
        for one, two in zip(envs.step(action)[:4], other.step(action)[:4], strict=True):
            np.testing.assert_array_equal(one, two)


def test_stable_baselines3_trains_on_a_registered_id() -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_util import make_vec_env

    envs = make_vec_env(GRID, n_envs=2, seed=0)
    sb3.PPO("MlpPolicy", envs, n_steps=16, batch_size=16, n_epochs=1, device="cpu").learn(64)
    envs.close()


# --- from fastac -------------------------------------------------------------------------------------------


def test_it_is_chosen_where_there_is_one_and_named() -> None:
    for vectorization in ("auto", "compiled"):
        env = build("CartPole-v1", num_envs=1, vectorization=vectorization)
        assert isinstance(env, CompiledEnvs) and env.description == "compiled (CartPole-v1)"
    assert build(vectorization="auto").description == f"compiled ({GRID})"
    assert build("CartPole-v1", vectorization="native").description == "native (CartPoleVectorEnv)"
    assert build("CartPole-v1", vectorization="sync").description == "sync (as asked)"
    assert build(vectorization="sync", num_envs=2).single_action_space == Discrete(4)


def test_a_vector_environment_that_is_given_is_stepped_without_gymnasiums_interface() -> None:
    envs = adapt(CompiledVectorEnv(grid_world.declare(), 7, name="mine"), np.random.SeedSequence(0))
    assert isinstance(envs, CompiledEnvs) and envs.description == "compiled (mine)"
    np.testing.assert_array_equal(begin(envs), begin(build()))


@pytest.mark.parametrize(
    ("env_id", "kwargs", "is_offered"),
    [
        ("CartPole-v0", {}, True),
        ("CartPole-v1", {"sutton_barto_reward": True, "max_episode_steps": 7}, True),
        ("CartPole-v1", {"max_episode_steps": -1}, True),
        ("CartPole-v1", {"max_episode_steps": 0}, False),
        ("CartPole-v1", {"disable_env_checker": True}, False),
        ("Pendulum-v1", {"g": 9.81}, True),
        ("MountainCar-v0", {"goal_velocity": 0.01}, True),
        ("Acrobot-v1", {}, True),
        ("Acrobot-v1", {"g": 1.0}, False),
        ("FrozenLake-v1", {}, False),
        (GRID, {"max_episode_steps": 3}, True),
    ],
)
def test_it_is_offered_for_arguments_that_it_takes(
    env_id: str, kwargs: dict[str, object], is_offered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastac.envs.compiled.batch.compile_env", lambda env, name: 0)  # nothing is stepped
    config = EnvConfig(env_id, 2, "compiled", env_kwargs=kwargs)
    assert has_compiled(config) == is_offered
    if not is_offered:
        with pytest.raises(ValueError, match=f"'compiled' but {env_id} has no compiled version"):
            make_vec(config, np.random.SeedSequence(0))
        return
    limit = kwargs.get("max_episode_steps", gym.spec(env_id).max_episode_steps)
    assert make_vec(config, np.random.SeedSequence(0)).max_episode_steps == (None if limit == -1 else limit)


@pytest.mark.parametrize(
    ("env_id", "kwargs"), [("Pendulum-v1", {"g": "x"}), ("MountainCarContinuous-v0", {"goal_velocity": "fast"})]
)
def test_an_argument_of_a_wrong_value_is_refused_in_one_sentence(env_id: str, kwargs: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"env_kwargs is {re.escape(str(kwargs))}, which {env_id} refuses \("):
        make_vec(EnvConfig(env_id, 2, env_kwargs=kwargs), np.random.SeedSequence(0))


def test_an_id_that_someone_has_registered_anew_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    own = gym.envs.registration.EnvSpec("CartPole-v1", "gymnasium.envs.classic_control.acrobot:AcrobotEnv")
    monkeypatch.setitem(gym.registry, "CartPole-v1", own)
    assert build("CartPole-v1").single_action_space.n == 3
    own.entry_point = lambda: gym.make("Acrobot-v1").unwrapped
    assert not has_compiled(EnvConfig("CartPole-v1"))
    wrapped = gym.envs.registration.WrapperSpec("flat", "gymnasium.wrappers:FlattenObservation", {})
    monkeypatch.setitem(gym.registry, "CartPole-v1", replace_spec("Pendulum-v1", (wrapped,)))
    assert not has_compiled(EnvConfig("CartPole-v1"))


def replace_spec(env_id: str, wrappers: tuple[gym.envs.registration.WrapperSpec, ...]) -> gym.envs.registration.EnvSpec:
    spec = gym.spec(env_id)
    return gym.envs.registration.EnvSpec(spec.id, spec.entry_point, additional_wrappers=wrappers)


def test_a_registered_id_is_recorded_with_the_module_that_registers_it() -> None:
    named = name_env(GRID)
    assert (named.env_id, named.kwargs) == (f"grid_world:{GRID}", {})
    spec = gym.spec(GRID)
    assert pickle.loads(pickle.dumps(spec)).vector_entry_point is spec.vector_entry_point


def test_it_trains_in_several_processes(tmp_path) -> None:
    settings = {"num_envs": 8, "num_steps": 8, "total_env_steps": 1024, "eval_episodes": 4, "run_dir": tmp_path / "run"}
    run = fastac.train(f"grid_world:{GRID}", workers=2, **settings)
    assert run.summary["vectorization"] == f"compiled ({GRID})"


# --- mistakes ------------------------------------------------------------------------------------------------


def mistaken(**changes: object) -> CompiledEnv:
    return replace(grid_world.declare(), **changes)


def line_of(function: Callable[..., object], offset: int) -> str:
    code = function.__code__
    return f"test_compiled.py:{code.co_firstlineno + offset}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state_size": 0}, "state_size is 0, expected a whole number of at least 1"),
        ({"step_draws": -1}, "step_draws is -1"),
        (
            {"step_draws": 0},
            r"step is step\(state, action, draws\) at .*grid_world.py:\d+, expected a function of state, a",
        ),
        ({"reset": 3}, "reset is 3, expected a function of draws, state"),
        ({"max_episode_steps": 0}, "max_episode_steps is 0"),
        ({"observation_space": Box(0, 1, (2, 2))}, "observation_space is Box.*expected a float32 Box of one dimension"),
        (
            {"action_space": Box(0, 1, (1,), np.float64)},
            "action_space is Box.*float64.*expected a Discrete or a float32",
        ),
    ],
)
def test_a_wrong_declaration_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mistaken(**changes)


def step_outside(state, action, draws):
    return float(grid_world.MOVES[action + 1, 0]), False


def step_alone(state, action, draws):
    return 1.0


def step_nan(state, action, draws):
    return math.nan, False


def step_seven(state, action, draws):
    return 1.0, 7


def reset_half(draws, state):
    state[0] = 0.0


def observe_half(state, out):
    out[0] = 0.5


def observe_far(state, out):
    out[0] = out[1] = 2.0


@pytest.mark.parametrize(
    ("name", "function", "offset", "words"),
    [
        ("step", step_outside, 1, "raised IndexError: index 4 is out of bounds .* in step_outside"),
        ("step", step_alone, 0, r"returned 1.0, expected \(reward, terminated\)"),
        ("step", step_nan, 0, "returned the reward nan, expected a finite number"),
        ("step", step_seven, 0, "returned terminated 7, expected True or False"),
        ("reset", reset_half, 0, r"wrote the state \[ 0. nan\], expected a number in each of its 2"),
        ("observe", observe_half, 0, "not in Box.*, or leaves a part of out unwritten"),
        ("observe", observe_far, 0, r"wrote \[2. 2.\], which is not in Box\(0.0, 1.0, \(2,\), float32\)"),
    ],
)
def test_mistakes_are_found_before_anything_is_compiled(
    name: str, function: Callable[..., object], offset: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        of(mistaken(**{name: function}))
    assert line_of(function, offset) in str(raised.value) and "\n" not in str(raised.value)


def step_with_a_word(state, action, draws):
    found = [1.0]
    found.append("x")
    return found[0], False


def helper(x):
    return x + 1.0


def step_with_a_helper(state, action, draws):
    return helper(state[0]), False


def step_with_a_format(state, action, draws):
    return float(len(f"{state[0]:.3f}")), False


@pytest.mark.parametrize(
    ("function", "offset", "words"),
    [
        (step_with_a_format, 0, "step_with_a_format, .*format spec in f-strings not supported"),
        (step_with_a_word, 2, "step_with_a_word, .*"),
        (step_with_a_helper, 1, ".*mark the functions that yours calls with @numba.njit"),
    ],
)
def test_what_numba_cannot_compile_is_one_sentence(function: Callable[..., object], offset: int, words: str) -> None:
    with pytest.raises(ValueError, match=f"Grid cannot be compiled: {words}") as raised:
        of(mistaken(step=function))
    message = str(raised.value)
    assert line_of(function, offset) in message and "\n" not in message and len(message) < 400, message


def step_into_a_wall(state, action, draws):
    state[0] += 1.0
    if state[0] == 70.0:
        raise RuntimeError("the wall")
    return 0.0 if state[0] < 280.0 else float(grid_world.MOVES[int(state[0]), 0]), False


@pytest.mark.filterwarnings("error")
def test_an_exception_while_running_names_env_file_and_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_STEPS", 20)
    envs = of(mistaken(step=step_into_a_wall, observe=observe_none, max_episode_steps=None), num_envs=3)
    row, action = make_row(envs), np.zeros(3, np.int64)
    step = envs.prepare_step(action, row)
    for begins, after, words in (
        (0.0, 70, f"raised RuntimeError: the wall in step_into_a_wall, .*{line_of(step_into_a_wall, 3)}"),
        (100.0, 180, f"raised IndexError: index 280 is out of bounds .*, .*{line_of(step_into_a_wall, 4)}"),
    ):
        begin(envs)
        state = envs.get_state()
        places = np.full((3, 2), begins)
        envs.set_state({**state, "compiled": {**state["compiled"], "state": places}})
        Program.join([step] * (after - 1))()
        envs.check()
        Program.join([step] * 5)()  # the calls after the failure do nothing
        with pytest.raises(EnvFailure, match=rf"^env 0 \(Grid\) {words}\.$"):
            envs.check()


def observe_none(state, out):
    out[0] = out[1] = 0.0


# --- the disk cache --------------------------------------------------------------------------------------------


def test_the_hash_sees_helpers_constants_and_what_functions_enclose() -> None:
    def declared(factor: float = 2.0, power: int = 1, table: tuple[float, ...] = (1.0, 2.0)) -> CompiledEnv:
        numbers = np.array(table)

        def inner(x):
            return x**power

        def step(state, action, draws):
            return factor * inner(numbers[0]), False

        return mistaken(step=step)

    hashes = [
        hash_env(env)
        for env in (
            declared(),
            declared(factor=3.0),
            declared(power=2),
            declared(table=(1.5, 2.0)),
            mistaken(observation_space=Box(0, 2, (2,))),
            mistaken(state_size=3),
            mistaken(reset_draws=2),
            grid_world.declare(),
        )
    ]
    assert None not in hashes and len(set(hashes)) == len(hashes)
    assert hash_env(declared()) == hashes[0] and hash_env(grid_world.declare(7)) == hashes[-1]


SCRIPT = """
import sys
import numpy as np
from gymnasium.spaces import Box, Discrete
import fastac
from fastac.envs.compiled import CompiledEnv, register
LENGTH = 8
def reset(draws, state):
    state[0] = 0.0
def step(state, action):
    state[0] += action
    return 1.0, state[0] >= LENGTH
def observe(state, out):
    out[0] = state[0] / LENGTH
register("Walk-v0", CompiledEnv(reset, step, observe, 1, Box(0, 2, (1,)), Discrete(2), max_episode_steps=20))
if __name__ == "__main__":
    settings = {"num_envs": 4, "num_steps": 4, "total_env_steps": 64, "eval_episodes": 1}
    run = fastac.train("Walk-v0", workers=int(sys.argv[1]), **settings)
    print(run.summary["vectorization"])
"""


def test_a_run_that_began_with_other_environments_is_resumed_with_new_episodes(tmp_path, monkeypatch, caplog) -> None:
    settings = {"num_envs": 8, "num_steps": 8, "hidden_sizes": (8,), "eval": False, "tensorboard": False}
    monkeypatch.setattr(registry, "_can_compile", lambda: False)
    fastac.train("CartPole-v1", **settings, workers=1, total_env_steps=256, run_dir=tmp_path / "run")
    monkeypatch.undo()
    run = fastac.complete(fastac.resume(tmp_path / "run", total_env_steps=512))
    assert run.summary["env_steps"] >= 512 and run.summary["vectorization"] == "compiled (CartPole-v1)"
    assert "their episodes begin anew" in caplog.text


def run_path(path: Path, workers: int, folder: Path) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv[1:] = [str(workers)]
    os.chdir(folder)
    runpy.run_path(str(path), run_name="__main__")


def read_times(folder: Path) -> list[tuple[Path, int]]:
    """Return what is compiled there, and when."""
    return [(path, path.stat().st_mtime_ns) for path in folder.rglob("*.nbc")]


def test_a_script_is_compiled_once_and_again_when_it_has_changed(tmp_path) -> None:
    script, other = tmp_path / "walk.py", SCRIPT.replace("LENGTH = 8", "LENGTH = 9")
    script.write_text(SCRIPT)
    command = [sys.executable, script.name, "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "compiled (Walk-v0)\n"), done.stderr
    assert "Compiling Walk-v0 for this machine" in done.stderr
    (kept,) = read_times(tmp_path)
    for text, number in ((SCRIPT, 1), (other, 2)):
        script.write_text(text)
        process = spawn(run_path, script, 1, tmp_path)
        process.join(300.0)
        said = (tmp_path / "stderr").read_text()
        assert (process.exitcode, (tmp_path / "stdout").read_text()) == (0, "compiled (Walk-v0)\n"), said
        assert kept in read_times(tmp_path) and len(read_times(tmp_path)) == number


def _fill_two(state, out):
    out[0] = out[1] = 1.0


def test_code_that_could_not_be_saved_is_not_that_of_another_declaration(tmp_path, monkeypatch) -> None:
    def fill_up(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def start() -> np.ndarray:
        monkeypatch.setattr(compiling, "_KNOWN", {})  # as in a new process
        return begin(of(replace(one, observe=_fill_two, observation_space=Box(-9, 9, (2,)))))

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    one = CompiledEnv(_start, _end_at_three, _show, 1, Box(-9, 9, (1,)), Discrete(2))
    begin(of(one))
    with monkeypatch.context() as patched:
        patched.setattr(IndexDataCacheFile, "_save_data", fill_up)
        assert (start() == 1.0).all()
    assert (start() == 1.0).all()
    assert len(list(tmp_path.rglob("*.nbc"))) == 2


class Cell(IntEnum):
    WALL = 1


def test_the_hash_sees_changed_globals_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(state, action, draws):
        return helper(state[0]) + Cell.WALL, False

    def declared(function: object, cells: type) -> str | None:
        monkeypatch.setitem(globals(), "helper", function)
        monkeypatch.setitem(globals(), "Cell", cells)
        return hash_env(mistaken(step=step))

    exact, fast = (numba.njit(fastmath=is_fast)(helper) for is_fast in (False, True))
    hashes = [declared(exact, Cell), declared(fast, Cell), declared(exact, IntEnum("Cell", {"WALL": 2}))]
    walls = grid_world.WALLS.copy()
    walls[3, 0] = True
    hashes.append(hash_env(grid_world.declare()))
    monkeypatch.setattr(grid_world, "WALLS", walls)
    hashes.append(hash_env(grid_world.declare()))
    assert None not in hashes and len(set(hashes)) == len(hashes)


def test_what_depends_on_something_unknown_is_compiled_but_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "Cell", object())
    assert hash_env(mistaken(reset=lambda draws, state: Cell)) is None
    monkeypatch.setattr(compiling, "hash_env", lambda env: None)
    env = CompiledEnv(_start, _end_at_three, _show, 1, Box(-9, 9, (1,)), Discrete(2))
    assert compiling.compile_env(env, "Grid") == compiling.compile_env(env, "Grid")
