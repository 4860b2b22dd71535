"""Plots: what is drawn where, read from the figure; what is said when there is nothing to draw."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from fastac.config import Config
from fastac.runs.files import RecordError
from fastac.runs.run_dir import RunDirectory
from fastac.runs.writers import EvaluationRow, ProgressWriter
from fastac.tools.plot import plot


def make_run(path, xs=(100, 200, 300), returns=(1.0, 2.0, 3.0), evaluations=(), seconds_per_step=0.01, **changes):
    """Write a run directory as training does."""
    run = RunDirectory.create(path, Config().replace(**changes))
    writer = ProgressWriter(run.progress_path)
    for iteration, (x, return_) in enumerate(zip(xs, returns, strict=True), start=1):
        seconds = seconds_per_step * x
        writer.write({"iteration": iteration, "env_steps": x, "train_wall_s": seconds, "mean_return": return_})
    for x, return_ in evaluations:
        writer.write_evaluation(EvaluationRow(x, return_, 0.0, 1.0, 0.0, 10))
    writer.close()
    return path


def line(axes, label):
    """Return x and y of the line whose label begins with `label`."""
    (found,) = [item for item in axes.lines if str(item.get_label()).startswith(label)]
    return np.asarray(found.get_xdata()), np.asarray(found.get_ydata())


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_line_is_the_mean_of_seeds_and_the_band_their_range(drawn, tmp_path):
    make_run(tmp_path / "a", (100, 200, 300), (1.0, 2.0, 3.0), seed=0)
    make_run(tmp_path / "b", (50, 400), (1.5, 8.5), seed=1)  # 2.5 at 100, 6.5 at 300
    plot([tmp_path / "a", tmp_path / "b"], tmp_path / "out.png")
    (axes,) = drawn[0].axes
    x, y = line(axes, "A2C")
    assert (x[0], x[-1]) == (100.0, 300.0)  # both have begun, none has ended
    np.testing.assert_allclose([y[0], y[-1]], [(1.0 + 2.5) / 2, (3.0 + 6.5) / 2])
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    for corner in ([100.0, 1.0], [100.0, 2.5], [300.0, 3.0], [300.0, 6.5]):
        assert np.isclose(corners, corner).all(axis=1).any()
    assert legend(axes) == ["A2C (mean and min\N{EN DASH}max of 2 seeds)"]
    single = [item for item in axes.lines if len(item.get_xdata()) == 2 and item.get_xdata()[-1] == 400]
    assert len(single) == 1  # the longer run to its own end


def test_the_picture_has_its_size_and_no_other_file_stays(tmp_path):
    make_run(tmp_path / "a")
    plot([tmp_path / "a"], tmp_path / "pictures" / "out.png")
    with Image.open(tmp_path / "pictures" / "out.png") as image:
        assert image.size == (1200, 675)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10  # something is drawn
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["out.png"]


def test_one_seed_has_no_band(drawn, tmp_path):
    plot([make_run(tmp_path / "a")], tmp_path / "out.png")
    (axes,) = drawn[0].axes
    assert not axes.collections
    assert legend(axes) == ["A2C (1 seed)"]
    assert (axes.get_xlabel(), axes.get_title(loc="left")) == ("environment steps", "CartPole-v1")
    assert axes.get_ylabel() == "episode return, mean of the last 100"


def test_runs_of_one_seed_are_not_called_seeds(drawn, tmp_path):
    plot([make_run(tmp_path / name) for name in "ab"], tmp_path / "out.png")
    assert legend(drawn[0].axes[0])[0].endswith("2 runs)")


def test_a_panel_per_environment_and_a_colour_per_algorithm(drawn, tmp_path):
    runs = [
        make_run(tmp_path / f"{env_id}-{algo}", env_id=env_id, algo=algo)
        for env_id, algo in [("Pendulum-v1", "ppo"), ("CartPole-v1", "a2c"), ("CartPole-v1", "ppo"), ("X-v0", "ppo")]
    ]
    plot(runs, tmp_path / "out.png")
    panels = drawn[0].axes
    assert [axes.get_title(loc="left") for axes in panels] == ["CartPole-v1", "Pendulum-v1", "X-v0"]
    assert [legend(axes) for axes in panels] == [["A2C (1 seed)", "PPO (1 seed)"], ["PPO (1 seed)"], ["PPO (1 seed)"]]
    ppo = [item.get_color() for axes in panels for item in axes.lines if str(item.get_label()).startswith("PPO")]
    assert len(set(ppo)) == 1
    assert panels[0].lines[0].get_color() not in ppo
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (2400, 1350)


def test_evaluations_are_dots_and_the_goal_a_dashed_line(drawn, tmp_path):
    make_run(tmp_path / "a", evaluations=[(150, 400.0), (300, 480.0)], until_return=475.0)
    plot([tmp_path / "a"], tmp_path / "out.png")
    (axes,) = drawn[0].axes
    (dots,) = [item for item in axes.lines if item.get_marker() == "o" and len(item.get_xdata())]
    np.testing.assert_array_equal(dots.get_xydata(), [[150, 400.0], [300, 480.0]])
    assert line(axes, "goal")[1].tolist() == [475.0, 475.0]
    assert legend(axes) == ["A2C (1 seed)", "evaluation", "goal: 475"]


def test_seconds_are_training_time_for_evaluations_too(drawn, tmp_path):
    make_run(tmp_path / "a", evaluations=[(150, 400.0)], seconds_per_step=0.1)
    plot([tmp_path / "a"], tmp_path / "out.png", x="seconds")
    (axes,) = drawn[0].axes
    assert line(axes, "A2C")[0][[0, -1]].tolist() == pytest.approx([10.0, 30.0])
    (dots,) = [item for item in axes.lines if item.get_marker() == "o" and len(item.get_xdata())]
    assert dots.get_xdata()[0] == pytest.approx(15.0)
    assert axes.get_xlabel() == "training time (s)"


def test_rows_without_episodes_and_a_half_written_row_are_left_out(drawn, tmp_path):
    make_run(tmp_path / "a", (100, 200, 300), (None, 2.0, 3.0))
    with (tmp_path / "a" / "progress.jsonl").open("a") as file:
        file.write('{"env_steps": 400, "mean_re')
    plot([tmp_path / "a"], tmp_path / "out.png")
    x, y = line(drawn[0].axes[0], "A2C")
    assert (x[0], x[-1], y[0], y[-1]) == (200.0, 300.0, 2.0, 3.0)


def test_a_run_that_ended_before_another_began_is_drawn_still(drawn, tmp_path):
    make_run(tmp_path / "a", (10, 20), (1.0, 2.0), seed=0)
    make_run(tmp_path / "b", (100, 200), (3.0, 4.0), seed=1)
    plot([tmp_path / "a", tmp_path / "b"], tmp_path / "out.png")
    ends = {item.get_xdata()[-1] for item in drawn[0].axes[0].lines if len(item.get_xdata()) == 2}
    assert ends == {20.0, 200.0}


def test_directories_without_anything_to_draw_are_told(tmp_path):
    good, output = make_run(tmp_path / "good"), tmp_path / "out.png"
    empty = make_run(tmp_path / "empty", (), ())
    young = make_run(tmp_path / "young", (100,), (None,))
    unwritten = make_run(tmp_path / "unwritten", (), ())
    (unwritten / "progress.jsonl").unlink()
    damaged = make_run(tmp_path / "damaged")
    (damaged / "config.json").write_text(json.dumps({"env": {"no_such": 1}}))
    for path, message in [
        (tmp_path / "nowhere", "holds no fastac run"),
        (empty, "no episode has ended yet"),
        (young, "no episode has ended yet"),
        (unwritten, "no episode has ended yet"),
        (damaged, "does not fit this fastac"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            plot([good, path], output)
        assert str(path) in str(caught.value)
    assert not output.exists()


def test_wrong_arguments_are_told(tmp_path):
    run = make_run(tmp_path / "a")
    with pytest.raises(ValueError, match="no run directory was given"):
        plot([], tmp_path / "out.png")
    with pytest.raises(ValueError, match=r"expected a file that ends with \.png"):
        plot([run], tmp_path / "out.jpg")
    with pytest.raises(ValueError, match="x is 'hours', expected one of env_steps, seconds"):
        plot([run], tmp_path / "out.png", x="hours")
    with pytest.raises(RecordError, match="cannot write"):
        plot([run], run / "config.json" / "out.png")


def test_missing_matplotlib_is_told_with_the_extra(tmp_path, monkeypatch):
    run = make_run(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"matplotlib.*pip install 'matplotlib>=3\.8' 'scipy>=1\.15'\.$"):
        plot([run], tmp_path / "out.png")
