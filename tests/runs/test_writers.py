"""Writers, the tracker and the progress bar."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from tensorboard.summary.writer import event_file_writer

from fastac.config import AlgoName, Config, JsonValue
from fastac.contract import MAX_EXTRAS, Episode, Episodes, Phases, Report
from fastac.runs.checkpoint import load_checkpoint, save_checkpoint
from fastac.runs.files import RecordError
from fastac.runs.progress import Bar, Evaluated, ProgressBar, ProgressLines, open_bar, shorten
from fastac.runs.tracker import ReturnTracker
from fastac.runs.writers import EvaluationRow, ProgressWriter, TensorBoardWriter, progress_row

LOSSES = {
    "policy_loss": 0.25,
    "value_loss": 0.5,
    "entropy": 0.75,
    "explained_variance": math.nan,
    "grad_norm": 1.5,
    "learning_rate": 0.125,
    "approx_kl": 0.0625,
    "clip_fraction": 0.375,
    "clip_range": 0.25,
    "loss": 0.875,
}


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def collected(episodes: tuple[Episode, ...]) -> Episodes:
    returns, lengths = [e.return_ for e in episodes], [e.length for e in episodes]
    return Episodes(np.array(returns, np.float64), np.array(lengths, np.int64))


def make_report(iteration: int, finished: tuple[Episode, ...] = (), seconds: float = 0.5) -> Report:
    steps = 100 * iteration
    return Report(
        iteration,
        steps,
        4 * steps,
        2 * iteration,
        3 * iteration,
        collected(finished),
        seconds * iteration,
        Phases(),
        LOSSES,
    )


def read_lines(path: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def row(iteration: int) -> dict[str, float | int | None]:
    return {"iteration": iteration, "env_steps": 100 * iteration}


# --- tracker ---------------------------------------------------------------------------------------


def test_tracker_means_over_the_last_episodes() -> None:
    tracker = ReturnTracker(window_episodes=3)
    tracker.update(make_report(1))
    assert tracker.mean_return is None
    assert tracker.mean_length is None
    tracker.update(make_report(2, (Episode(1.0, 10), Episode(2.0, 20))))
    assert (tracker.mean_return, tracker.mean_length) == (1.5, 15.0)
    tracker.update(make_report(3, (Episode(3.0, 30), Episode(4.0, 40))))
    assert (tracker.mean_return, tracker.mean_length) == (3.0, 30.0)


def test_tracker_rates() -> None:
    tracker = ReturnTracker()
    assert (tracker.sps, tracker.sps_window) == (0.0, 0.0)
    tracker.update(Report(1, 0, 0, 0, 0, collected(()), 0.0, Phases()))
    assert (tracker.sps, tracker.sps_window) == (0.0, 0.0)
    for second in range(1, 21):  # 100 a second for ten seconds, then 1000
        steps = 100 * min(second, 10) + 1000 * max(0, second - 10)
        tracker.update(Report(second, steps, steps, 0, 0, collected(()), float(second), Phases()))
    assert tracker.sps == 11_000 / 20
    assert tracker.sps_window == 1000.0


def test_tracker_rate_window_is_bounded_and_survives_a_long_iteration() -> None:
    tracker = ReturnTracker()
    for k in range(5000):
        tracker.update(Report(k, k, k, 0, 0, collected(()), k * 1e-4, Phases()))
    assert tracker.sps_window == pytest.approx(1e4)
    assert len(tracker._samples) <= 2048
    tracker.update(Report(5000, 6000, 0, 0, 0, collected(()), 60.0, Phases()))  # one iteration longer than the window
    assert tracker.sps_window == pytest.approx((6000 - 4999) / (60.0 - 0.4999))


def test_tracker_state_goes_through_a_checkpoint(tmp_path: Path) -> None:
    one, other = ReturnTracker(4), ReturnTracker(4)
    one.update(make_report(1, tuple(Episode(0.1 * k, k) for k in range(7))))
    path = save_checkpoint(tmp_path, 1, {"tracker": one.get_state()}, Config())
    other.update(make_report(1, (Episode(9.0, 9),)))
    other.load_state(load_checkpoint(path).state["tracker"])
    for tracker in (one, other):
        tracker.update(make_report(2, (Episode(0.7, 70),)))
    assert (one.mean_return, one.mean_length) == (other.mean_return, other.mean_length)
    assert one.get_state()["returns"].tolist() == other.get_state()["returns"].tolist()
    assert all(type(length) is int for length in other._lengths)


def with_extras(iteration: int, **extras: list[float]) -> Report:
    report = make_report(iteration)
    report.finished.extras = {key.replace("_of_", "/"): np.array(values) for key, values in extras.items()}
    return report


def test_tracker_means_over_what_episodes_gave_in_info(tmp_path: Path) -> None:
    one, other = ReturnTracker(3), ReturnTracker(3)
    one.update(with_extras(1, is_success=[1.0, 1.0, 0.0, 0.0], part_of_reward=[2.0], empty=[]))
    assert one.extras == {"is_success": pytest.approx(1 / 3), "part/reward": 2.0}
    path = save_checkpoint(tmp_path, 1, {"tracker": one.get_state()}, Config())
    other.update(with_extras(1, is_success=[9.0], stale=[1.0]))
    other.load_state(load_checkpoint(path).state["tracker"])
    for tracker in (one, other):
        tracker.update(with_extras(2, is_success=[1.0]))
        assert tracker.extras == {"is_success": pytest.approx(1 / 3), "part/reward": 2.0}
    row = progress_row(make_report(2), other)
    assert (row["success_rate"], row["info/part/reward"]) == (pytest.approx(1 / 3), 2.0)


def test_tracker_keeps_no_more_than_its_share_of_keys() -> None:
    tracker = ReturnTracker()
    for k in range(100):
        tracker.update(with_extras(k, **{f"key{k}": [1.0]}))
    assert list(tracker.extras) == [f"key{k}" for k in range(MAX_EXTRAS)]


def test_empty_tracker_state_round_trip() -> None:
    tracker = ReturnTracker()
    tracker.load_state(tracker.get_state())
    assert tracker.mean_return is None


# --- JSON lines ------------------------------------------------------------------------------------


def test_row_and_lines(tmp_path: Path) -> None:
    tracker, writer = ReturnTracker(), ProgressWriter(tmp_path / "progress.jsonl")
    for report in (make_report(1), make_report(2, (Episode(7.0, 9),))):
        tracker.update(report)
        writer.write(progress_row(report, tracker))
    writer.close()
    writer.close()
    first, second = read_lines(tmp_path / "progress.jsonl")
    assert (first["mean_return"], first["mean_length"], first["explained_variance"]) == (None, None, None)
    assert second == {
        "iteration": 2,
        "env_steps": 200,
        "frames": 800,
        "updates": 4,
        "episodes": 6,
        "train_wall_s": 1.0,
        "sps": 200.0,
        "sps_window": 200.0,
        "mean_return": 7.0,
        "mean_length": 9.0,
        **LOSSES,
        "explained_variance": None,
    }


def test_lines_reach_the_file_every_second_and_at_flush_and_evaluations_at_once(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "progress.jsonl"
    writer = ProgressWriter(path, clock=clock)
    writer.write(row(1))
    assert read_lines(path) == []
    clock.now += 1.0
    writer.write(row(2))
    assert len(read_lines(path)) == 2
    writer.write(row(3))
    assert len(read_lines(path)) == 2
    writer.flush()
    assert len(read_lines(path)) == 3
    writer.write_evaluation(EvaluationRow(300, 9.5, math.inf, 20.0, 0.1, 10))
    assert read_lines(tmp_path / "evaluations.jsonl") == [
        {"env_steps": 300, "mean_return": 9.5, "std": None, "mean_length": 20.0, "wall_s": 0.1, "episodes": 10}
    ]
    writer.close()


@pytest.mark.parametrize("tail", [b"", b'{"iteration": 9, "env_', b'{"iteration": 4, "env_steps": 400}', b"\xff\n{}\n"])
def test_resume_has_each_iteration_once(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "progress.jsonl"
    writer = ProgressWriter(path)
    for k in range(1, 4 if tail.startswith(b'{"iteration": 4') else 9):
        writer.write(row(k))
    for steps in (200, 300, 700):
        writer.write_evaluation(EvaluationRow(steps, 1.0, 0.0, 1.0, 0.0, 10))
    writer.close()
    with path.open("ab") as file:
        file.write(tail)
    resumed = ProgressWriter(path, resume_at=(3, 300))
    resumed.write(row(4))
    resumed.close()
    assert [line["iteration"] for line in read_lines(path)] == [1, 2, 3, 4]
    assert [line["env_steps"] for line in read_lines(tmp_path / "evaluations.jsonl")] == [200, 300]


def test_resume_without_files_begins_them_and_a_new_run_empties_them(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    for resume_at in ((5, 500), None):
        writer = ProgressWriter(path, resume_at)
        writer.write(row(6))
        writer.close()
        assert [line["iteration"] for line in read_lines(path)] == [6]


def test_resume_from_between_two_rows_keeps_what_was_evaluated_there(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    writer = ProgressWriter(path)
    for k in (2, 4):
        writer.write(row(k))
    for steps in (200, 317, 318):
        writer.write_evaluation(EvaluationRow(steps, 1.0, 0.0, 1.0, 0.0, 10))
    writer.close()
    ProgressWriter(path, resume_at=(3, 317)).close()
    assert [line["iteration"] for line in read_lines(path)] == [2]
    assert [line["env_steps"] for line in read_lines(tmp_path / "evaluations.jsonl")] == [200, 317]


def test_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = ProgressWriter(tmp_path / "progress.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_rows", Full())
        with pytest.raises(RecordError, match=r"^cannot write .*progress.jsonl: No space left on device\.$"):
            writer.write(row(1))
    writer.close()
    with pytest.raises(RecordError, match="No such file"):
        ProgressWriter(tmp_path / "missing" / "progress.jsonl")
    with pytest.raises(RecordError, match="Not a directory"):
        TensorBoardWriter(tmp_path / "progress.jsonl" / "tb", Config())


# --- TensorBoard -----------------------------------------------------------------------------------


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
OWN = {"time/total_timesteps", "train/grad_norm", "train/n_updates"}  # which SB3 keeps for its log, and one more


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
    assert set(read_events(tmp_path)) == tags | OWN


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
    assert found == {
        "rollout/ep_rew_mean": [(200, 7.0)],
        "rollout/ep_len_mean": [(200, 9.0)],
        "time/fps": [(200, 200.0)],
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
    code = "import sys, fastac.runs.writers; print([m for m in ('tensorboard', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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


# --- null twins and the bar ------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stderr a terminal (not as a fixture: pytest puts its own stderr back before the test)."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    return stream


def test_without_a_terminal_there_is_a_line_per_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr, tracker = io.StringIO(), ReturnTracker()
    monkeypatch.setattr(sys, "stderr", stderr)
    bar: Bar = open_bar(20_000)
    assert isinstance(bar, ProgressLines)
    for k in range(1, 10):
        tracker.update(make_report(k, (Episode(9.5, 5),)))
        bar.update(make_report(k), tracker)
    assert stderr.getvalue() == ""
    bar.evaluating(3, 10)
    bar.evaluated(Evaluated(900, 12.25, 1.5, 20.0, 0.5))
    bar.close()
    (line,) = stderr.getvalue().splitlines()
    for fact in ("900 of 20k steps", "200 steps/s", "return     9.5", "evaluation    12.2 +- 1.5", "best    20.0"):
        assert fact in line
    assert len(line) <= 100


def test_without_evaluations_in_between_there_are_lines_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr, tracker = io.StringIO(), ReturnTracker()
    monkeypatch.setattr(sys, "stderr", stderr)
    bar = open_bar(4000)
    for k in range(1, 41):
        tracker.update(make_report(k))
        bar.update(make_report(k), tracker)
    assert len(stderr.getvalue().splitlines()) == 8  # a report comes after 100 steps, a line beyond 400


def test_the_bar_shows_an_evaluation_the_best_so_far_and_a_time_left_that_includes_them(monkeypatch) -> None:
    terminal, clock, tracker = open_terminal(monkeypatch), Clock(), ReturnTracker()
    bar = ProgressBar(1_200_000, clock)
    report = Report(1, 400_000, 0, 0, 0, collected((Episode(123.4, 5),)), 4.0, Phases())
    tracker.update(report)
    bar.update(report, tracker)
    clock.now += 1.0
    bar.evaluating(43, 100)
    assert "400k/1.2M steps  evaluating 43/100  0:08 left" in terminal.getvalue()
    bar.evaluated(Evaluated(400_000, 450.0, 1.0, 480.0, 2.0))
    clock.now += 1.0
    bar.update(report, tracker)
    bar.close()
    text = terminal.getvalue()
    assert "400k/1.2M steps  100k steps/s  return 123.4  best 480.0  0:12 left" in text
    drawn = text.splitlines()[-1].split("\r\x1b[2K")
    assert all(len(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line)) < 80 for line in drawn)


def test_bar_shows_progress_at_most_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, clock, tracker = open_terminal(monkeypatch), Clock(), ReturnTracker()
    bar = ProgressBar(1_200_000, clock)
    draws = []
    for k in range(1, 41):
        report = Report(k, k * 10_000, 0, 0, 0, collected((Episode(9.5, 5),)), k / 10, Phases())
        tracker.update(report)
        before = terminal.tell()
        bar.update(report, tracker)
        draws.append(terminal.tell() > before)
        clock.now += 1 / 32
    assert draws == [k % 4 == 0 for k in range(40)]
    bar.close()
    bar.close()
    text = terminal.getvalue()
    assert "400k/1.2M steps  100k steps/s  return 9.5  0:08 left" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor is back


def test_bar_before_any_episode_and_past_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    bar = open_bar(50)
    assert isinstance(bar, ProgressBar)
    tracker = ReturnTracker()
    bar.update(Report(0, 0, 0, 0, 0, collected(()), 0.0, Phases()), tracker)
    tracker.update(make_report(1))
    bar.update(make_report(1), tracker)
    bar.close()
    assert "return -  -:-- left" in terminal.getvalue()
    assert "100/50 steps  200 steps/s  return -  0:00 left" in terminal.getvalue()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1k"),
        (1234, "1.23k"),
        (123_456, "123k"),
        (999_600, "1M"),
        (1.2e6, "1.2M"),
        (5e12, "5e+03G"),
    ],
)
def test_short_numbers(number: float, text: str) -> None:
    assert shorten(number) == text


def test_lengths_are_numbers_json_knows() -> None:
    tracker = ReturnTracker()
    tracker.update(make_report(1, (Episode(1.0, 3),)))
    assert json.dumps(progress_row(make_report(1), tracker))
    assert np.asarray(tracker.get_state()["lengths"]).dtype == np.int64
