"""The tracker: means over the last episodes, and rates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from report_support import collected, make_report, with_extras

from fastac.config import Config
from fastac.contract import MAX_EXTRAS, Episode, Phases, Report
from fastac.runs.checkpoint import load_checkpoint, save_checkpoint
from fastac.runs.tracker import ReturnTracker
from fastac.runs.writers import progress_row


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


def test_lengths_are_numbers_json_knows() -> None:
    tracker = ReturnTracker()
    tracker.update(make_report(1, (Episode(1.0, 3),)))
    assert json.dumps(progress_row(make_report(1), tracker))
    assert np.asarray(tracker.get_state()["lengths"]).dtype == np.int64
