"""What a run leaves in its directory."""

from __future__ import annotations

import json
import math

import pytest
from run_support import SMALL, checkpoints, read_rows

import fastac
from fastac.config import Config
from fastac.runs.checkpoint import best_mean_return, find_checkpoint, load_checkpoint

SUMMARY_KEYS = (
    "env_id algo seed env_steps frames updates episodes train_wall_s total_wall_s sps sps_last_window mean_return "
    "solved solved_wall_s solved_env_steps phases peak_rss_mb versions git_commit command asynchrony"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = {**SMALL, "algo": "ppo", "seed": 3, "total_env_steps": 1000, "num_minibatches": 2, "tensorboard": True}
    settings |= {"eval_every": 300, "checkpoint_every": 100, "keep_checkpoints": 2, "max_grad_norm": None}
    return fastac.train("CartPole-v1", run_dir=tmp_path_factory.mktemp("files") / "run", **settings)


def test_config_comes_back(run):
    config = json.loads((run.directory / "config.json").read_text())
    assert len(config.pop("run_id")) == 32
    assert Config.from_dict(config) == run.config
    assert run.config.algo.algo == "ppo"
    assert run.config.optim.max_grad_norm is None
    assert fastac.load(run.directory).config == run.config


def test_progress_has_a_row_per_iteration(run):
    rows = read_rows(run.directory / "progress.jsonl")
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))
    steps = [row["env_steps"] for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == run.summary["env_steps"] >= 1000
    assert {"updates", "episodes", "train_wall_s", "sps", "mean_return", "policy_loss", "approx_kl"} <= set(rows[0])


def test_evaluations_have_rows_too(run):
    rows = read_rows(run.directory / "evaluations.jsonl")
    assert [row["env_steps"] // 300 for row in rows] == [1, 2, 3, 3]  # the last one after training
    assert rows[-1]["mean_return"] == run.summary["last_eval_mean_return"] <= run.summary["eval_mean_return"]
    assert run.summary["best_eval_mean_return"] == run.summary["eval_mean_return"]


def test_summary_is_complete(run):
    summary = json.loads((run.directory / "summary.json").read_text())
    assert summary == run.summary
    assert set(SUMMARY_KEYS.split()) <= set(summary)
    assert (summary["env_id"], summary["algo"], summary["seed"]) == ("CartPole-v1", "ppo", 3)
    assert summary["frames"] == summary["env_steps"]
    assert {"python", "torch", "numpy", "gymnasium", "fastac"} <= set(summary["versions"])
    assert summary["peak_rss_mb"] > 10
    assert summary["asynchrony"] is None  # its workers are in step


def test_summary_adds_up(run):
    summary = run.summary
    assert summary["sps"] == summary["env_steps"] / summary["train_wall_s"]
    assert set(summary["phases"]) == {"env_s", "act_s", "advantage_s", "update_s", "other_s"}
    assert min(summary["phases"].values()) >= 0
    assert sum(summary["phases"].values()) == pytest.approx(summary["train_wall_s"], rel=1e-9)
    assert summary["train_wall_s"] + summary["eval_wall_s"] < summary["total_wall_s"]


def test_tensorboard_reads_it(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.directory / "tb")).Reload()
    assert {"rollout/ep_rew_mean", "time/fps", "train/value_loss", "eval/mean_reward"} <= set(events.Tags()["scalars"])
    evaluated = read_rows(run.directory / "evaluations.jsonl")
    assert [event.step for event in events.Scalars("eval/mean_reward")] == [row["env_steps"] for row in evaluated]
    (final,) = events.Scalars("final/best_eval_mean_reward")
    assert (final.step, final.value) == (run.summary["env_steps"], run.summary["best_eval_mean_return"])
    assert events.PluginTagToContent("hparams")


def test_the_last_checkpoints_and_the_best_are_kept(run):
    kept = [int(path.name.removeprefix("step-")) for path in checkpoints(run.directory)]
    assert best_mean_return(run.directory) == run.summary["best_eval_mean_return"]
    steps = [row["env_steps"] for row in read_rows(run.directory / "evaluations.jsonl")]
    returns = [row["mean_return"] for row in read_rows(run.directory / "evaluations.jsonl")]
    best_steps = steps[returns.index(max(returns))]
    assert find_checkpoint(run.directory, "best").name == f"step-{best_steps:012d}"
    assert set(kept[-2:]) | {best_steps} == set(kept)
    assert kept[-1] == run.summary["env_steps"]
    assert [load_checkpoint(path).config for path in checkpoints(run.directory)] == [run.config] * len(kept)


def test_nothing_is_pickled(run):
    files = [path for path in run.directory.rglob("*") if path.is_file()]
    assert len(files) >= 9
    for path in files:
        assert path.suffix not in {".pt", ".pth", ".pkl", ".npy", ".npz", ".zip"}
        head = path.read_bytes()[:2]
        assert head not in {b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK"}, path


def test_a_directory_of_its_own_for_each_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [fastac.train("CartPole-v1", **SMALL, total_env_steps=32) for _ in range(2)]
    assert len({run.directory for run in runs}) == 2
    assert all(run.directory.parent.name == "runs" for run in runs)


@pytest.mark.parametrize(
    "settings", [{"algo": "a2c"}, {"algo": "a3c", "workers": 1}], ids=lambda settings: settings["algo"]
)
def test_the_deviation_of_continuous_actions_is_written_down(tmp_path, settings):
    settings = SMALL | settings | {"learning_rate": 0.01, "tensorboard": True, "total_env_steps": 400}
    run = fastac.train("Pendulum-v1", run_dir=tmp_path / "run", **settings)
    (*_, last) = read_rows(run.directory / "progress.jsonl")
    begins_at = math.exp(run.config.model.log_std_init)
    assert last["action_std"] == pytest.approx(begins_at, rel=0.5)
    assert last["action_std"] != begins_at  # it is learned, and this is of the moment
