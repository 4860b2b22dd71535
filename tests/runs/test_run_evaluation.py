"""Evaluations: when, on whose clock, and when they end a run."""

from __future__ import annotations

import signal
import time

import gymnasium
import numpy as np
import pytest
from run_support import SMALL, checkpoints, read_records, read_rows, read_state

import fastac
from fastac.cli import main
from fastac.runs.evaluate import evaluate

PROBE = "probes:fastac/ConstantReward-v0"  # every return is 1


def test_stops_at_the_first_evaluation_that_reaches_the_target(tmp_path):
    settings = {**SMALL, "num_steps": 32, "learning_rate": 0.01, "eval_every": 500, "total_env_steps": 200_000}
    run = fastac.train("CartPole-v1", run_dir=tmp_path / "run", until_return=150.0, **settings)
    rows, evaluations = (read_rows(run.directory / f"{name}.jsonl") for name in ("progress", "evaluations"))
    returns = [row["mean_return"] for row in evaluations]
    assert all(value < 150.0 for value in returns[:-1])
    assert returns[-1] >= 150.0
    assert len(returns) > 1  # it learned to
    summary = run.summary
    assert summary["solved"] is True
    assert summary["until_return"] == 150.0
    assert summary["solved_env_steps"] == summary["env_steps"] == rows[-1]["env_steps"] < 200_000
    assert summary["solved_wall_s"] == summary["train_wall_s"] == rows[-1]["train_wall_s"] == evaluations[-1]["wall_s"]
    assert checkpoints(run.directory)[-1].name == f"step-{summary['env_steps']:012d}"


def test_a_run_that_misses_the_target_says_so(tmp_path):
    run = fastac.train(PROBE, run_dir=tmp_path / "run", until_return=1.5, **SMALL, total_env_steps=64)
    assert run.summary["solved"] is False
    assert run.summary["solved_wall_s"] is None
    assert run.summary["solved_env_steps"] is None


def test_the_last_evaluation_may_reach_it(tmp_path):
    run = fastac.train(PROBE, run_dir=tmp_path / "run", until_return=1.0, **SMALL, total_env_steps=64)
    assert run.summary["solved"] is True
    assert run.summary["solved_env_steps"] == run.summary["env_steps"]


def test_a_run_without_a_target_is_neither_solved_nor_not(tmp_path):
    assert fastac.train(PROBE, run_dir=tmp_path / "run", **SMALL, total_env_steps=64).summary["solved"] is None


def test_a_solved_run_is_resumed_only_towards_more(tmp_path):
    fastac.train(PROBE, run_dir=tmp_path / "run", until_return=1.0, **{**SMALL, "eval_every": 32})
    with pytest.raises(ValueError, match="its mean return of 1 has reached 1; give a larger --until-return"):
        fastac.resume(tmp_path / "run")
    session = fastac.resume(tmp_path / "run", until_return=2.0, total_env_steps=200)
    for _ in session:
        pass
    assert fastac.finish(session).summary["solved"] is False


@pytest.mark.parametrize(("least", "evaluations"), [(1.0, 4), (1.5, 1)])
def test_an_evaluation_waits_for_the_training_return_but_the_last_one(tmp_path, least, evaluations):
    settings = {**SMALL, "eval_every": 32, "total_env_steps": 128, "eval_from_return": least}
    run = fastac.train(PROBE, run_dir=tmp_path / "run", **settings)
    assert len(read_rows(run.directory / "evaluations.jsonl")) == evaluations


def test_evaluation_is_not_training_time(tmp_path, monkeypatch):
    def evaluate_slowly(*arguments):
        time.sleep(0.3)
        return evaluate(*arguments)

    monkeypatch.setattr("fastac.runs.evaluator.evaluate", evaluate_slowly)
    settings = {**SMALL, "eval_every": 64, "total_env_steps": 192}
    summary = fastac.train(PROBE, run_dir=tmp_path / "run", **settings).summary
    clock = [row["train_wall_s"] for row in read_rows(tmp_path / "run" / "progress.jsonl")]
    evaluations = len(read_rows(tmp_path / "run" / "evaluations.jsonl"))
    assert evaluations >= 3
    assert summary["train_wall_s"] == clock[-1]
    assert summary["eval_wall_s"] >= 0.3 * evaluations
    assert summary["total_wall_s"] >= summary["train_wall_s"] + summary["eval_wall_s"]
    # Training took what was left at most, however slow this machine is today.
    assert summary["train_wall_s"] <= summary["total_wall_s"] - 0.3 * evaluations
    assert sum(summary["phases"].values()) == pytest.approx(summary["train_wall_s"])


def test_who_keeps_a_report_keeps_no_training_time(tmp_path):
    session = fastac.start(PROBE, run_dir=tmp_path / "run", **SMALL, total_env_steps=64)
    began = time.perf_counter()
    kept = 0
    for _ in session:
        time.sleep(0.2)
        kept += 1
    taken = time.perf_counter() - began
    assert fastac.finish(session).summary["train_wall_s"] <= taken - 0.2 * kept


def evaluate_as_told(monkeypatch, means):
    """Let evaluations have these mean returns, one after the other."""
    told = iter(means)

    def evaluate_as_next(*arguments):
        result = evaluate(*arguments)
        result.returns[:] = next(told)
        return result

    monkeypatch.setattr("fastac.runs.evaluator.evaluate", evaluate_as_next)


def train_with_best_in_the_middle(tmp_path, monkeypatch, means, **how):
    """Train for three iterations that are each evaluated; return the run and the weights after each."""
    evaluate_as_told(monkeypatch, means)
    settings = {**SMALL, "eval_every": 1, "total_env_steps": 1000}  # after every iteration
    weights = []
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **settings)
    for _ in session:
        weights.append([weight.detach().clone() for weight in session.training.model.parameters()])
        if len(weights) == 3:
            break
    return fastac.finish(session, **how), weights


def is_of(policy, weights):
    return all(bool((a == b).all()) for a, b in zip(policy.model.parameters(), weights, strict=True))


def test_the_best_policy_is_what_is_returned_reported_and_loaded(tmp_path, monkeypatch):
    run, weights = train_with_best_in_the_middle(tmp_path, monkeypatch, [1.0, 3.0, 2.0, 2.5])
    assert is_of(run.policy, weights[1]) and is_of(fastac.load(tmp_path / "run").policy, weights[1])
    assert is_of(fastac.load(tmp_path / "run", checkpoint="last").policy, weights[2])
    summary, steps = run.summary, [row["env_steps"] for row in read_rows(tmp_path / "run" / "evaluations.jsonl")]
    # The best played once more beside the last: 3 was luck, 2.5 is better than 2 all the same.
    assert (summary["eval_mean_return"], summary["best_eval_mean_return"]) == (2.5, 2.5)
    assert (summary["last_eval_mean_return"], summary["best_env_steps"]) == (2.0, steps[1])
    assert steps == sorted(set(steps)) and len(steps) == 3


def test_a_best_that_was_luck_gives_way_to_the_last_policy(tmp_path, monkeypatch):
    run, weights = train_with_best_in_the_middle(tmp_path, monkeypatch, [1.0, 3.0, 2.0, 1.5])
    assert is_of(run.policy, weights[2]) and is_of(fastac.load(tmp_path / "run").policy, weights[2])
    assert run.summary["eval_mean_return"] == run.summary["last_eval_mean_return"] == 2.0


def test_the_last_policy_is_a_keyword_away(tmp_path, monkeypatch):
    run, weights = train_with_best_in_the_middle(tmp_path, monkeypatch, [1.0, 3.0, 2.0, 2.5], checkpoint="last")
    assert is_of(run.policy, weights[2])
    assert run.summary["eval_mean_return"] == 2.5
    with pytest.raises(ValueError, match="checkpoint is 'first', expected best or last"):
        fastac.load(tmp_path / "run", checkpoint="first")


@pytest.mark.parametrize(
    ("again", "reached", "other"),
    [(2.5, "mean return 2.5", "the last one: 2.0"), (1.5, "mean return 2.0", "again: 1.5")],
)
def test_the_command_line_tells_both_returns(tmp_path, monkeypatch, capsys, again, reached, other):
    evaluate_as_told(monkeypatch, [1.0, 3.0, 2.0, again])
    words = ["--num-envs", "4", "--num-steps", "8", "--hidden-sizes", "8", "--eval-every", "1", "--eval-episodes", "2"]
    words += ["--total-env-steps", "90", "--no-tensorboard", "--run-dir", str(tmp_path / "run")]
    assert main(["train", "CartPole-v1", *words]) == 0
    told = capsys.readouterr().err
    assert reached in told and other in told and "evaluation" in told
    assert f"mean return {fastac.load(tmp_path / 'run').summary['eval_mean_return']}" == reached


def test_best_and_last_play_the_same_number_of_episodes(tmp_path, monkeypatch):
    played, real = [], evaluate

    def watch(*arguments):
        result = real(*arguments)
        result.returns[:] = {0: 5.0}.get(len(played), 1.0)  # the first is the best, by luck
        played.append((arguments[1].num_envs, result.episodes))
        return result

    monkeypatch.setattr("fastac.runs.evaluator.evaluate", watch)
    settings = {"num_envs": 4, "num_steps": 64, "hidden_sizes": (8,), "tensorboard": False, "eval_every": 4_000}
    fastac.train("Pendulum-v1", run_dir=tmp_path / "run", total_env_steps=11_000, **settings)
    assert played[-1] == played[-2]  # what an episode takes is counted in between


def test_the_target_may_be_reached_by_the_best_when_it_plays_once_more(tmp_path, monkeypatch, capsys):
    evaluate_as_told(monkeypatch, [3.0, 1.0, 2.0, 6.0])
    words = ["--num-envs", "4", "--num-steps", "8", "--hidden-sizes", "8", "--eval-every", "1", "--eval-episodes", "2"]
    words += ["--total-env-steps", "90", "--no-tensorboard", "--until-return", "5", "--run-dir", str(tmp_path / "run")]
    assert main(["train", "CartPole-v1", *words]) == 0
    summary = fastac.load(tmp_path / "run").summary
    assert summary["solved"] is True and summary["solved_env_steps"] == summary["best_env_steps"]
    told = capsys.readouterr().err
    assert "Solved CartPole-v1" in told and ",," not in told


def test_each_policy_that_is_asked_for_is_a_copy_of_its_own(tmp_path, monkeypatch):
    evaluate_as_told(monkeypatch, [3.0, 1.0, 2.5])
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **{**SMALL, "eval_every": 1})
    weights = []
    for _ in session:
        weights.append([weight.detach().clone() for weight in session.training.model.parameters()])
        if len(weights) == 2:
            break
    best, last = fastac.finish(session), fastac.finish(session, "last")
    assert is_of(best.policy, weights[0]) and is_of(last.policy, weights[1])
    assert is_of(fastac.finish(session).policy, weights[0])
    assert "mean return 2.5" in repr(best) and "mean return 1.0" in repr(last)


def test_a_stopped_run_tells_the_return_of_the_policy_that_it_gives(tmp_path, monkeypatch):
    evaluate_as_told(monkeypatch, [3.0, 1.0])
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **{**SMALL, "eval_every": 1})
    for at, _ in enumerate(session):
        if at == 1:
            signal.raise_signal(signal.SIGINT)
    assert fastac.finish(session).summary["eval_mean_return"] == 3.0


def test_a_session_that_was_closed_or_never_began_is_not_finished(tmp_path):
    with fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL) as session:
        for _ in session:
            break
    with pytest.raises(ValueError, match="the session is closed: go on with"):
        fastac.finish(session)
    begun = fastac.start("CartPole-v1", run_dir=tmp_path / "new", **SMALL)
    with begun, pytest.raises(ValueError, match="nothing was trained yet"):
        fastac.finish(begun)
    with pytest.raises(ValueError, match="checkpoint is 'bset'"):
        fastac.train("CartPole-v1", run_dir=tmp_path / "typo", checkpoint="bset", **SMALL)
    assert not (tmp_path / "typo").exists()


def test_runs_in_turn_leave_the_signals_as_they_were(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    sessions = [fastac.start("CartPole-v1", run_dir=tmp_path / name, **SMALL) for name in "ab"]
    loops = [iter(session) for session in sessions]
    for loop in loops:
        next(loop)
    signal.raise_signal(signal.SIGINT)  # is meant for both
    for loop in loops:
        assert list(loop) == []
    assert [session.stop_signal for session in sessions] == [signal.SIGINT] * 2
    assert signal.getsignal(signal.SIGINT) is before
    for session in sessions:
        session.close()


@pytest.mark.parametrize("limit", [1000, -1])
def test_another_limit_than_was_registered_holds_in_training_and_evaluation(tmp_path, limit):
    settings = {**SMALL, "num_envs": 8, "total_env_steps": 640, "env_kwargs": {"max_episode_steps": limit}}
    run = fastac.train("CartPole-v1", run_dir=tmp_path / "run", **settings)
    assert run.summary["mean_return"] > 5.0  # with a limit of -1 a batch would end every episode at once
    assert run.summary["eval_max_steps"] == 1000 if limit == 1000 else run.summary["eval_mean_return"] > 5.0


# --- no second environment ------------------------------------------------------------------------


class Only(gymnasium.Env):
    """Counts how many of its kind are open at once, and how many there ever were."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    open = most = 0

    def __init__(self):
        Only.open += 1
        Only.most = max(Only.most, Only.open)
        self._is_open = True

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):
        self._steps += 1
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), 1.0, self._steps == 20, False, {}

    def close(self):
        Only.open -= self._is_open
        self._is_open = False


def make_only(num_envs):
    return gymnasium.vector.SyncVectorEnv([Only] * num_envs)


@pytest.fixture
def only():
    Only.open = Only.most = 0
    return Only


@pytest.mark.parametrize("settings", [{"eval_every": 0}, {"eval": False}, {"eval_every": 0, "normalize_obs": True}])
@pytest.mark.parametrize("algo", ["a2c", "ppo"])
def test_without_evaluations_in_between_no_second_environment_is_opened(tmp_path, only, algo, settings):
    settings = {**SMALL, "num_envs": 1, "num_minibatches": 1, "total_env_steps": 100, **settings}
    run = fastac.train(make_only, algo, run_dir=tmp_path / "run", **settings)
    assert (only.most, only.open) == (1, 0)
    assert run.summary["eval_mean_return"] == (20.0 if settings.get("eval", True) else None)


def test_the_last_evaluation_leaves_the_checkpoint_as_it_was(tmp_path):
    states = []
    for name, settings in (("without", {"eval": False}), ("with", {})):
        fastac.train("CartPole-v1", run_dir=tmp_path / name, **{**SMALL, **settings}, total_env_steps=64)
        states.append(read_state(tmp_path / name)[0])
    assert states[0] == states[1]


def test_who_does_not_evaluate_has_the_last_policy_and_no_return_of_it(tmp_path, capsys):
    words = ["train", "CartPole-v1", "--no-eval", "--num-envs", "4", "--num-steps", "8", "--total-env-steps", "640"]
    assert main([*words, "--no-tensorboard", "--run-dir", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().err
    assert "nothing was evaluated" in told and len(told.splitlines()) > 6  # lines all the same
    assert read_rows(tmp_path / "run" / "evaluations.jsonl") == []
    assert fastac.load(tmp_path / "run").summary["eval_mean_return"] is None


# --- an end to everything -------------------------------------------------------------------------


class Endless(Only):
    """No episode ever ends."""

    def step(self, action):
        return np.zeros(3, np.float32), 1.0, False, False, {}


def make_endless(num_envs):
    return gymnasium.vector.SyncVectorEnv([Endless] * num_envs)


@pytest.mark.parametrize(("settings", "length"), [({}, 2 * 16), ({"eval_max_steps": 7}, 7)])
def test_an_endless_episode_is_cut_counted_and_said(tmp_path, caplog, settings, length):
    caplog.set_level("INFO", "fastac")
    settings = {**SMALL, "total_env_steps": 64, **settings}
    run = fastac.train(make_endless, run_dir=tmp_path / "run", **settings)
    assert run.summary["eval_mean_return"] == length == run.summary["eval_max_steps"]
    assert run.summary["eval_cut_episodes"] == run.summary["eval_episodes"] == 2
    assert ("names no time limit" in caplog.text) == ("eval_max_steps" not in settings)
    assert fastac.evaluate(run, 3, env=make_endless).lengths.tolist() == [length] * 3
    assert fastac.evaluate(run, 3, env=make_endless, max_steps=5).cut == 3


def test_an_environments_own_limit_needs_no_word(tmp_path, caplog):
    caplog.set_level("INFO", "fastac")
    run = fastac.train("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=64)
    assert run.summary["eval_max_steps"] == 500 and "no time limit" not in caplog.text


@pytest.mark.parametrize(("vectorization", "looks"), [("native", 3), ("compiled", 1)])
def test_ctrl_c_ends_an_evaluation_at_once_and_resume_plays_it(tmp_path, monkeypatch, vectorization, looks):
    settings = {**SMALL, "eval_every": 64, "total_env_steps": 256, "vectorization": vectorization}
    whole = fastac.train("CartPole-v1", run_dir=tmp_path / "whole", **settings)

    def interrupted(*arguments):
        tell, steps = arguments[-2], []

        def tell_and_stop(played, episodes):
            steps.append(played)
            if len(steps) == looks:
                signal.raise_signal(signal.SIGINT)
            assert len(steps) <= looks, "it went on"
            tell(played, episodes)

        return evaluate(*arguments[:-2], tell_and_stop, arguments[-1])

    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **settings)
    with monkeypatch.context() as patch:
        patch.setattr("fastac.runs.evaluator.evaluate", interrupted)
        for _ in session:
            pass
    assert session.stop_signal == signal.SIGINT and session.evaluations.latest is None
    session.finish()
    resumed = fastac.resume(tmp_path / "run")
    for _ in resumed:
        pass
    assert fastac.finish(resumed).summary["eval_mean_return"] == whole.summary["eval_mean_return"]
    assert read_records(tmp_path / "run") == read_records(tmp_path / "whole")
