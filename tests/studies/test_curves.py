"""Scores of curves, by hand."""

import json

import numpy as np
import pytest

from fastac.studies.curves import NEVER_S, Curve, check_objective, read_curve, score, score_so_far, tell_score


def curve(*points):
    return Curve(*np.array(points, dtype=np.float64).reshape(-1, 3).T)


LEARNED = curve((100, 0.5, 10.0), (200, 1.0, 30.0), (400, 2.0, 50.0))


@pytest.mark.parametrize(
    ("objective", "target", "expected"),
    [
        ("final", None, 50.0),
        # Flat to the first evaluation: 10 * 100; then trapezoids: 20 * 100 and 40 * 200.
        ("area", None, (1_000.0 + 2_000.0 + 8_000.0) / 400.0),
        ("seconds", 30.0, -1.0),
        ("seconds", 30.1, -2.0),
        ("seconds", 50.1, -NEVER_S),
    ],
)
def test_scores_by_hand(objective, target, expected):
    assert score(LEARNED, objective, target) == pytest.approx(expected)


def test_a_run_in_progress_is_compared_by_its_returns():
    assert score_so_far(LEARNED, "seconds") == score_so_far(LEARNED, "final") == 50.0
    assert score_so_far(LEARNED, "area") == score(LEARNED, "area", None)
    assert score(curve((100, 0.5, 10.0)), "area", None) == 10.0


def test_a_faster_run_has_the_higher_score_and_none_is_last():
    slow, fast, never = (score(curve((1, seconds, y)), "seconds", 5.0) for seconds, y in ((9, 5), (1, 5), (1, 4)))
    assert fast > slow > never


def test_scores_in_words():
    assert tell_score(1234.56, "final") == "1,234.6"
    assert tell_score(-1.234, "seconds") == "1.23 s"
    assert tell_score(-NEVER_S, "seconds") == "never"


def test_the_objective_fits_the_target():
    check_objective("seconds", 475.0)
    check_objective("area", None)
    with pytest.raises(ValueError, match="give --until-return"):
        check_objective("seconds", None)
    with pytest.raises(ValueError, match="expected objective 'seconds'"):
        check_objective("final", 475.0)


def test_a_curve_is_read_up_to_a_partial_line(tmp_path):
    assert read_curve(tmp_path).size == 0
    rows = [{"env_steps": 10 * n, "wall_s": 0.1 * n, "mean_return": float(n)} for n in (1, 2, 3)]
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "evaluations.jsonl").write_text(text[:-5])
    found = read_curve(tmp_path)
    assert found.env_steps.tolist() == [10.0, 20.0] and found.returns.tolist() == [1.0, 2.0]
