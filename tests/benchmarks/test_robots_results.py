"""The robots' table is what was measured, with the budgets that presets have today; and how it is made."""

from pathlib import Path

import pytest

from benchmarks.robots import PUBLISHED, RESULTS, Robot, Seed, choose, draw, format_robots, load, save

ROOT = Path(__file__).parents[2]
FOUND = {
    "Hopper-v5:ppo": Robot(
        1000,
        "a machine",
        (Seed(3, 3000.0, 60.0, (500, 1000), (900.0, 3000.0)), Seed(4, 1000.0, 120.0, (1000,), (1000.0,))),
    ),
    "Hopper-v5:a2c": Robot(1000, "a machine", (Seed(3, 1500.0, 30.0, (1000,), (1500.0,)),)),
}


def test_what_is_kept_is_of_todays_presets_and_on_the_page():
    found = load(ROOT / RESULTS)
    assert len(found) >= 4
    for name, preset in choose(list(found)).items():
        assert found[name].env_steps == preset.make().run.total_env_steps, name
    assert format_robots(found) in (ROOT / "benchmarks/README.md").read_text()


def test_a_row_has_the_mean_of_the_last_policies_the_worst_and_those_below_half():
    ppo, a2c = (row.split("|")[1:-1] for row in format_robots(FOUND).splitlines()[2:])
    assert [cell.strip() for cell in ppo] == [
        *("Hopper-v5, ppo", "2,609", "2,383", "2,000 +- 1,000", "1,000", "1 of 2", "1,000", "1.5"),
    ]
    assert [cell.strip() for cell in a2c][:5] == ["Hopper-v5, a2c", "1,253", "-", "1,500 +- 0", "1,500"]


def test_what_is_saved_comes_back_and_is_drawn(tmp_path):
    save(tmp_path / "robots.json", FOUND)
    assert load(tmp_path / "robots.json") == FOUND
    draw(FOUND, tmp_path / "robots.png")
    assert (tmp_path / "robots.png").stat().st_size > 10_000


def test_every_published_figure_has_a_preset():
    assert list(choose([])) == list(PUBLISHED)
    with pytest.raises(ValueError, match="'Hopper-v5:x' is not one of HalfCheetah-v5:ppo, "):
        choose(["Hopper-v5:x"])
