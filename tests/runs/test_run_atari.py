"""Whole runs on Atari games: what is learned from, what is logged and evaluated, and what a resumed run has lost."""

from __future__ import annotations

import json
import logging
import signal
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from run_support import checkpoints, read_rows

import fastac
from fastac.contract import NonFiniteError
from fastac.learning.learner import Learner
from fastac.models import LSTMCore
from fastac.rollout import Rollout
from fastac.runs.checkpoint import load_checkpoint

pytest.importorskip("ale_py")
vector_env = pytest.importorskip("ale_py.vector_env")

BREAKOUT, INVADERS = "ALE/Breakout-v5", "ALE/SpaceInvaders-v5"
# Games of 50 steps, in frames so small that a network costs nothing.
TINY = {
    **{"num_envs": 2, "num_steps": 8, "workers": 1, "env_threads": 1, "screen_size": 42, "max_frames": 200},
    **{"eval_every": 0, "eval_episodes": 2, "tensorboard": False},
}


def start(run_dir, env_id=INVADERS, algo="a2c", **settings):
    return fastac.start(env_id, algo, run_dir=run_dir, **(TINY | settings))


def train(run_dir, env_id=INVADERS, algo="a2c", **settings):
    return fastac.train(env_id, algo, run_dir=run_dir, **(TINY | settings))


@dataclass(frozen=True)
class Game:
    """A game as ALE played it."""

    return_: int
    length: int
    lives: int
    is_cut: bool


@pytest.fixture
def games(monkeypatch):
    """Collect the games that were played to their end in each batch of emulators, in the order of construction."""
    batches = []

    class Watched(vector_env.AtariVectorEnv):
        def __init__(self, game, num_envs, **settings):
            super().__init__(game, num_envs, **settings)
            self.games, self._over = [], np.zeros(num_envs, bool)
            self._sum, self._length = np.zeros(num_envs, int), np.zeros(num_envs, int)
            batches.append(self.games)

        def step(self, action):
            result = super().step(action)
            _, reward, terminated, truncated, infos = result
            self._sum += reward
            self._length += ~self._over
            self._over = terminated | truncated
            for n in np.flatnonzero(self._over):
                lives = int(infos["lives"][n])
                self.games.append(Game(int(self._sum[n]), int(self._length[n]), lives, bool(truncated[n])))
                self._sum[n] = self._length[n] = 0
            return result

    monkeypatch.setattr(vector_env, "AtariVectorEnv", Watched)
    return batches


@dataclass(frozen=True)
class Lesson:
    """A rollout as the learner got it: `[T, N]`."""

    raw: torch.Tensor
    reward: torch.Tensor
    life_lost: torch.Tensor
    valid: torch.Tensor
    done: torch.Tensor


@pytest.fixture
def lessons(monkeypatch):
    """Collect what the learner is given."""
    given, learn = [], Learner.learn

    def watched(self, rollouts, rewards, done_fraction, phases):
        (rollout,), (reward,) = rollouts, rewards
        copies = (rollout.reward, reward, rollout.life_lost, rollout.valid, rollout.done)
        given.append(Lesson(*(rows.clone() for rows in copies)))
        return learn(self, rollouts, rewards, done_fraction, phases)

    monkeypatch.setattr(Learner, "learn", watched)
    return given


# --- the protocol --------------------------------------------------------------------------------

DQN = {
    "atari_protocol": "dqn",
    "sticky_actions": 0.0,
    "noop_max": 30,
    "fire_reset": True,
    "frame_skip": 4,
    "max_pool": True,
    "screen_size": 84,
    "frame_stack": 4,
    "episodic_life": True,
    "full_action_space": False,
    "max_frames": 108_000,
    "clip_rewards": True,
}
MACHADO = DQN | {
    **{"atari_protocol": "machado", "sticky_actions": 0.25, "noop_max": 0, "fire_reset": False},
    **{"episodic_life": False, "full_action_space": True, "max_frames": 18_000},
}
A3C = DQN | {"atari_protocol": "a3c", "fire_reset": False, "episodic_life": False}
COMMON = "skip 4 max-pooled, 84x84 gray, stack 4"
LINES = {
    "dqn": f"dqn: sticky 0, no-ops < 30, FIRE reset, {COMMON}, life loss ends, 4 actions, cap 108000 frames",
    "machado": f"machado: sticky 0.25, no no-ops, no FIRE reset, {COMMON}, full games, 18 actions, cap 18000 frames",
    "a3c": f"a3c: sticky 0, no-ops < 30, no FIRE reset, {COMMON}, full games, 4 actions, cap 108000 frames",
}


@pytest.mark.parametrize("protocol", [DQN, MACHADO, pytest.param(A3C, marks=pytest.mark.slow)], ids=LINES)
def test_a_run_writes_down_its_whole_protocol(tmp_path, caplog, protocol):
    name = protocol["atari_protocol"]
    caplog.set_level(logging.INFO, "fastac")
    session = start(tmp_path / "run", BREAKOUT, atari_protocol=name, screen_size=None, max_frames=None)
    for _ in session:
        signal.raise_signal(signal.SIGTERM)  # which spares its evaluation
    assert session.finish()["stopped_by"] == "SIGTERM"
    env = json.loads((tmp_path / "run" / "config.json").read_text())["env"]
    assert {field: env[field] for field in protocol} == protocol
    assert caplog.text.count(f"ALE ({LINES[name]}, rewards clipped; 1 thread)") == 1


# --- rewards -------------------------------------------------------------------------------------


@pytest.mark.parametrize("clips", [True, False])
def test_returns_are_raw_whatever_is_learned_from(tmp_path, games, lessons, clips):
    run = train(tmp_path / "run", clip_rewards=clips, max_frames=600, total_env_steps=640)
    raw, reward = (torch.cat([getattr(lesson, name) for lesson in lessons]) for name in ("raw", "reward"))
    assert raw.max() >= 5.0  # the cheapest invader
    assert torch.equal(reward, raw.clip(-1.0, 1.0) if clips else raw)

    trained, evaluated = games
    assert len(trained) >= 4 and len(evaluated) == 2 and all(any(game.return_ for game in part) for part in games)
    logged, evaluation = (read_rows(run.directory / f"{name}.jsonl")[-1] for name in ("progress", "evaluations"))
    for row, played in ((logged, trained), (evaluation, evaluated)):
        assert row["mean_return"] == np.mean([game.return_ for game in played])
        assert row["mean_length"] == np.mean([game.length for game in played])
    assert run.summary["mean_return"] == logged["mean_return"]
    assert run.summary["eval_mean_return"] == evaluation["mean_return"]


# --- lives ---------------------------------------------------------------------------------------


def test_a_run_that_learns_from_lives_is_evaluated_in_whole_games(tmp_path, games, lessons):
    settings = {"num_envs": 3, "max_frames": 108_000, "eval_actions": "sampled", "total_env_steps": 360}
    run = train(tmp_path / "run", BREAKOUT, **settings)
    assert run.config.env.episodic_life and sum(int(lesson.life_lost.sum()) for lesson in lessons) >= 3
    trained, evaluated = games
    assert len(evaluated) == 2 and all(game.lives == 0 and not game.is_cut for game in evaluated)
    evaluation = read_rows(run.directory / "evaluations.jsonl")[-1]
    assert evaluation["mean_length"] == np.mean([game.length for game in evaluated]) > 100
    assert evaluation["mean_return"] == np.mean([game.return_ for game in evaluated])
    assert run.summary["episodes"] == len(trained)


def test_an_episode_that_is_collected_whole_goes_on_after_a_lost_life(tmp_path, games, lessons):
    settings = {"collect": "episodes", "num_steps": 160, "max_frames": 600, "noop_max": 3, "total_env_steps": 400}
    run = train(tmp_path / "run", BREAKOUT, **settings)
    assert sum(int(lesson.life_lost.sum()) for lesson in lessons) >= 4
    for lesson in lessons:
        for n in range(2):
            (end,) = torch.nonzero(lesson.done[:, n] & ~lesson.life_lost[:, n]).flatten().tolist()
            assert lesson.valid[: end + 1, n].all() and not lesson.valid[end + 1 :, n].any()
            assert not lesson.life_lost[end:, n].any()
    # Of each env's games the first is learned from; it may begin another one while the others play on.
    assert run.summary["episodes"] == 2 * len(lessons) <= len(games[0])
    assert run.summary["env_steps"] == sum(int(lesson.valid.sum()) for lesson in lessons)


# --- other algorithms and networks ---------------------------------------------------------------


def test_a_memory_learns_the_same_whether_forwards_are_kept_or_made_again(tmp_path):
    runs = []
    for reuse in (True, False):
        settings = {"core": "lstm", "lstm_size": 8, "reuse_forward": reuse, "total_env_steps": 120}
        runs.append(train(tmp_path / f"{reuse}", **settings))
    kept, again = (run.policy.model for run in runs)
    assert isinstance(kept.trunks[0].core, LSTMCore)
    for name, value in kept.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name], rtol=1e-3, atol=1e-5, msg=name)
    assert runs[0].summary["episodes"] >= 2  # memory was dropped in between


def test_a3c_plays_games(tmp_path):
    settings = TINY | {"workers": 2, "num_steps": 5, "total_env_steps": 240}
    del settings["num_envs"]  # the preset's are one per worker
    session = fastac.start(INVADERS, "a3c", run_dir=tmp_path / "run", **settings)
    before = {name: value.clone() for name, value in session.training.model.state_dict().items()}
    for _ in session:
        pass
    run = fastac.finish(session)
    summary = run.summary
    assert run.config.env.atari_protocol == "a3c" and run.config.env.num_envs == 2
    assert sum(summary["asynchrony"]["updates_per_worker"]) == summary["updates"] >= 240 // 5
    assert summary["asynchrony"]["restarts"] == 0 and summary["ended_by"] == "env_steps"
    assert summary["frames"] == 4 * summary["env_steps"] >= 4 * 240
    assert summary["episodes"] >= 2 and summary["eval_mean_return"] is not None
    loaded = fastac.load(run.directory).policy.model.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in loaded.items())


# --- resuming, failing ---------------------------------------------------------------------------


def test_a_resumed_run_has_lost_its_games_and_nothing_else(tmp_path, caplog):
    first = train(tmp_path / "run", total_env_steps=240)
    caplog.clear()
    session = fastac.resume(tmp_path / "run", total_env_steps=480)
    lost = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert lost == ["the state of the environments is not in the checkpoint: their episodes begin anew"]
    for name, value in first.policy.model.state_dict().items():
        assert torch.equal(session.training.model.state_dict()[name], value), name
    before = session.report
    assert (before.env_steps, before.updates) == (first.summary["env_steps"], first.summary["updates"])

    rollout = session.training.rollouts[0]
    report = next(iter(session))
    assert (report.iteration, report.updates) == (before.iteration + 1, before.updates + 1)
    assert before.env_steps < report.env_steps == report.frames // 4
    stacks = rollout.observation(0)
    assert rollout.start[0].all() and stacks[:, -1].any() and not stacks[:, :-1].any()
    for _ in session:
        pass
    summary = session.finish()
    assert summary["env_steps"] >= 480 and summary["episodes"] > first.summary["episodes"]
    rows = read_rows(tmp_path / "run" / "progress.jsonl")
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))
    assert np.all(np.diff([row["env_steps"] for row in rows]) > 0)


def test_the_stacks_of_a_failed_update_can_be_built_again(tmp_path, monkeypatch):
    """Of its frames, which are stored once, and of those before them."""
    seen, learn = [], Learner.learn

    def fail_later(self, rollouts, *others):
        (rollout,) = rollouts
        seen.append(rollout.observations.empty(rollout.reward.numel()))
        rollout.observations.whole(seen[-1])
        if len(seen) == 4:
            raise NonFiniteError("update 4: policy_loss is not finite")
        return learn(self, rollouts, *others)

    monkeypatch.setattr(Learner, "learn", fail_later)
    session = start(tmp_path / "run", num_steps=6, max_frames=40, noop_max=3)
    with pytest.raises(NonFiniteError, match="its rollouts are saved in"):
        list(session)
    (saved,) = checkpoints(tmp_path / "run" / "failure")
    rows = load_checkpoint(saved, INVADERS).state["rollouts"]["0"]
    again = Rollout.allocate(6, 2, (42, 42), (), torch.int64, 0, obs_dtype=torch.uint8, frame_stack=4)
    again.obs.numpy()[...], again.start.numpy()[...] = rows["obs"], rows["start"]
    again.observations.set_state(rows["first"])
    expected = seen[-1].view(6, 2, 4, 42, 42)
    assert expected[0, :, 0].any() and not rows["start"][0].any()  # its first stacks reach back
    assert rows["start"].any()  # and an episode begins
    for t in range(6):
        assert torch.equal(again.observation(t), expected[t])
