"""Reports: numbers by hand, a page that reads well, and a picture, read from the figure."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from experiments_support import toy
from PIL import Image

from benchmarks.experiments import write_report
from benchmarks.experiments.__main__ import main
from benchmarks.experiments.definition import Column, Measurement
from benchmarks.experiments.jobs import list_jobs, save_measurement
from benchmarks.experiments.report import format_cell, summarise
from fastac.install import INSTALL
from fastac.studies.stats import bootstrap_interval, interquartile_mean

MACHINE = {"cpu": "an abacus", "cores": 2, "versions": {"python": "3.11", "fastac": "0.1"}, "commit": "abc"}


@pytest.fixture
def undrawn(monkeypatch):
    """No picture, which takes half a second."""
    monkeypatch.setattr("benchmarks.experiments.report.draw", lambda *_: None)


def save_all(experiment, seeds, out, machine=MACHINE):
    for job in list_jobs(experiment, seeds):
        save_measurement(job, out, job.arm.measure(job.config), 1.0, machine)


def test_results_by_hand(tmp_path, undrawn):
    save_all(toy(), 6, tmp_path)
    write_report(toy(), 6, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["experiment"] == "toy" and results["question"] == "Does the toy work?"
    assert results["command"] == "python -m benchmarks.experiments toy --seeds 6" and results["seeds"] == 6
    assert results["machines"] == [MACHINE]
    assert list(results["groups"]) == ["first", "second"]
    first = results["groups"]["first"]
    assert first["settings"]["num_envs"] == 16 and "seed" not in first["settings"]
    assert [arm["settings"] for arm in first["arms"].values()] == [{}, {"num_envs": 32}]
    final = first["arms"]["arm 1"]["values"]["final"]
    assert final["scores"] == [5.0, 15.0, 25.0, 35.0, 45.0, 55.0]
    assert (final["none"], final["mean"], final["iqm"]) == (0, 30.0, pytest.approx(30.0))
    assert final["mean_interval"] == list(bootstrap_interval(np.array(final["scores"]), np.mean))
    assert final["iqm_interval"] == list(bootstrap_interval(np.array(final["scores"]), interquartile_mean))
    solved = first["arms"]["arm 0"]["values"]["solved"]
    assert (solved["scores"], solved["none"], solved["mean"]) == ([100.0, 101.0, None, None, None, None], 4, 100.5)
    never = first["arms"]["arm 0"]["values"]["never"]
    assert (never["none"], never["mean"], never["mean_interval"]) == (6, None, None)


def test_the_page(tmp_path, undrawn):
    save_all(toy(), 6, tmp_path)
    tables = write_report(toy(), 6, tmp_path)
    low, high = bootstrap_interval(np.arange(0.0, 60.0, 10.0), np.mean)
    first = f"| 25.0 / 25.0 [{low:.1f}, {high:.1f}] | 100 / 100, 2 of 6 | 0 of 6 |"
    second = f"| 30.0 / 30.0 [{low + 5:.1f}, {high + 5:.1f}] | 100 / 100, 2 of 6 | 0 of 6 |"
    told = "algo a2c, num_envs {}, num_steps 16, learning_rate 0.0007, total_env_steps 500,000."
    assert (tmp_path / "report.md").read_text() == "\n".join(
        [
            "# toy",
            "",
            "Does the toy work?",
            "",
            "## first",
            "",
            f"Settings of *arm 0*: {told.format(16)}",
            "",
            "|  | return | steps to the goal | never |",
            "|---|---:|---:|---:|",
            f"| arm 0 {first}",
            f"| arm 1 {second}",
            "",
            "## second",
            "",
            f"Settings of *arm 0*: {told.format(8)}",
            "",
            "|  | return | steps to the goal | never |",
            "|---|---:|---:|---:|",
            f"| arm 0 {first}",
            "",
            "- *return*: of the last episode.",
            "- *steps to the goal*: of training.",
            "- *never*: nothing.",
            "",
            "Mean / interquartile mean [95 % bootstrap interval of the mean] over 6 seeds. With so few it is "
            "too narrow: of 10 normal numbers it covers the true mean in about 90 % of cases. Of fewer than 5 there is "
            "none. Where it says *k of n*, so many of the seeds came to that, and the numbers are of these alone.",
            "",
            "![toy](toy.png)",
            "",
            "Run it again: `python -m benchmarks.experiments toy --seeds 6`. Every arm's settings and every seed's "
            "numbers are in `results.json`.",
            "",
            "Seeds: 0, 1, 2, 3, 4, 5. On an abacus, 2 cores; python 3.11, fastac 0.1; commit abc.",
            "",
        ]
    )
    assert tables in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("scores", "cell"),
    [
        ([1234.5], "1,234.50"),
        ([None], "0 of 1"),
        ([2.0, None], "2.00, 1 of 2"),
        ([2.0, 2.0], "2.00 / 2.00"),
        ([2.0] * 5, "2.00 / 2.00 [2.00, 2.00]"),
        ([2.0] * 5 + [None], "2.00 / 2.00 [2.00, 2.00], 5 of 6"),
    ],
)
def test_cells(scores, cell):
    assert format_cell(summarise(scores), Column("x", "X", "", 2)) == cell
    assert format_cell(None, Column("x", "X", "")) == "-"


@pytest.mark.parametrize(
    ("scores", "cell"),
    [
        ([1.0, 2.0, 6.0, None], "median 4, 3 of 4"),  # not their mean, which is 3
        ([1.0, None], "1 of 2"),  # half came to that: half way to never is never
        ([1.0, None, None], "1 of 3"),
        ([1.0, 2.0, 6.0], "3 / 3"),
    ],
)
def test_cells_of_times_to_what_may_never_come(scores, cell):
    assert format_cell(summarise(scores), Column("x", "X", "", 0, none_is_last=True)) == cell


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"commit": "def"}, "On an abacus, 2 cores; python 3.11, fastac 0.1; commits def, abc.\n"),
        (
            {"cpu": "a slide rule", "cores": 1},
            "On a slide rule, 1 core; python 3.11, fastac 0.1; commit abc. "
            "And on an abacus, 2 cores; python 3.11, fastac 0.1; commit abc.\n",
        ),
    ],
)
def test_other_machines_and_commits_are_all_named(tmp_path, undrawn, other, told):
    save_all(toy(), 2, tmp_path)
    save_all(toy(), 1, tmp_path, MACHINE | other)
    write_report(toy(), 2, tmp_path)
    assert (tmp_path / "report.md").read_text().splitlines(keepends=True)[-1].endswith(told)


def measure_other(config):
    return Measurement({}, {"other": 1.0})


def test_a_group_shows_only_what_it_measures(tmp_path, drawn):
    experiment = toy()
    arms = (*experiment.arms[:2], type(experiment.arms[2])("second", "x", experiment.arms[2].config, measure_other))
    experiment = type(experiment)(
        "toy", "?", arms, experiment.plots, (Column("final", "F", "f"), Column("other", "O", "o"))
    )
    save_all(experiment, 2, tmp_path)
    page = write_report(experiment, 2, tmp_path)
    assert "|  | F |\n" in page and "|  | O |\n" in page
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == ["first\nlearning", "first\nvalues"]


def test_a_row_of_panels_for_each_group_or_one_row_where_all_fit(tmp_path, drawn):
    assert grid_of(toy(), tmp_path / "four", drawn) == [(2, 2)] * 4
    alone = replace(toy().arms[2], measure=measure_other)
    plot = replace(toy().plots[1], values={"other": "other"})
    experiment = replace(toy(), arms=(*toy().arms[:2], alone), plots=(*toy().plots, plot))
    assert grid_of(experiment, tmp_path / "three", drawn) == [(1, 3)] * 3


def grid_of(experiment, out, drawn):
    save_all(experiment, 1, out)
    write_report(experiment, 1, out)
    return [axes.get_subplotspec().get_gridspec().get_geometry() for axes in drawn[-1].axes]


def test_the_picture(tmp_path, drawn):
    save_all(toy(), 5, tmp_path)
    write_report(toy(), 5, tmp_path)
    with Image.open(tmp_path / "toy.png") as image:
        assert image.size == (1500, int(150 * (2 * 3.6 + 0.8)))
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10  # something is drawn
    curves, _, *second = drawn[0].axes
    assert curves.get_title(loc="left") == "first\nlearning"
    assert (curves.get_xlabel(), curves.get_ylabel()) == ("environment steps", "return")
    zero, one = curves.lines
    assert (zero.get_label(), one.get_label()) == ("arm 0", "arm 1")
    assert zero.get_color() != one.get_color() == values_color(drawn, "arm 1")
    assert second[0].lines[0].get_color() == zero.get_color()
    assert zero.get_xdata()[[0, -1]].tolist() == [100.0, 1100.0]  # to where the first ends
    np.testing.assert_allclose(one.get_ydata()[[0, -1]], [26.0, 25.0 + 11**0.5])
    low, high = bootstrap_interval(np.arange(6.0, 56.0, 10.0), np.mean)
    corners = curves.collections[1].get_paths()[0].vertices
    for corner in ([100.0, low], [100.0, high]):
        assert np.isclose(corners, corner).all(axis=1).any()
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["arm 0", "arm 1"]
    title = "Mean of 5 seeds (lines, squares), its 95 % interval (bands, bars), single seeds (dots)"
    assert legend.get_title().get_text().splitlines() == [
        title,
        "k/5: so many seeds came to that; what is drawn is of these alone",
    ]


def values_color(drawn, name):
    (legend,) = drawn[0].legends
    (line,) = [line for line in legend.get_lines() if line.get_label() == name]
    return line.get_color()


def test_values_are_squares_bars_and_dots(tmp_path, drawn):
    save_all(toy(), 5, tmp_path)
    write_report(toy(), 5, tmp_path)
    axes = drawn[0].axes[1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["arm 0", "arm 1"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["at the end", "to the goal"]
    (final, solved) = [line for line in axes.lines if line.get_marker() == "s"]
    np.testing.assert_allclose(final.get_xydata(), [[-0.125, 20.0], [0.875, 25.0]])
    np.testing.assert_allclose(solved.get_xydata(), [[0.125, 100.5], [1.125, 100.5]])
    dots = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert dots[1] == [[0.875, 5.0], [0.875, 15.0], [0.875, 25.0], [0.875, 35.0], [0.875, 45.0]]
    bars = [line.get_xydata().tolist() for line in axes.lines if line.get_linewidth() == 3.0]
    assert bars[1] == [[0.875, end] for end in bootstrap_interval(np.arange(5.0, 55.0, 10.0), np.mean)]
    assert [text.get_text() for text in axes.texts] == ["2/5", "2/5"]


def test_where_some_seeds_never_come_the_square_is_the_median(tmp_path, drawn):
    experiment = toy()
    plot = replace(experiment.plots[1], values={"solved": "to the goal"}, none_is_last=True)
    experiment = replace(experiment, plots=(plot,))
    save_all(experiment, 3, tmp_path)
    write_report(experiment, 3, tmp_path)
    axes = drawn[0].axes[0]
    (square,) = [line for line in axes.lines if line.get_marker() == "s"]
    np.testing.assert_allclose(square.get_xydata(), [[0.0, 101.0], [1.0, 101.0]])  # of 100, 101 and never
    told = drawn[0].legends[0].get_title().get_text()
    assert told == "Mean of 3 seeds (squares), single seeds (dots)\nk/3: so many seeds came to that; " + (
        "the square is the median of all seeds, the others last"
    )
    save_all(experiment, 5, tmp_path)
    write_report(experiment, 5, tmp_path)
    (square,) = [line for line in drawn[1].axes[0].lines if line.get_marker() == "s"]
    assert len(square.get_xydata()) == 0  # most never come


def test_values_by_a_setting(tmp_path, drawn):
    save_all(toy(x_setting="num_envs"), 1, tmp_path)
    write_report(toy(x_setting="num_envs"), 1, tmp_path)
    axes = drawn[0].axes[1]
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "environments")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["16", "32"]
    (final, solved) = [line for line in axes.lines if line.get_marker() == "s"]
    np.testing.assert_allclose(final.get_xydata(), [[16.0 * 1.1**-0.5, 0.0], [32.0 * 1.1**-0.5, 5.0]])
    np.testing.assert_allclose(solved.get_xydata(), [[16.0 * 1.1**0.5, 100.0], [32.0 * 1.1**0.5, 100.0]])
    assert final.get_linestyle() == solved.get_linestyle() == "-"
    assert not [line for line in axes.lines if line.get_linewidth() == 3.0]
    assert drawn[0].legends[0].get_title().get_text() == "1 seed"


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def toys(monkeypatch, tmp_path):
    module = types.ModuleType("benchmarks.experiments.definitions")
    module.EXPERIMENTS = (toy(), toy(name="other", extras=("experiments", "mujoco")))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)


def test_the_command_runs_and_tells_where_everything_is(toys, tmp_path, capsys):
    assert main(["toy", "--seeds", "2"]) == 0
    out = tmp_path / "runs" / "experiments" / "toy"
    assert sorted(path.name for path in out.iterdir()) == ["report.md", "results.json", "toy.png", "trials"]
    told = capsys.readouterr()
    assert told.out.startswith("## first\n\nSettings of *arm 0*: algo a2c,")
    assert told.err.splitlines()[-1] == ("Everything is in runs/experiments/toy: report.md, results.json and toy.png")
    page = (out / "report.md").read_bytes()
    assert main(["toy", "--seeds", "2", "--out", "runs/experiments/toy"]) == 0
    assert (out / "report.md").read_bytes() == page


def test_the_list(toys, capsys):
    assert main(["list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["toy", "other"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["toyy"], "'toyy' is not an experiment: did you mean toy?"),
        (["zzz"], "'zzz' is not an experiment: expected one of toy, other."),
        (["toy", "--seeds", "0"], "seeds is 0, expected at least 1."),
    ],
)
def test_wrong_words_are_one_sentence(toys, tmp_path, capsys, words, message):
    assert main(words) == 2
    assert capsys.readouterr().err == f"experiments: {message}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("missing", "name", "extra"),
    [("mujoco", "other", "mujoco"), ("matplotlib", "toy", "experiments"), ("scipy", "toy", "experiments")],
)
def test_a_missing_extra_is_told_before_anything_runs(toys, tmp_path, capsys, monkeypatch, missing, name, extra):
    monkeypatch.setattr("benchmarks.experiments.find_spec", lambda module: None if module == missing else object())
    assert main([name]) == 2
    assert capsys.readouterr().err == (
        f"experiments: {name} needs {missing}, which is not installed: {INSTALL[extra]}.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_signal_is_the_exit_code_and_the_command_goes_on(toys, monkeypatch, capsys):
    import signal

    monkeypatch.setattr("benchmarks.experiments.__main__.run_experiment", lambda *_: signal.SIGTERM)
    assert main(["toy", "--out", "my out"]) == 143
    assert (
        capsys.readouterr().err
        == "Stopped by SIGTERM. Continue with: python -m benchmarks.experiments toy --out 'my out'\n"
    )
