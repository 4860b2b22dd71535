"""The guide's table of A3C is what was measured, with the targets that presets have today."""

from pathlib import Path

from benchmarks.speedup import RESULTS, choose, flags_of, format_speedup, load

ROOT = Path(__file__).parents[2]


def test_what_is_kept_is_of_todays_presets_and_on_the_page():
    found = load(ROOT / RESULTS)
    assert list(found) == list(choose([]))
    for name, preset in choose([]).items():
        measured = (found[name].target, found[name].env_steps, found[name].flags)
        assert measured == (preset.reaches, preset.make().run.total_env_steps, " ".join(flags_of(preset))), name
        assert len(found[name].seeds) == 20
    assert format_speedup(found) in (ROOT / "fastac/guides/a3c.md").read_text()
