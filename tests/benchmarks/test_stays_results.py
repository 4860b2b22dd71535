"""The page's table is what was measured, with the budgets and targets that presets have today."""

from pathlib import Path

from benchmarks.stays import RESULTS, choose, format_stays, load

ROOT = Path(__file__).parents[2]


def test_what_is_kept_is_of_todays_presets_and_on_the_page():
    found = load(ROOT / RESULTS)
    assert len(found) >= 9
    for name, preset in choose(list(found)).items():
        assert (found[name].target, found[name].env_steps) == (preset.reaches, preset.make().run.total_env_steps), name
    assert format_stays(found) in (ROOT / "benchmarks/README.md").read_text()
