"""Resuming with other settings: what may change does and is recorded, the rest is refused with its reason."""

from __future__ import annotations

import json

import pytest
from run_support import SMALL, checkpoints, read_state, snapshot

import fastac
from fastac.cli import main
from fastac.config import ResumeSettings, TrainSettings, setting_names
from fastac.runs.resuming import CHANGEABLE

# Of each setting that may change another value than that of the run below.
CHANGES = {
    "start_timeout_s": 60.0,
    "env_timeout_s": 50.0,
    "gamma": 0.9,
    "gae_lambda": 0.7,
    "normalize_advantage": True,
    "vf_coef": 0.25,
    "ent_coef": 0.0,
    "num_epochs": 3,
    "num_minibatches": 4,
    "clip_coef": 0.1,
    "clip_value_coef": 0.3,
    "target_kl": 0.05,
    "advantage_scope": "rollout",
    "critic_learning_rate": 2e-3,
    "learning_rate": 1e-3,
    "optimizer_eps": 1e-6,
    "max_grad_norm": None,
    "learning_rate_schedule": "linear",
    "ent_coef_schedule": "linear",
    "clip_coef_schedule": "linear",
    "torch_threads": 2,
    "max_restarts": 3,
    "reuse_forward": False,
    "total_env_steps": 640,
    "budget_minutes": 5.0,
    "until_return": 1000.0,
    "eval_every": 100,
    "eval_from_return": 1.0,
    "eval_episodes": 1,
    "eval_max_steps": 9,
    "eval_actions": "sampled",
    "checkpoint_every": 100,
    "checkpoint_minutes": 2.0,
    "host_timeout_s": 5.0,
    "keep_checkpoints": 2,
    "tensorboard": True,
    "log": ("csv",),
}
ELSEWHERE = {"env_threads", "lock", "workers", "eval"}  # of other environments, of a3c, of several shards; see others
PPO = {**SMALL, "algo": "ppo", "num_epochs": 2, "num_minibatches": 2, "ent_coef": 0.01, "gamma": 0.99}
PPO |= {"learning_rate_schedule": "constant", "normalize_advantage": False}


@pytest.fixture
def run(tmp_path):
    return fastac.train("CartPole-v1", run_dir=tmp_path / "run", **PPO, total_env_steps=320)


def read_changes(run) -> list[dict]:
    return [json.loads(line) for line in (run.directory / "changes.jsonl").read_text().splitlines()]


def test_the_tables_name_every_setting():
    assert set(CHANGES) | ELSEWHERE == set(CHANGEABLE) == set(ResumeSettings.__annotations__)
    assert set(CHANGEABLE) < set(TrainSettings.__annotations__) < set(setting_names())


def test_everything_that_may_change_does_and_is_recorded(run, caplog):
    caplog.set_level("INFO", "fastac")
    before = run.config.to_flat()
    session = fastac.resume(run.directory, **CHANGES)
    steps = session.report.env_steps
    assert not (run.directory / "changes.jsonl").exists()  # nothing is written before it trains
    for name, value in CHANGES.items():
        assert before[name] != value, name
        assert f"from step {steps} on: {name} {before[name]} -> {value}" in caplog.messages
    again = fastac.complete(session)
    assert {name: again.config.to_flat()[name] for name in CHANGES} == CHANGES
    assert again.config == run.config.replace(**CHANGES)
    rows = {row["setting"]: row for row in read_changes(run)}
    assert rows.keys() == CHANGES.keys()
    expected = {"env_steps": steps, "setting": "gamma", "before": before["gamma"], "after": 0.9}
    assert rows["gamma"] == expected
    assert again.summary["updates"] > run.summary["updates"]


def test_a_changed_rate_is_what_learns_and_the_rest_stays(run):
    fastac.complete(fastac.resume(run.directory, total_env_steps=640, learning_rate=1e-9))
    rows = [json.loads(line) for line in (run.directory / "progress.jsonl").read_text().splitlines()]
    assert rows[-1]["learning_rate"] == 1e-9
    assert rows[0]["learning_rate"] == run.config.optim.learning_rate


def test_a_repeated_change_is_recorded_once(run):
    for gamma in (0.5, 0.6):
        with fastac.resume(run.directory, total_env_steps=10_000, gamma=gamma) as session:
            session._begin()  # nothing is done, nor saved
    assert [(row["setting"], row["after"]) for row in read_changes(run)] == [
        ("gamma", 0.6),
        ("total_env_steps", 10_000),
    ]
    with fastac.resume(run.directory, total_env_steps=700) as session:
        next(iter(session))
    assert [row["after"] for row in read_changes(run)] == [0.6, 700]  # a gamma that was given stays


def test_a_resume_without_changes_records_nothing_and_keeps_the_bits(tmp_path):
    settings = {**PPO, "total_env_steps": 640}
    fastac.train("CartPole-v1", run_dir=tmp_path / "whole", **settings)
    with fastac.start("CartPole-v1", run_dir=tmp_path / "run", **settings) as session:
        for _ in zip(range(4), session, strict=False):
            pass
    assert len(checkpoints(tmp_path / "run")) == 1
    fastac.complete(fastac.resume(tmp_path / "run"))
    assert not (tmp_path / "run" / "changes.jsonl").exists()
    assert read_state(tmp_path / "run") == read_state(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("num_envs", 8, "its episodes and statistics are those of these environments"),
        ("wrappers", ["a:b"], "its episodes and statistics are those of these environments"),
        ("hidden_sizes", (4,), "its weights and statistics are those of this network"),
        ("num_steps", 4, "its rollouts and counts are those of this form of training"),
        ("optimizer", "rmsprop", "what the optimiser has saved is its own"),
        ("seed", 1, "its random streams go on"),
        ("shards", 2, "each shard has random streams of its own"),
        ("device", "cuda", "its numbers are those of this device"),
        ("init_from", "runs/x", "it has begun"),
    ],
)
def test_what_may_not_change_is_refused_with_the_reason(origin_of_refusals, name, value, why):
    path = origin_of_refusals
    before = snapshot(path)
    with pytest.raises(
        ValueError, match=rf"^{name} cannot change while a run goes on: {why}.*--from {path} --init-from"
    ):
        fastac.resume(path, total_env_steps=640, **{name: value})
    assert snapshot(path) == before


@pytest.fixture(scope="module")
def origin_of_refusals(tmp_path_factory):
    path = tmp_path_factory.mktemp("fixed") / "run"
    fastac.train("CartPole-v1", run_dir=path, **SMALL, total_env_steps=32)
    return path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--num-envs 8", "num_envs cannot change while a run goes on"),
        ("--wrapper a:b level=3", "wrappers cannot change while a run goes on"),
        ("--gamma 3", "gamma is 3.0, expected a number from 0 to 1"),
        ("--num-minibatches 3", "num_minibatches is 3, expected a divisor of 32"),
        ("--gama 0.9", "'--gama' is not an option of fastac resume: did you mean --gamma"),
        ("--lock", "lock is True with algo a2c, expected False"),
    ],
)
def test_the_command_line_refuses_in_one_sentence(origin_of_refusals, capsys, words, says):
    assert main(["resume", str(origin_of_refusals), *words.split()]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
