"""`benchmarks.stays`: which runs stay solved, and what the table says of them."""

from __future__ import annotations

from math import inf

import pytest

from benchmarks.stays import format_stays, judge, main


def evaluations(*returns: float) -> list[dict[str, float]]:
    """One evaluation every 10,000 steps and every tenth of a second."""
    return [
        {"env_steps": 10_000.0 * n, "wall_s": 0.1 * n, "mean_return": mean_return}
        for n, mean_return in enumerate(returns, 1)
    ]


def test_only_the_second_half_counts():
    stay = judge(3, evaluations(20.0, 480.0, 30.0, *[500.0] * 3), 475.0)
    assert (stay.seed, stay.first_env_steps, stay.first_train_s) == (3, 20_000.0, 0.2)
    assert (stay.share, stay.last, stay.stays) == (1.0, 500.0, True)


@pytest.mark.parametrize(("bad", "stays"), [(1, True), (2, False)])
def test_one_evaluation_in_twenty_may_be_lower(bad, stays):
    stay = judge(0, evaluations(*[500.0] * 20, *[474.0] * bad, *[500.0] * (20 - bad)), 475.0)
    assert stay.share == pytest.approx(1.0 - bad / 20) and stay.stays is stays


def test_a_run_that_ends_low_does_not_stay():
    assert not judge(0, evaluations(*[500.0] * 39, 474.0), 475.0).stays


def test_a_run_that_was_never_there_counts_as_the_slowest():
    never, soon = judge(0, evaluations(9.0, 9.0), 475.0), judge(1, evaluations(500.0, 500.0), 475.0)
    assert (never.first_env_steps, never.first_train_s, never.share) == (inf, inf, 0.0)
    table = format_stays([never, soon], 475.0)
    assert "1 of 2 stay" in table and "most inf" in table
    assert [line.count("never") for line in table.splitlines()[2:4]] == [2, 0]


def test_it_trains_and_tells_by_its_exit_code(tmp_path, capsys):
    output = tmp_path / "new" / "stays.txt"
    flags = ["--seeds", "1", "--first-seed", "4", "--total-env-steps", "2000", "--eval-every", "1000"]
    assert main([*flags, "--output", str(output), "--eval-episodes", "2"]) == 1
    told = output.read_text()
    assert told in capsys.readouterr().out
    assert "0 of 1 stay" in told and "--eval-episodes 2 --seed 4..4`" in told and "| 4 " in told
