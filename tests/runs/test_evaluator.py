"""Who plays an evaluation, and where: environments that are kept."""

from contextlib import closing

import gymnasium
import numpy as np
import pytest
import torch
from core_support import CPU
from evaluation_envs import Counting, Stepwise
from evaluation_support import SHORT_LONG, Idle, evaluate

from fastac.build import build_model
from fastac.config import Config, EnvConfig, ModelConfig
from fastac.contract import EnvFailure
from fastac.envs import adapt, make_vec
from fastac.runs.evaluate import _Games
from fastac.runs.evaluator import Request, Stage
from fastac.runs.player import FusedPlayer, ModulePlayer, make_player


def build_players(space, **settings):
    """Return the fast and the readable player of one policy, and observations for them."""
    env = gymnasium.Env()
    env.reset = lambda seed=None, options=None: (np.zeros(5, np.float32), {})
    env.observation_space, env.action_space = gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32), space
    envs = adapt(gymnasium.vector.SyncVectorEnv([lambda: env] * 3), np.random.SeedSequence(0))
    model = build_model(ModelConfig(hidden_sizes=(16, 16), normalize_obs=True, **settings), envs, seed=3)
    with torch.no_grad():
        for p in model.head.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    return FusedPlayer(model, 3), ModulePlayer(model, 3, CPU), torch.randn(3, 5)


@pytest.mark.parametrize("shared_trunk", [True, False])
@pytest.mark.parametrize(
    ("space", "settings"),
    [
        (gymnasium.spaces.Discrete(4), {}),
        (gymnasium.spaces.MultiDiscrete([2, 3]), {}),
        (gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32), {}),
        (gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32), {"dependent_std": True}),
    ],
)
def test_the_fused_player_acts_as_the_module_does(space, settings, shared_trunk):
    fused, module, obs = build_players(space, shared_trunk=shared_trunk, **settings)
    start = torch.zeros(3, dtype=torch.bool)
    for seed in (None, 1, 2):
        noises = [None if seed is None else torch.Generator().manual_seed(seed) for _ in range(2)]
        for player in (fused, module):
            player.begin()
        for _ in range(5):
            obs.copy_(torch.randn(3, 5))  # in the same memory, as environments write
            actions = [player.act(obs, start, noise) for player, noise in zip((fused, module), noises, strict=True)]
            assert np.allclose(*actions, atol=1e-5)


def test_new_weights_are_played_from_the_next_evaluation_on():
    fused, module, obs = build_players(gymnasium.spaces.Discrete(4))
    with torch.no_grad():
        for p in module._policy.parameters():
            p.copy_(torch.randn(p.shape))
    fused.begin()
    start = torch.zeros(3, dtype=torch.bool)
    assert np.array_equal(fused.act(obs, start, None), module.act(obs, start, None))


class Counted(gymnasium.Env):
    """Counts instances, and ends after some steps that its seed says."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    made = steps = 0

    def __init__(self):
        Counted.made += 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(1, 20))
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self._left -= 1
        Counted.steps += 1
        return np.zeros(1, np.float32), 1.0, self._left == 0, False, {}


gymnasium.register("test/Counted-v0", entry_point=Counted)


@pytest.fixture
def counted():
    Counted.made = Counted.steps = 0
    return EnvConfig("test/Counted-v0", 4, "sync")


def test_environments_are_kept_and_each_evaluation_plays_its_own_episodes_in_them(counted):
    config = Config(env=counted)
    with closing(Stage(config, Idle(), None)) as stage:
        first, other, again = (stage.play(Request(at, 7, 7, None, 100)) for at in (1, 2, 1))
        made = Counted.made
        stage.play(Request(3, 7, 7, None, 100))
    assert first.returns.tolist() == again.returns.tolist() != other.returns.tolist()
    assert Counted.made == made
    with closing(Stage(config, Idle(), None)) as new:
        assert new.play(Request(2, 7, 7, None, 100)).returns.tolist() == other.returns.tolist()


def test_an_environment_whose_share_is_played_is_not_stepped(counted):
    with closing(make_vec(counted, np.random.SeedSequence(1))) as envs:
        result = evaluate(Idle(), envs, 4)
    assert len(set(result.lengths.tolist())) > 1
    assert Counted.steps - 50 <= result.lengths.sum() <= Counted.steps  # the trial before took up to 50
    Counted.steps = 0
    with closing(make_vec(counted, np.random.SeedSequence(1))) as envs:
        evaluate(Idle(), envs, 4)
    assert Counted.steps == result.lengths.sum()


@pytest.mark.parametrize("vectorization", ["sync", "process"])
def test_resting_changes_nothing_for_the_others(vectorization):
    def run(rests):
        with closing(make_vec(EnvConfig(SHORT_LONG, 4, vectorization), np.random.SeedSequence(3))) as envs:
            games = _Games(make_player(Idle(), 4, CPU), envs, None, 100)
            row, rows = games._row, []
            envs.reset(row.obs, row.start)
            envs.rest(np.array([rests, False, rests, False]))
            for _ in range(120):
                envs.step(np.zeros(4, dtype=np.int64), row)
                assert not (rests and (row.valid[[0, 2]].any() or row.reward[[0, 2]].any() or row.terminated[0]))
                rows.append([part[[1, 3]].copy() for part in (row.obs, row.reward, row.terminated, row.valid)])
            return rows

    for rested, busy in zip(run(True), run(False), strict=True):
        assert all(map(np.array_equal, rested, busy))


def play_counting(wrap, episodes, breaks=-1, **more):
    """Evaluate a policy on `Counting`; return the result, and the environments' counts after it."""
    envs = Counting(5, breaks)
    model = build_model(ModelConfig(hidden_sizes=(8,)), envs, seed=1)
    with torch.no_grad():
        for p in model.head.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    told = []
    result = evaluate(model, wrap(envs), episodes, tell=lambda *numbers: told.append(numbers), **more)
    return result, envs, told


@pytest.mark.parametrize(
    ("episodes", "more"),
    [
        (5, {}),
        (13, {}),
        (40, {"max_steps": 8}),  # episodes that are cut end a round
        (3, {"goal": 1.0, "most": 31}),  # envs go on from where the rounds before left them
        (4, {"most": 60, "budget": 400}),
    ],
)
def test_blocks_of_compiled_steps_play_what_single_steps_do(episodes, more):
    whole, envs, told = play_counting(lambda envs: envs, episodes, **more)
    single, others, told_singly = play_counting(Stepwise, episodes, **more)
    assert envs.checks == len(told) < len(told_singly) == single.calls and others.checks == 0
    assert told[-1] == told_singly[-1]
    assert np.array_equal(whole.returns, single.returns) and np.array_equal(whole.lengths, single.lengths)
    assert (whole.cut, whole.calls) == (single.cut, single.calls)
    assert np.array_equal(envs._count, others._count), "steps were taken after the last episode"


def test_sampled_actions_are_drawn_step_by_step():
    noises = [torch.Generator().manual_seed(3) for _ in range(2)]
    (first, envs, _), (second, _, _) = (
        play_counting(wrap, 9, noise=noise) for wrap, noise in zip((lambda envs: envs, Stepwise), noises, strict=True)
    )
    assert envs.checks == 0 and np.array_equal(first.returns, second.returns)


@pytest.mark.parametrize("wrap", [lambda envs: envs, Stepwise])
def test_a_number_that_is_not_finite_is_told_with_its_env_and_step(wrap):
    with pytest.raises(EnvFailure, match=r"^env 2 returned .* not finite in step [23]"):
        play_counting(wrap, 5, breaks=2)
