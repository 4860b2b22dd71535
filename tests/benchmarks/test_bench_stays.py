"""`benchmarks.stays`: which presets hold what they reached, and what the table says of them."""

from __future__ import annotations

import pytest

from benchmarks.seed_results import save
from benchmarks.stays import Stays, choose, format_stays, judge, load, main


def evaluations(*returns: float) -> list[dict[str, float]]:
    """One evaluation every 10,000 steps and every tenth of a second."""
    return [
        {"env_steps": 10_000.0 * n, "wall_s": 0.1 * n, "mean_return": mean_return}
        for n, mean_return in enumerate(returns, 1)
    ]


def test_only_what_comes_after_the_first_one_at_the_target_counts():
    stay = judge(3, evaluations(20.0, 480.0, 30.0, *[500.0] * 3), 475.0)
    assert (stay.seed, stay.first_env_steps, stay.first_train_s) == (3, 20_000.0, 0.2)
    assert (stay.held, stay.end) == (0.75, 500.0)


def test_the_target_itself_counts():
    assert judge(0, evaluations(475.0, 475.0, 474.9), 475.0).held == 0.5


def test_a_target_reached_at_the_very_end_is_held():
    assert judge(0, evaluations(9.0, 500.0), 475.0).held == 1.0


def test_a_run_that_was_never_there_holds_nothing():
    never, soon = judge(0, evaluations(9.0, 9.0), 475.0), judge(1, evaluations(500.0, 500.0), 475.0)
    assert (never.first_env_steps, never.first_train_s, never.held, never.end) == (None, None, 0.0, 9.0)
    table = format_stays({"CartPole-v1:a2c": Stays(475.0, 20_000, "here", (never, soon))})
    assert "| CartPole-v1, a2c |" in table and "1 of 2" in table
    assert "50.0%, 0%" in table and "254.5, 9.0" in table


def test_the_file_gives_back_what_was_measured(tmp_path):
    found = {"CartPole-v1:a2c": Stays(475.0, 20_000, "here", (judge(4, evaluations(9.0, 9.0), 475.0),))}
    save(tmp_path / "new" / "stays.json", found)
    assert load(tmp_path / "new" / "stays.json") == found
    assert load(tmp_path / "none.json") == {}


def test_by_default_all_small_environments_with_a_target_are_measured():
    names = choose([])
    assert {"CartPole-v1:a2c", "CartPole-v1:ppo", "LunarLander-v3:ppo"} <= set(names)
    assert all(preset.reaches is not None for preset in names.values())


def test_a_preset_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit) as left:
        main(["CartPole-v1:a9c"])
    assert left.value.code == 2 and "'CartPole-v1:a9c' is not a preset with a target" in capsys.readouterr().err


def test_it_trains_and_keeps_what_was_there(tmp_path, capsys, monkeypatch):
    output = tmp_path / "stays.json"
    kept = {"Elsewhere-v0:a2c": Stays(1.0, 10, "there", (judge(0, evaluations(1.0), 1.0),))}
    save(output, kept)
    preset = choose(["CartPole-v1:a2c"])["CartPole-v1:a2c"]
    short = type(preset)(preset.env_id, "a2c", 5.0, lambda: preset.make().replace(total_env_steps=2000))
    monkeypatch.setattr("benchmarks.stays.CLASSIC", (short,))
    main(["--seeds", "1", "--first-seed", "4", "--output", str(output)])
    found = load(output)
    assert (
        list(found) == ["Elsewhere-v0:a2c", "CartPole-v1:a2c"] and found["Elsewhere-v0:a2c"] == kept["Elsewhere-v0:a2c"]
    )
    assert found["CartPole-v1:a2c"].seeds[0].seed == 4
    assert "| CartPole-v1, a2c " in capsys.readouterr().out
