"""TensorBoard's files: tags, values, throttling, and what a resumed run hides."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import pytest
from child_support import tell_modules
from report_support import Clock, make_report, read_lines, row, with_extras
from run_support import spawn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from tensorboard.summary.writer import event_file_writer

from fastac.config import AlgoName, Config, JsonValue
from fastac.contract import Episode
from fastac.runs.tracker import ReturnTracker
from fastac.runs.writers import EvaluationRow, ProgressWriter, TensorBoardWriter, progress_row


def all_events(path: Path) -> list[Event]:
    return [event for file in sorted(path.iterdir()) for event in EventFileLoader(str(file)).Load()]


def read_events(path: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(path))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


# What stable-baselines3 2.7 writes with an `EvalCallback`; with continuous actions also train/std.
SB3_BOTH = {
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "time/fps",
    "train/entropy_loss",
    "train/explained_variance",
    "train/learning_rate",
    "train/value_loss",
    "train/std",
    "eval/mean_reward",
    "eval/mean_ep_length",
}
SB3_A2C = SB3_BOTH | {"train/policy_loss"}
SB3_PPO = SB3_BOTH | {
    "train/policy_gradient_loss",
    "train/loss",
    "train/approx_kl",
    "train/clip_fraction",
    "train/clip_range",
}
OWN = {"time/total_timesteps", "time/sps", "train/grad_norm", "train/n_updates"}
SYSTEM = {"system/rss_mib", "system/cpu_percent"}


def algo(name: AlgoName) -> Config:
    if name == "reinforce":
        return Config().replace(algo=name, collect="episodes", gae_lambda=1.0)
    return Config().replace(algo=name)


@pytest.mark.parametrize(
    ("name", "tags"), [("a2c", SB3_A2C), ("a3c", SB3_A2C), ("reinforce", SB3_A2C), ("ppo", SB3_PPO)]
)
def test_tensorboard_tags_are_those_of_stable_baselines3(tmp_path: Path, name: AlgoName, tags: set[str]) -> None:
    tracker, writer = ReturnTracker(), TensorBoardWriter(tmp_path, algo(name))
    report = make_report(2, (Episode(7.0, 9),))
    tracker.update(report)
    writer.write(progress_row(report, tracker, 0.5))
    writer.write_evaluation(EvaluationRow(200, 8.0, 1.0, 10.0, 0.1, 10))
    writer.close()
    assert set(read_events(tmp_path)) == tags | OWN | SYSTEM


def test_tensorboard_values(tmp_path: Path) -> None:
    tracker, writer = ReturnTracker(), TensorBoardWriter(tmp_path, algo("ppo"))
    report = make_report(2, (Episode(7.0, 9),))
    tracker.update(report)
    writer.write(progress_row(report, tracker))
    writer.write_evaluation(EvaluationRow(200, 8.0, 1.0, 10.0, 0.1, 10))
    writer.close()
    writer.close()
    found = read_events(tmp_path)
    assert math.isnan(found.pop("train/explained_variance")[0][1])
    assert [found.pop(tag)[0][0] for tag in SYSTEM] == [200, 200]
    assert found == {
        "rollout/ep_rew_mean": [(200, 7.0)],
        "rollout/ep_len_mean": [(200, 9.0)],
        "time/fps": [(200, 200.0)],
        "time/sps": [(200, 200.0)],
        "time/total_timesteps": [(200, 200.0)],
        "train/policy_gradient_loss": [(200, 0.25)],
        "train/value_loss": [(200, 0.5)],
        "train/entropy_loss": [(200, -0.75)],
        "train/learning_rate": [(200, 0.125)],
        "train/grad_norm": [(200, 1.5)],
        "train/approx_kl": [(200, 0.0625)],
        "train/clip_fraction": [(200, 0.375)],
        "train/clip_range": [(200, 0.25)],
        "train/loss": [(200, 0.875)],
        "train/n_updates": [(200, 4.0)],
        "eval/mean_reward": [(200, 8.0)],
        "eval/mean_ep_length": [(200, 10.0)],
    }


SUMMARY: dict[str, JsonValue] = {
    "env_steps": 800,
    "eval_mean_return": 9.0,
    "best_eval_mean_return": None,
    "mean_return": 7.5,
    "sps": 2000.0,
    "train_wall_s": 0.25,
    "efficiency": 0.75,
}


def read_hparams(path: Path) -> plugin_data_pb2.SessionStartInfo:
    """Return the settings as TensorBoard's plugin reads them; there is one record of them."""
    values = [value for event in all_events(path) for value in event.summary.value]
    found = [value for value in values if value.metadata.plugin_data.plugin_name == metadata.PLUGIN_NAME]
    assert [value.tag for value in found] == [metadata.SESSION_START_INFO_TAG]
    return metadata.parse_session_start_info_plugin_data(found[0].metadata.plugin_data.content)


def test_files_of_one_second_are_read_in_the_order_in_which_they_were_begun(tmp_path, monkeypatch):
    monkeypatch.setattr("fastac.runs.writers.time", SimpleNamespace(time=lambda: 1.7e9, monotonic=time.monotonic))
    names = []
    for _ in range(12):  # more than one digit counts
        TensorBoardWriter(tmp_path, Config()).close()
        names.append(next(path.name for path in tmp_path.iterdir() if path.name not in names))
    assert names == sorted(names)


def test_hparams_tab_has_settings_and_final_metrics_once_per_run(tmp_path: Path) -> None:
    config = Config().replace(algo="ppo", learning_rate=0.5, hidden_sizes=(8, 4))
    for resume in (None, 300):
        writer = TensorBoardWriter(tmp_path, config, resume)
        writer.write_summary({**SUMMARY, "env_steps": (resume or 0) + 400})
        writer.close()
    hparams = read_hparams(tmp_path).hparams
    assert hparams.keys() == {name for name, value in config.to_flat().items() if value is not None}
    assert hparams["learning_rate"].number_value == 0.5
    assert hparams["baseline"].bool_value is True
    assert (hparams["algo"].string_value, hparams["hidden_sizes"].string_value) == ("ppo", "(8, 4)")
    assert read_events(tmp_path) == {  # what was beyond the checkpoint is hidden
        "final/eval_mean_reward": [(700, 9.0)],
        "final/ep_rew_mean": [(700, 7.5)],
        "final/fps": [(700, 2000.0)],
        "final/train_seconds": [(700, 0.25)],
        "final/efficiency": [(700, 0.75)],
    }


def test_a_program_that_listens_for_tensorboards_writers_hears_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    class Patched(event_file_writer.EventFileWriter):  # as Weights & Biases makes one
        def __init__(self, logdir: str, *args: object, **kwargs: object) -> None:
            heard.append(logdir)
            super().__init__(logdir, *args, **kwargs)

    TensorBoardWriter(tmp_path / "unheard", Config()).close()
    monkeypatch.setattr(event_file_writer, "EventFileWriter", Patched)
    writer = TensorBoardWriter(tmp_path / "heard", Config())
    writer.write(row(1))
    writer.close()
    assert heard == [str(tmp_path / "heard")]
    assert read_events(tmp_path / "heard")["time/total_timesteps"] == [(100, 100.0)]


def test_tensorboard_shows_what_episodes_gave_in_info(tmp_path: Path) -> None:
    tracker, writer = ReturnTracker(), TensorBoardWriter(tmp_path, Config())
    report = with_extras(1, is_success=[1.0, 0.0], score=[7.0])
    tracker.update(report)
    writer.write(progress_row(report, tracker))
    writer.close()
    found = read_events(tmp_path)
    assert (found["rollout/success_rate"], found["rollout/info/score"]) == ([(100, 0.5)], [(100, 7.0)])


def test_evaluations_have_a_success_rate_where_there_is_one(tmp_path: Path) -> None:
    for writer in (ProgressWriter(tmp_path / "progress.jsonl"), TensorBoardWriter(tmp_path / "tb", Config())):
        writer.write_evaluation(EvaluationRow(100, 1.0, 0.0, 5.0, 0.1, 10))
        writer.write_evaluation(EvaluationRow(200, 1.0, 0.0, 5.0, 0.1, 10, 0.75))
        writer.close()
    rows = read_lines(tmp_path / "evaluations.jsonl")
    assert [row.get("success_rate") for row in rows] == [None, 0.75]
    assert read_events(tmp_path / "tb")["eval/success_rate"] == [(200, 0.75)]


def test_tensorboard_throttles_but_keeps_first_latest_and_evaluated(tmp_path: Path) -> None:
    clock = Clock()
    writer = TensorBoardWriter(tmp_path, Config(), clock=clock)
    for k in range(1, 100):
        clock.now += 0.0625
        writer.write(row(k))
        if k == 40:
            writer.write_evaluation(EvaluationRow(100 * k, 1.0, 0.0, 1.0, 0.0, 10))
    writer.close()
    steps = [step for step, _ in read_events(tmp_path)["time/total_timesteps"]]
    assert steps == [100, 1700, 3300, 4000, 4900, 6500, 8100, 9700, 9900]


def test_tensorboard_resume_hides_what_was_beyond_the_checkpoint(tmp_path: Path) -> None:
    clock = Clock()
    for resume, iterations in ((None, range(1, 9)), (300, range(4, 6))):
        writer = TensorBoardWriter(tmp_path, Config(), resume, clock)
        for k in iterations:
            clock.now += 1.0
            writer.write(row(k))
        writer.close()
    steps = [step for step, _ in read_events(tmp_path)["time/total_timesteps"]]
    assert steps == [100, 200, 300, 400, 500]


def test_records_import_neither_tensorboard_nor_rich() -> None:
    ours, theirs = Pipe()
    spawn(tell_modules, "fastac.runs.writers", theirs)
    modules = ours.recv()
    assert "fastac.runs.writers" in modules and not modules & {"tensorboard", "rich"}


WANDB = """
import sys
from pathlib import Path
import wandb
from fastac.config import Config
from fastac.runs.writers import TensorBoardWriter

run = wandb.init(project="test", sync_tensorboard=True)
writer = TensorBoardWriter(Path("tb"), Config())
writer.write({"env_steps": 100, "mean_return": 7.5})
writer.close()
run.finish()
"""


def test_weights_and_biases_syncs_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    subprocess.run([sys.executable, "-c", WANDB], cwd=tmp_path, env=environment, check=True, timeout=120)
    (recorded,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"rollout/ep_rew_mean" in recorded.read_bytes()
