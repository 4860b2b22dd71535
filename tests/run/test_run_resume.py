"""A run that was killed and resumed is, bit for bit, the run that was not."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from run_envs import make_next_step
from run_support import (
    SMALL,
    checkpoints,
    read_records,
    read_rows,
    read_state,
    spawn_main,
    train_until_killed,
)

import fastac
from fastac.cli import main

KILLED_AFTER = 10  # iterations, twice as many in all
PPO = {"algo": "ppo", "num_epochs": 2, "num_minibatches": 2, "normalize_advantage": True}
LINEAR = {name: "linear" for name in ("learning_rate_schedule", "ent_coef_schedule", "clip_coef_schedule")}
NATIVE = {"vectorization": "native"}
NORMALIZED = {"normalize_obs": True, "normalize_reward": True}

CASES = {
    "native a2c": ("CartPole-v1", {**NATIVE, "algo": "a2c"}),
    "native a2c rmsprop_tf": ("CartPole-v1", {**NATIVE, "optimizer": "rmsprop_tf", "shared_trunk": False}),
    "native ppo lstm": ("CartPole-v1", {**NATIVE, **PPO, **NORMALIZED, **LINEAR, "core": "lstm", "lstm_size": 8}),
    "native reinforce": ("CartPole-v1", {**NATIVE, "algo": "reinforce", "num_steps": 500}),
    "sync a2c": ("CartPole-v1", {"vectorization": "sync"}),
    "sync ppo continuous": ("Pendulum-v1", {**PPO, **NORMALIZED, "vectorization": "sync", "optimizer": "rmsprop"}),
    "own state": ("fastac.envs.probes:fastac/ToyChain-v0", {"normalize_reward": True}),
    "masked lstm": ("fastac.envs.masked:fastac/MaskedCartPole-v1", {**PPO, "core": "lstm", "lstm_size": 8}),
}


@pytest.mark.parametrize(("env", "settings"), CASES.values(), ids=CASES.keys())
def test_killed_and_resumed_is_the_same_run(tmp_path, env, settings):
    rows = 8 * 4 if settings.get("algo") != "reinforce" else 80
    settings = {
        **SMALL,
        **settings,
        "total_env_steps": 2 * KILLED_AFTER * rows,
        "checkpoint_every": 3 * rows,
        "eval_every": rows,
    }
    fastac.train(env, run_dir=tmp_path / "whole", **settings)

    train_until_killed(env, tmp_path / "killed", KILLED_AFTER, **settings)
    session = fastac.resume(tmp_path / "killed")
    assert session.report.iteration <= KILLED_AFTER
    for _ in session:
        pass
    fastac.finish(session)

    assert read_state(tmp_path / "killed") == read_state(tmp_path / "whole")
    assert read_records(tmp_path / "killed") == read_records(tmp_path / "whole")
    assert [path.name for path in checkpoints(tmp_path / "killed")] == [
        path.name for path in checkpoints(tmp_path / "whole")
    ]


def test_resumes_in_a_new_process_too(tmp_path):
    settings = {**SMALL, "total_env_steps": 640, "checkpoint_every": 160}
    fastac.train("CartPole-v1", run_dir=tmp_path / "whole", **settings)
    train_until_killed("CartPole-v1", tmp_path / "killed", KILLED_AFTER, **settings)
    process = spawn_main(["resume", str(tmp_path / "killed")], tmp_path)
    process.join()
    assert process.exitcode == 0, (tmp_path / "stderr").read_text()
    assert read_state(tmp_path / "killed") == read_state(tmp_path / "whole")


def test_rows_after_the_checkpoint_are_not_there_twice(tmp_path):
    settings = {**SMALL, "total_env_steps": 640, "checkpoint_every": 150, "eval_every": 32}
    # Evaluations save the best, so give them all the same return: only the first is better than none.
    train_until_killed("fastac.envs.probes:fastac/ConstantReward-v0", tmp_path / "run", 8, **settings)
    before = [row["iteration"] for row in read_rows(tmp_path / "run" / "progress.jsonl")]
    session = fastac.resume(tmp_path / "run")
    assert session.report.iteration < before[-1]  # or there would be nothing to cut
    for _ in session:
        pass
    fastac.finish(session)
    after = [row["iteration"] for row in read_rows(tmp_path / "run" / "progress.jsonl")]
    assert after == list(range(1, len(after) + 1))
    evaluated = [row["env_steps"] for row in read_rows(tmp_path / "run" / "evaluations.jsonl")]
    assert evaluated == sorted(set(evaluated))


@pytest.mark.parametrize("kind", ["id", "factory"])
def test_episodes_begin_anew_where_envs_cannot_be_saved(tmp_path, caplog, kind):
    env, factory = ("run_envs:Opaque-v0", None) if kind == "id" else (make_next_step, make_next_step)
    settings = {**SMALL, "total_env_steps": 640, "checkpoint_every": 64}
    train_until_killed(env, tmp_path / "run", 9, **settings)
    with caplog.at_level(logging.WARNING, "fastac"):
        session = fastac.resume(tmp_path / "run", env=factory)
    assert [record.message for record in caplog.records] == [
        "the state of the environments is not in the checkpoint: their episodes begin anew"
    ]
    lengths = [episode.length for report in session for episode in report.finished]
    run = fastac.finish(session)
    assert run.summary["env_steps"] >= 640
    if kind == "id":
        assert set(lengths) == {10}  # no episode spans the gap
    rows = read_rows(tmp_path / "run" / "progress.jsonl")
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))


def test_a_larger_budget_goes_on_from_the_end(tmp_path):
    fastac.train("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=320)
    shutil.copytree(tmp_path / "run", tmp_path / "longer")
    session = fastac.resume(tmp_path / "longer", total_env_steps=640)
    for _ in session:
        pass
    run = fastac.finish(session)
    assert run.config.run.total_env_steps == 640
    assert run.summary["env_steps"] >= 640
    assert run.summary["sps"] == run.summary["env_steps"] / run.summary["train_wall_s"]


def test_a_run_that_is_complete_is_not_resumed(tmp_path, capsys):
    fastac.train("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=320)
    assert main(["resume", str(tmp_path / "run")]) == 2
    assert "the run is complete" in capsys.readouterr().err


def test_what_a_kill_in_the_last_evaluation_left_out_is_done_by_resume(tmp_path, monkeypatch):
    settings = {**SMALL, "total_env_steps": 320}
    fastac.train("CartPole-v1", run_dir=tmp_path / "whole", **settings)
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **settings)
    for _ in session:
        pass
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fastac.tools.evaluator.evaluate", _interrupt)
        session.finish()
    assert not (tmp_path / "run" / "summary.json").exists()
    session = fastac.resume(tmp_path / "run")
    assert list(session) == []  # nothing is left to train
    run = fastac.finish(session)
    assert run.summary["eval_mean_return"] is not None
    assert run.summary["sps"] == run.summary["env_steps"] / run.summary["train_wall_s"]
    assert read_state(tmp_path / "run") == read_state(tmp_path / "whole")


def _interrupt(*_):
    raise KeyboardInterrupt


def test_a_resume_that_fails_changes_nothing(tmp_path):
    def encoder(space):
        return torch.nn.Linear(space.shape[0], 5)

    run = fastac.train("CartPole-v1", run_dir=tmp_path / "run", encoder=encoder, total_env_steps=600, eval_episodes=1)
    before = {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"encoder is .* which was given in Python and cannot be imported"):
        fastac.resume(run.directory, total_env_steps=2000)
    assert {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file()} == before


def test_a_run_that_was_killed_between_its_solution_and_its_summary_is_ended_by_resume(tmp_path):
    settings = {"until_return": 1.0, "eval_every": 500, "eval_episodes": 2, "total_env_steps": 5000}
    run = fastac.train("CartPole-v1", run_dir=tmp_path / "run", **settings)
    (run.directory / "summary.json").unlink()
    session = fastac.resume(run.directory)
    assert list(session) == []
    ended = fastac.finish(session)
    assert ended.summary["solved"] is True
    for name in ("env_steps", "solved_env_steps", "eval_mean_return"):
        assert ended.summary[name] == run.summary[name]
    with pytest.raises(ValueError, match="the run is complete"):
        fastac.resume(run.directory)
