"""A run that was killed and resumed is, bit for bit, the run that was not."""

from __future__ import annotations

import json
import logging
import re
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
    snapshot,
    spawn_main,
    train_until_killed,
)

import fastac
from fastac.cli import main
from fastac.runs import checkpoint
from fastac.runs.checkpoint import best_mean_return, find_checkpoint

KILLED_AFTER = 10  # iterations, twice as many in all
PPO = {"algo": "ppo", "num_epochs": 2, "num_minibatches": 2, "normalize_advantage": True}
KNOBS = {
    **{"advantage_scope": "rollout", "clip_value_coef": 0.05, "target_kl": 1e-3, "learning_rate": 1e-3},
    **{"learning_rate_schedule": "adaptive", "shared_trunk": False, "critic_learning_rate": 3e-3},
}
LINEAR = {name: "linear" for name in ("learning_rate_schedule", "ent_coef_schedule", "clip_coef_schedule")}
CONSTANT = SMALL | dict.fromkeys(LINEAR, "constant")
NATIVE = {"vectorization": "native"}
NORMALIZED = {"normalize_obs": True, "normalize_reward": True}

CASES = {
    "native a2c": ("CartPole-v1", {**NATIVE, "algo": "a2c"}),
    "native a2c rmsprop_tf": ("CartPole-v1", {**NATIVE, "optimizer": "rmsprop_tf", "shared_trunk": False}),
    "native ppo lstm": ("CartPole-v1", {**NATIVE, **PPO, **NORMALIZED, **LINEAR, "core": "lstm", "lstm_size": 8}),
    "native reinforce": ("CartPole-v1", {**NATIVE, "algo": "reinforce", "num_steps": 500}),
    "sync a2c": ("CartPole-v1", {"vectorization": "sync"}),
    "sync ppo continuous": ("Pendulum-v1", {**PPO, **NORMALIZED, "vectorization": "sync", "optimizer": "rmsprop"}),
    "native ppo, all knobs": ("CartPole-v1", {**NATIVE, **PPO, **KNOBS}),
    "masks, lstm": ("masked_envs:Masked", {**PPO, **NORMALIZED, "core": "lstm", "lstm_size": 8}),
    "own state": ("probes:fastac/ToyChain-v0", {"normalize_reward": True}),
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
    train_until_killed("probes:fastac/ConstantReward-v0", tmp_path / "run", 8, **settings)
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
        patch.setattr("fastac.runs.evaluator.evaluate", _interrupt)
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


class DeathError(BaseException):
    """Stands for `kill -9` at a certain place."""


def die(*_):
    raise DeathError


@pytest.mark.parametrize("place", ["saver.prune_checkpoints", "session.RunDirectory.write_summary"])
def test_a_kill_in_the_end_loses_neither_the_best_nor_writes_a_row_twice(tmp_path, monkeypatch, place):
    settings = {**SMALL, "total_env_steps": 960, "checkpoint_every": 96, "eval_every": 64, "keep_checkpoints": 1}
    fastac.train("CartPole-v1", run_dir=tmp_path / "whole", **settings)
    with monkeypatch.context() as patch, pytest.raises(DeathError):
        patch.setattr(f"fastac.runs.{place}", die)
        fastac.train("CartPole-v1", run_dir=tmp_path / "run", **settings)
    resume_to_the_end(tmp_path / "run")
    assert read_records(tmp_path / "run") == read_records(tmp_path / "whole")
    for read in (best_mean_return, lambda run: find_checkpoint(run, "best").name, read_state):
        assert read(tmp_path / "run") == read(tmp_path / "whole")


def resume_to_the_end(run_dir, **changes):
    session = fastac.resume(run_dir, **changes)
    for _ in session:
        pass
    return fastac.finish(session)


def test_a_longer_budget_says_how_the_schedules_jump(tmp_path, caplog):
    settings = {**SMALL, "learning_rate": 0.01, "ent_coef": 0.5}
    fastac.train("CartPole-v1", run_dir=tmp_path / "run", **settings, **LINEAR, total_env_steps=320)
    session = fastac.resume(tmp_path / "run", total_env_steps=3200)
    steps = session.report.env_steps
    done = 1.0 - steps / 3200
    assert [record.levelno for record in caplog.records[-2:]] == [logging.WARNING] * 2
    assert caplog.messages[-3:] == [
        f"from step {steps} on: total_env_steps 320 -> 3200",
        f"at step {steps} a schedule jumps: learning_rate 0 -> {0.01 * done:.3g}",
        f"at step {steps} a schedule jumps: ent_coef 0 -> {0.5 * done:.3g}",
    ]
    assert next(iter(session)).losses["learning_rate"] == pytest.approx(0.01 * done)
    fastac.finish(session)


def test_a_longer_budget_without_schedules_is_no_warning(tmp_path, caplog):
    fastac.train("CartPole-v1", run_dir=tmp_path / "run", **CONSTANT, total_env_steps=320)
    fastac.resume(tmp_path / "run", total_env_steps=640).close()
    assert caplog.records[-1].levelno == logging.INFO
    assert "total_env_steps 320 -> 640" in caplog.messages[-1]


def test_a_new_learning_rate_holds_and_stays(tmp_path, caplog):
    fastac.train("CartPole-v1", run_dir=tmp_path / "run", **CONSTANT, learning_rate=0.01, total_env_steps=320)
    with fastac.resume(tmp_path / "run", learning_rate=0.002, total_env_steps=640) as session:
        assert next(iter(session)).losses["learning_rate"] == 0.002
    assert "learning_rate 0.01 -> 0.002" in caplog.text
    assert main(["resume", str(tmp_path / "run"), "--learning-rate", "0.001", "--total-env-steps", "700"]) == 0
    rows = read_rows(tmp_path / "run" / "progress.jsonl")
    assert [row["learning_rate"] for row in (rows[0], rows[-1])] == [0.01, 0.001]
    assert resume_to_the_end(tmp_path / "run", total_env_steps=800).config.optim.learning_rate == 0.001


def edit_config(run_dir, section, **changes):
    path = run_dir / "config.json"
    content = json.loads(path.read_text())
    content[section].update(changes)
    path.write_text(json.dumps(content))


def test_an_edited_setting_holds_where_it_may_change_and_is_refused_elsewhere(tmp_path, capsys, caplog):
    fastac.train("CartPole-v1", run_dir=tmp_path / "run", **CONSTANT, learning_rate=0.01, total_env_steps=320)
    edit_config(tmp_path / "run", "optim", learning_rate=0.002)
    run = resume_to_the_end(tmp_path / "run", total_env_steps=640)
    assert run.config.optim.learning_rate == 0.002
    assert "learning_rate 0.01 -> 0.002" in caplog.text
    edit_config(tmp_path / "run", "algo", num_steps=9)
    before = (tmp_path / "run" / "config.json").read_bytes()
    assert main(["resume", str(tmp_path / "run"), "--total-env-steps", "960"]) == 2
    says = "says num_steps 9, but the run was trained with 8, which cannot change while it goes on (its rollouts"
    assert says in capsys.readouterr().err
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_budget_that_a_killed_resume_was_given_still_holds(tmp_path):
    fastac.train("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=320)
    with fastac.resume(tmp_path / "run", total_env_steps=640) as session:
        session._begin()  # nothing is done, nor saved
    assert resume_to_the_end(tmp_path / "run").summary["env_steps"] >= 640


@pytest.mark.parametrize("command", ["resume", "eval", "record"])
def test_a_checkpoint_of_another_run_is_refused(tmp_path, capsys, command):
    for seed in (0, 1):
        fastac.train("CartPole-v1", seed=seed, run_dir=tmp_path / str(seed), **SMALL, total_env_steps=320)
    shutil.rmtree(tmp_path / "0" / "checkpoints")
    shutil.copytree(tmp_path / "1" / "checkpoints", tmp_path / "0" / "checkpoints")
    assert main([command, str(tmp_path / "0")]) == 2
    assert re.fullmatch(
        r"fastac: checkpoint .*step-\d+ was written by another run \(.*\): move it back .*\n", capsys.readouterr().err
    )


def forge(run_dir, branches, value):
    """Replace a part of a checkpoint's state, with digests that are right; DELETE deletes it."""
    path = checkpoints(run_dir)[-1] / "state.json"
    body = json.loads(path.read_text())
    del body["sha256"]
    tree = body["state"]
    *above, leaf = branches.split("/")
    for branch in above:
        tree = tree[branch]
    if value is DELETE:
        del tree[leaf]
    else:
        tree[leaf] = value
    path.write_bytes(checkpoint._seal(body))


DELETE = object()
ENV = "training/shards/0/envs/envs/0"
FORGED = [
    *((f"{ENV}/2/rng/bit_generator", name) for name in ("test", "seed", "__class__", 3, None)),
    (f"{ENV}/2/rng/state", {"state": 10**400, "inc": 1}),
    (f"{ENV}/0/_elapsed_steps", "many"),
    ("training/trainer/env_steps", -1),
    ("training/trainer/iteration", 10**30),
    ("training/trainer/episodes", 1.5),
    ("training/trainer/train_wall_s", float("nan")),
    ("training/trainer/phases", {"env_s": 1.0, "sudo_s": 1.0}),
    ("training/trainer/learner/updates", True),
    ("training/trainer/learner/optimizer", None),
    ("training/model", DELETE),
    ("training/shards", 7),
    ("progress", DELETE),
    ("progress/best_mean_return", "high"),
    ("tracker", DELETE),
    ("run_id", DELETE),
]


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("pendulum") / "run"
    fastac.train("Pendulum-v1", "ppo", run_dir=run_dir, **SMALL, vectorization="sync", total_env_steps=64)
    return run_dir


@pytest.mark.parametrize(("branches", "value"), FORGED, ids=[f"{k} {v!r:.20}" for k, v in FORGED])
def test_a_forged_state_is_one_sentence_and_changes_nothing(tmp_path, capsys, pendulum, branches, value):
    shutil.copytree(pendulum, tmp_path / "run")
    forge(tmp_path / "run", branches, value)
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert main(["resume", str(tmp_path / "run"), "--total-env-steps", "128"]) == 2
    assert re.fullmatch(r"fastac: [^\n]*(does not fit this|written by another run)[^\n]*\n", capsys.readouterr().err)
    assert snapshot(tmp_path) == before
