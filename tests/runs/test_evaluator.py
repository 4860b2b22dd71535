"""Who plays an evaluation, and where: environments that are kept, and a process of its own."""

from contextlib import closing
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from core_support import CPU
from evaluation_envs import Counting, Stepwise
from evaluation_support import SHORT_LONG, Idle, evaluate, make_slow

from fastac.build import build_envs, build_model
from fastac.config import Config, EnvConfig, ModelConfig
from fastac.contract import EnvFailure, WorkerFailure
from fastac.envs import adapt, make_vec
from fastac.processes import Child
from fastac.runs.evaluate import MOST_STEPS, Evaluation, _Games
from fastac.runs.evaluator import _SILENCE_S, ProcessEvaluator, Request, Stage, _Alive
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


class ToldPipe:
    """Stands in for the evaluating process's pipe, and for the clock: what comes, and at which second."""

    def __init__(self, comes):
        self.now_s, self._comes = 0.0, list(comes)

    def poll(self, timeout_s):
        until = self.now_s + timeout_s
        has_come = bool(self._comes) and self._comes[0][0] <= until
        self.now_s = max(self.now_s, self._comes[0][0]) if has_come else until
        return has_come

    def recv(self):
        return self._comes.pop(0)[1]

    def send(self, request):
        pass

    def close(self):
        pass


def stand_in(pipe):
    """Return a child that is nothing but a pipe."""
    process = SimpleNamespace(pid=0, join=lambda _: None, is_alive=lambda: False, exitcode=0, close=lambda: None)
    return Child("the evaluator", process, pipe, pipe, WorkerFailure)


ONE = Request(0, 1, 1, None, MOST_STEPS)
PLAYED = Evaluation(np.array([1.0]), np.array([1]))


@pytest.fixture
def tell(monkeypatch):
    """Return what makes an evaluator, which may not be started again, of what comes from its process and when."""

    def make(*comes, **settings):
        pipe = ToldPipe((at_s, _Alive() if what == "alive" else what) for at_s, what in comes)
        monkeypatch.setattr("fastac.runs.evaluator.start", lambda *_: stand_in(pipe))
        monkeypatch.setattr("fastac.processes.time", SimpleNamespace(monotonic=lambda: pipe.now_s))
        evaluator = ProcessEvaluator(Config().replace(algo="a3c", max_restarts=0, **settings), None, None)
        evaluator.begin({}, ONE)
        return evaluator, pipe

    return make


def test_an_evaluation_may_take_hours_as_long_as_the_process_says_that_it_plays(tell):
    evaluator, pipe = tell((5.0, "alive"), *((n, "alive") for n in range(6, 9000)), (9000.0, PLAYED))
    assert evaluator.take(wait=True) is PLAYED
    assert pipe.now_s == 9000.0 > 10 * _SILENCE_S


def test_a_process_that_falls_silent_hangs_however_long_it_has_played(tell):
    evaluator, pipe = tell((5.0, "alive"), *((n, "alive") for n in range(6, 2000)), (9000.0, PLAYED))
    with pytest.raises(WorkerFailure, match=f"has been silent for {_SILENCE_S:.0f} s"):
        evaluator.take(wait=True)
    assert pipe.now_s == pytest.approx(1999.0 + _SILENCE_S)


def test_a_process_may_be_silent_for_as_long_as_a_step_may_take(tell):
    silent_s = 3 * _SILENCE_S
    evaluator, pipe = tell((5.0, "alive"), env_timeout_s=silent_s)
    with pytest.raises(WorkerFailure, match=rf"has been silent for {silent_s:.0f} s \(raise env_timeout_s if it needs"):
        evaluator.take(wait=True)
    assert pipe.now_s == pytest.approx(5.0 + silent_s)


def test_who_does_not_wait_sees_that_the_process_plays(tell):
    evaluator, pipe = tell((5.0, "alive"), *((n, "alive") for n in range(6, 2000)))
    for at_s in (0.0, 100.0, 1000.0, 1990.0, 2500.0):
        pipe.now_s = at_s
        assert evaluator.take(wait=False) is None and pipe.now_s == at_s
    pipe.now_s += 100.0 * _SILENCE_S  # this process was stopped itself
    assert evaluator.take(wait=False) is None
    with pytest.raises(WorkerFailure, match="has been silent"):
        for _ in range(int(_SILENCE_S) + 1):
            pipe.now_s += 1.0
            evaluator.take(wait=False)


def test_the_process_says_that_it_plays():
    config = Config().replace(algo="a3c", num_envs=1, eval_episodes=1, hidden_sizes=(4,))
    model = build_model(config.model, build_envs(config.env, np.random.SeedSequence(0), make_slow))
    evaluator = ProcessEvaluator(config, make_slow, None)
    try:
        evaluator.begin(model.state_dict(), ONE)
        said = []
        while not said or not isinstance(said[-1], Evaluation):
            said.append(evaluator.child.receive())
        built, *signs, played = said
    finally:
        evaluator.close()
    assert played.returns.tolist() == [2.0]
    assert signs and all(isinstance(sign, _Alive) for sign in (built, *signs))
