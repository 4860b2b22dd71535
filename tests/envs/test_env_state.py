"""A restored environment goes on bit for bit."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
from env_rows import Saving, begin, draw_actions, exit_with_parent
from probes import ToyChain

from fastac.config import EnvConfig
from fastac.contract import StateLeaf, StateTree, VecEnv
from fastac.envs import adapt, make_vec
from fastac.envs.state import capture, restore

CHAIN = "probes:fastac/ToyChain-v0"
DICT = "probes:fastac/DictReward-v0"  # flattened by a wrapper


def build(env_id: str, vectorization: str, seed: int = 0, num_envs: int = 5) -> VecEnv:
    return make_vec(EnvConfig(env_id, num_envs, vectorization), np.random.SeedSequence(seed))


def through_disk(tree: StateTree | StateLeaf) -> StateTree | StateLeaf:
    """Copy a state as a checkpoint would: arrays by their bytes, the rest through JSON."""
    if isinstance(tree, dict):
        return {key: through_disk(value) for key, value in tree.items()}
    if isinstance(tree, np.ndarray):
        return np.frombuffer(tree.tobytes(), tree.dtype).reshape(tree.shape)
    return json.loads(json.dumps(tree))


@pytest.mark.parametrize(
    ("env_id", "vectorization", "before"),
    [
        ("CartPole-v1", "native", 137),
        ("CartPole-v1", "sync", 137),
        ("CartPole-v1", "process", 137),
        ("Acrobot-v1", "sync", 300),
        ("MountainCar-v0", "sync", 70),
        ("MountainCar-v0", "sync", 200),  # all have just ended
        ("MountainCarContinuous-v0", "sync", 850),
        ("Pendulum-v1", "sync", 70),
        ("FrozenLake-v1", "sync", 40),
        ("Taxi-v4", "sync", 40),
        (CHAIN, "sync", 7),
        (DICT, "sync", 7),
        (DICT, "process", 8),
    ],
)
def test_continuation_is_bit_equal(env_id: str, vectorization: str, before: int) -> None:
    env, fresh = build(env_id, vectorization), build(env_id, vectorization, seed=9)
    begin(env)
    actions = draw_actions(env, before + 300)
    exit_with_parent(env, actions[:before])
    state = env.get_state()
    expected = exit_with_parent(env, actions[before:])
    assert (expected.terminated | expected.truncated).any(), "the test must see an end"
    state = through_disk(state)  # only now: going on must not have changed it
    fresh.set_state(state)
    expected.assert_equal(exit_with_parent(fresh, actions[before:]))
    fresh.set_state(state)  # restoring neither uses up the state nor keeps hold of it
    expected.assert_equal(exit_with_parent(fresh, actions[before:]))
    np.testing.assert_array_equal(begin(fresh), begin(env))  # and the streams of later resets are restored too
    env.close()
    fresh.close()


ROBOTS = ("Ant", "HalfCheetah", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum", "InvertedPendulum", "Walker2d")
OTHER_ROBOTS = [pytest.param(robot, marks=pytest.mark.slow) for robot in ROBOTS]


@pytest.mark.parametrize("robot", ["Hopper", "Pusher", "Reacher", "Swimmer", *OTHER_ROBOTS])
def test_a_robot_goes_on_bit_for_bit(robot: str) -> None:
    pytest.importorskip("mujoco")
    env, fresh = build(f"{robot}-v5", "sync", num_envs=2), build(f"{robot}-v5", "sync", seed=9, num_envs=2)
    begin(env)
    begin(fresh)
    actions = draw_actions(env, 1100)
    exit_with_parent(fresh, actions[:5])  # what is left over of another episode must not matter
    exit_with_parent(env, actions[:33])
    state = env.get_state()
    expected = exit_with_parent(env, actions[33:])
    assert (expected.terminated | expected.truncated).any(), "the test must see an end"
    fresh.set_state(through_disk(state))
    expected.assert_equal(exit_with_parent(fresh, actions[33:]))


def test_native_episode_lengths_are_restored() -> None:
    env, fresh = build("CartPole-v1", "native"), build("CartPole-v1", "native", seed=9)
    begin(env)
    env._env.steps[:] = [0, 100, 493, 494, 495]  # random actions would not get there
    state = env.get_state()
    actions = draw_actions(env, 20)
    expected = exit_with_parent(env, actions)
    assert expected.truncated.sum() == 3
    fresh.set_state(through_disk(state))
    expected.assert_equal(exit_with_parent(fresh, actions))


def test_sync_and_process_share_states() -> None:
    sync, process = build("CartPole-v1", "sync"), build("CartPole-v1", "process", seed=3)
    begin(sync)
    actions = draw_actions(sync, 120)
    exit_with_parent(sync, actions[:60])
    process.set_state(sync.get_state())
    exit_with_parent(sync, actions[60:]).assert_equal(exit_with_parent(process, actions[60:]))
    process.close()


@pytest.mark.parametrize(
    ("env_id", "vectorization"),
    [
        ("CartPole-v1", "native"),
        *((name, "sync") for name in ("CartPole-v1", "FrozenLake-v1", "Taxi-v4", "Pendulum-v1")),
    ],
)
def test_state_before_the_first_reset_still_seeds(env_id: str, vectorization: str) -> None:
    env, other = build(env_id, vectorization), build(env_id, vectorization)
    other.set_state(env.get_state())
    np.testing.assert_array_equal(begin(env), begin(other))


def test_user_vector_env_that_saves_itself() -> None:
    env, fresh = (adapt(Saving([ToyChain, ToyChain]), np.random.SeedSequence(0)) for _ in range(2))
    begin(env)
    actions = draw_actions(env, 60)
    exit_with_parent(env, actions[:3])  # the third step ends an episode: the next row is not valid
    fresh.set_state(env.get_state())
    expected = exit_with_parent(env, actions)
    assert not expected.valid[0].any()
    expected.assert_equal(exit_with_parent(fresh, actions))


def test_unknown_layers_cannot_be_captured() -> None:
    assert build("probes:fastac/Memory-v0", "sync").get_state() is None
    user = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")])
    assert adapt(user, np.random.SeedSequence(0)).get_state() is None


def test_an_environment_whose_attributes_have_other_names_cannot_be_captured() -> None:
    env = gym.make("FrozenLake-v1", disable_env_checker=True)
    assert capture(env) is not None  # new: has none of them yet
    env.reset()
    assert capture(env) is not None
    del env.unwrapped.s
    assert capture(env) is None


def test_a_fickle_passenger_is_restored() -> None:
    env = gym.make("Taxi-v4", fickle_passenger=True, disable_env_checker=True)
    env.reset(seed=0)
    env.unwrapped.fickle_step = True
    state = capture(env)
    env.reset(seed=1)
    env.unwrapped.fickle_step = False
    restore(env, through_disk(state))
    assert env.unwrapped.fickle_step is True


def test_mujoco_logs_what_is_not_about_deprecation(caplog, capfd) -> None:
    mujoco = pytest.importorskip("mujoco")
    build("HalfCheetah-v5", "sync", num_envs=1)
    mujoco.get_mju_user_warning()("compiler attribute is deprecated")
    mujoco.get_mju_user_warning()("Nan in QACC\n")
    assert [record.message for record in caplog.records] == ["MuJoCo: Nan in QACC"]
    assert capfd.readouterr().err == ""


def test_only_the_robots_that_are_known_are_captured() -> None:
    pytest.importorskip("mujoco")
    from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

    class Other(HopperEnv):
        """May have a state of its own."""

    assert capture(Other()) is None and capture(HopperEnv()) is not None


def test_the_state_of_another_robot_is_refused() -> None:
    pytest.importorskip("mujoco")
    hopper, ant = (gym.make(f"{name}-v5", disable_env_checker=True) for name in ("Hopper", "Ant"))
    with pytest.raises(ValueError, match=r"of a \S+HopperEnv, expected a \S+AntEnv: go on with the environments"):
        restore(ant, capture(hopper))
    lake = gym.make("FrozenLake-v1", disable_env_checker=True)
    with pytest.raises(ValueError, match=r"of a \S+HopperEnv, expected a \S+FrozenLakeEnv"):
        restore(lake, capture(hopper))
    with pytest.raises(ValueError, match=r"of a \S+FrozenLakeEnv, expected a \S+HopperEnv"):
        restore(hopper, capture(lake))


def without_kinds(state: dict) -> dict:
    """Return a state as the versions saved it that did not say of what it is."""
    return {depth: {name: part for name, part in layer.items() if name != "kind"} for depth, layer in state.items()}


def test_an_older_state_of_another_robot_is_refused() -> None:
    pytest.importorskip("mujoco")
    hopper, ant = (gym.make(f"{name}-v5", disable_env_checker=True) for name in ("Hopper", "Ant"))
    with pytest.raises(ValueError, match="of another robot, or of another version of MuJoCo"):
        restore(ant, without_kinds(capture(hopper)))
    lake = gym.make("FrozenLake-v1", disable_env_checker=True)
    with pytest.raises(ValueError, match="has no 's': it is of another kind"):
        restore(lake, without_kinds(capture(hopper)))
    with pytest.raises(ValueError, match="has no part 'robot': it is of another kind"):
        restore(hopper, without_kinds(capture(lake)))


@pytest.mark.parametrize("vectorization", ["native", "sync", "process"])
def test_state_of_another_run_is_refused(vectorization: str) -> None:
    state = build("CartPole-v1", "sync" if vectorization == "process" else vectorization).get_state()
    other = build("CartPole-v1", vectorization, num_envs=3)
    with pytest.raises(
        ValueError, match=r"'done' in the saved state is an array \[5\] of bool, expected an array \[3\]"
    ):
        other.set_state(state)
    other.close()


def test_state_of_another_kind_is_refused() -> None:
    state = build("CartPole-v1", "sync").get_state()
    with pytest.raises(ValueError, match="has no part 'env'"):
        build("CartPole-v1", "native").set_state(state)


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_every_generator_of_numpy_goes_on(kind: type[np.random.BitGenerator]) -> None:
    env, fresh = (gym.make("CartPole-v1", disable_env_checker=True) for _ in range(2))
    env.reset(seed=0)
    env.unwrapped.np_random = np.random.Generator(kind(5))
    env.unwrapped.np_random.random(700)
    restore(fresh, through_disk(capture(env)))
    assert fresh.unwrapped.np_random.random(3000).tolist() == env.unwrapped.np_random.random(3000).tolist()


def forged(env_id: str, name: str, value: object) -> tuple[gym.Env, StateTree]:
    """Return an environment, and its state with a part of its innermost layer replaced."""
    env = gym.make(env_id, disable_env_checker=True)
    env.reset(seed=0)
    state = {depth: dict(layer) for depth, layer in capture(env).items()}
    innermost = state[max(state)]
    branch = innermost["rng"] = dict(innermost["rng"])
    (branch if name == "bit_generator" else innermost)[name] = value
    return env, state


@pytest.mark.parametrize("name", ["test", "seed", "default_rng", "Generator", "__class__", "", None, 3])
def test_a_generator_of_another_name_calls_nothing(name: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.random, "test", lambda: pytest.fail("it was called"))
    env, state = forged("CartPole-v1", "bit_generator", name)
    with pytest.raises(ValueError, match=r"the saved random generator is .*, expected one of PCG64, "):
        restore(env, state)


@pytest.mark.parametrize("position", [-1, 625, 10**9, "x"])
def test_a_generator_never_reads_beyond_its_memory(position: object) -> None:
    for kind, size in ((np.random.MT19937, 624), (np.random.Philox, 4)):
        forged_state = kind(1).state
        if size == 4:
            forged_state["buffer_pos"] = position
        else:
            forged_state["state"]["pos"] = position
        env, state = forged("CartPole-v1", "rng", forged_state)
        state[max(state)]["rng"] = forged_state
        with pytest.raises((ValueError, TypeError)):
            restore(env, state)


@pytest.mark.parametrize(
    ("env_id", "name", "value"),
    [
        ("CartPole-v1", "state", np.zeros(3)),
        ("CartPole-v1", "state", np.full(4, np.nan)),
        ("CartPole-v1", "state", np.zeros(4, np.bool_)),
        ("CartPole-v1", "steps_beyond_terminated", "many"),
        ("Pendulum-v1", "last_u", np.zeros(2)),
        ("FrozenLake-v1", "s", 16),
        ("FrozenLake-v1", "s", -1),
        ("FrozenLake-v1", "s", 10**400),
        ("Taxi-v4", "s", 1.5),
    ],
)
def test_a_state_that_an_environment_cannot_be_in_is_refused(env_id: str, name: str, value: object) -> None:
    env, state = forged(env_id, name, value)
    with pytest.raises(ValueError, match=rf"'{name}' in the saved environment state is .*, in which no \w+ can be"):
        restore(env, state)
