"""The user's wrappers: their order, how a line is read, what is refused, and how a wrapped environment is batched."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import FlattenObservation, TimeLimit
from probes import Probe

from fastac.config import EnvConfig, read_wrapper
from fastac.contract import EnvFailure
from fastac.envs import has_compiled, has_native, make_single, make_vec, offered_vectorizations
from fastac.envs.wrappers import name_wrappers

LIMIT = "gymnasium.wrappers:TimeLimit max_episode_steps=7"


class Plus(gym.RewardWrapper):
    """Adds to every reward."""

    def __init__(self, env: gym.Env, amount: float = 1.0) -> None:
        super().__init__(env)
        self.amount = amount

    def reward(self, reward: float) -> float:
        return reward + self.amount


class Times(gym.RewardWrapper):
    """Doubles every reward."""

    def reward(self, reward: float) -> float:
        return 2.0 * reward


def returns_a_number(env: gym.Env) -> int:
    return 3


def raises(env: gym.Env) -> gym.Env:
    raise KeyError("wheel")


class Closing(Probe):
    """Counts how many of it are open."""

    now = 0
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        Closing.now += 1

    def close(self) -> None:
        Closing.now -= 1


NOT_A_FUNCTION = 3


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("a.b:C", ("a.b:C", {})),
        ("a:C.d level=3 name=easy", ("a:C.d", {"level": 3, "name": "easy"})),
        ("a:C 'sizes=[1, 2]' on=true off=False none=None text='\"3\"'", None),
        ("a:C  x=a=b", ("a:C", {"x": "a=b"})),
    ],
)
def test_a_line_is_read_as_a_shell_reads_it(line, read):
    expected = read or ("a:C", {"sizes": [1, 2], "on": True, "off": False, "none": None, "text": "3"})
    assert read_wrapper(line) == expected


def test_the_first_is_the_innermost():
    def first_reward(*wrappers: str) -> float:
        env = make_single(EnvConfig("CartPole-v1", wrappers=wrappers))
        env.reset(seed=0)
        reward = env.step(0)[1]
        env.close()
        return float(reward)

    assert first_reward("test_wrappers:Plus", "test_wrappers:Times") == 4.0  # (1 + 1) * 2
    assert first_reward("test_wrappers:Times", "test_wrappers:Plus") == 3.0
    assert first_reward("test_wrappers:Plus amount=0.5") == 1.5


def test_a_wrapped_environment_is_neither_compiled_nor_native():
    bare, wrapped = EnvConfig("CartPole-v1", 8), EnvConfig("CartPole-v1", 8, wrappers=(LIMIT,))
    assert has_compiled(bare) and has_native(bare)
    assert not has_compiled(wrapped) and not has_native(wrapped)
    assert offered_vectorizations(wrapped) == ("sync", "process")
    envs = make_vec(wrapped, np.random.SeedSequence(0))
    assert envs.description.startswith("sync (") and envs.max_episode_steps == 7
    envs.close()


def test_wrappers_change_the_spaces_and_go_to_other_processes():
    stacked = ("gymnasium.wrappers:FrameStackObservation stack_size=3",)
    for vectorization in ("sync", "process"):
        config = EnvConfig("CartPole-v1", 2, vectorization, wrappers=stacked)
        envs = make_vec(config, np.random.SeedSequence(0), least_processes=2)
        assert envs.single_observation_space.shape == (12,)
        envs.close()
    single = make_single(EnvConfig("CartPole-v1", wrappers=(*stacked, LIMIT)))
    assert isinstance(single, TimeLimit) and single.observation_space.shape == (3, 4)
    single.close()


@pytest.mark.parametrize(
    ("line", "error", "says"),
    [
        ("nothing_here:X", ValueError, "wrapper is 'nothing_here:X', but 'nothing_here' cannot be imported"),
        ("gymnasium.wrappers:TimeLimt", ValueError, "has no 'TimeLimt': did you mean TimeLimit"),
        ("os:abort", ValueError, "'os' is a part of Python itself"),
        ("test_wrappers:NOT_A_FUNCTION", ValueError, "which is 3, expected a class or function"),
        ("test_wrappers:returns_a_number", ValueError, "test_wrappers:returns_a_number returned 3, expected a gymnasi"),
        ("test_wrappers:raises", EnvFailure, r"test_wrappers:raises raised KeyError: 'wheel'"),
        ("test_wrappers:Plus amounts=3", EnvFailure, "test_wrappers:Plus amounts=3 raised TypeError"),
    ],
)
def test_a_wrapper_that_does_not_work_is_one_sentence(line, error, says):
    config = EnvConfig("test_wrappers:Closing", 2, wrappers=("test_wrappers:Plus", line))
    with pytest.raises(error, match=rf"^test_wrappers:Closing cannot be wrapped: .*{says}") as caught:
        make_vec(config, np.random.SeedSequence(0))
    assert error is ValueError or caught.value.__cause__ is not caught.value  # the causes have an end
    assert Closing.now == 0  # what was built is closed again


@pytest.mark.parametrize("vectorization", ["compiled", "native", "envpool"])
def test_batches_cannot_be_wrapped(vectorization):
    with pytest.raises(ValueError, match=rf"^vectorization is '{vectorization}' with wrappers, expected auto"):
        EnvConfig("CartPole-v1", vectorization=vectorization, wrappers=(LIMIT,))


def test_a_function_of_batches_wraps_them_itself():
    config = EnvConfig("given_envs:make_many", 2, wrappers=(LIMIT,))
    with pytest.raises(ValueError, match=r"expected none: given_envs:make_many builds batches"):
        make_vec(config, np.random.SeedSequence(0))


def test_wrappers_given_in_python_are_recorded_by_name():
    limit = partial(TimeLimit, max_episode_steps=7)
    named = name_wrappers([LIMIT, limit, Plus, FlattenObservation])
    home = "gymnasium.wrappers"
    assert named[0] == LIMIT and named[2] == "test_wrappers:Plus"
    assert read_wrapper(named[1]) == (f"{home}.common:TimeLimit", {"max_episode_steps": 7})
    assert read_wrapper(named[3]) == (f"{home}.transform_observation:FlattenObservation", {})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (LIMIT, "expected a list of them"),
        ([3], "wrappers holds 3, expected a class or function"),
        ([lambda env: env], r"wrappers holds <test_wrappers:.*lambda>, which cannot be imported"),
    ],
)
def test_what_cannot_be_recorded_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        name_wrappers(given)
