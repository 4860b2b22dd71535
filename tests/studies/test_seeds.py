"""Many seeds: the plan, the table by hand, the picture, and the command twice."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_support import SMALL_FLAGS

import fastac
from fastac.cli import main
from fastac.config import Config
from fastac.contract import EnvFailure
from fastac.studies.plan import RunsPlan
from fastac.studies.seeds import SeedRun, SeedRuns, tell
from fastac.studies.seeds_picture import draw
from fastac.studies.training import Moment, Task, Warned

RETURNS = (100.0, 200.0, 300.0, 400.0, 500.0, 9_000.0)


def made(target=None, failed=True):
    """Six seeds, the fastest first, of which two reached a target, and one that failed."""
    runs = [
        SeedRun(seed, Path("runs", f"seed{seed}"), value, value - 1.0, 1_000 * (seed + 1), 0.5, *_reached(seed, target))
        for seed, value in enumerate(RETURNS)
    ]
    broken = [SeedRun(6, Path("runs/seed6"), None, None, None, None, None, None, "the loss is nan")]
    config = Config().replace(until_return=target)
    return SeedRuns(config, Path("runs"), (*runs, *(broken if failed else [])), None)


def _reached(seed, target):
    return (1_000 + seed, 0.25 * (seed + 1)) if target is not None and seed < 4 else (None, None)


def test_statistics_by_hand():
    done = made()
    assert done.mean_return == pytest.approx(1_750.0)
    assert done.interquartile_mean_return == pytest.approx(350.0)  # without the lowest and the highest
    low, high = done.interval
    assert 100.0 <= low < 1_750.0 < high <= 9_000.0
    assert [run.seed for run in done.failed] == [6]
    assert done.to_dict()["failed"] == 1 and json.dumps(done.to_dict(), allow_nan=False)


def test_the_table_by_hand():
    head, _, first, *rest = tell(made(target=475.0)).splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        *("seed", "return", "last policy", "env steps", "train s", "steps to 475", "s to 475"),
    ]
    assert [cell.strip() for cell in first.split("|")[1:-1]] == ["0", "100.0", "99.0", "1,000", "0.50", "1,000", "0.25"]
    assert rest[5].split("|")[2].strip() == "failed"
    assert "Return of 6 seeds: mean 1,750.0 [" in rest[7] and "interquartile mean 350.0, lowest 100.0." in rest[7]
    # Of six that ended, two never came to it: the median is between the third and the fourth.
    assert rest[8] == "Came to 475: 4 of 7 seeds; median 1,002 steps, 0.88 s."
    assert rest[9:] == ["Failed: 1 of 7 seeds.", "  seed 6: the loss is nan"]
    assert max(map(len, [head, first])) <= 80


def test_without_a_target_there_is_none_in_the_table():
    text = tell(made(failed=False))
    assert "steps to" not in text and "Came to" not in text and text.endswith("Failed: 0 of 6 seeds.")


def test_the_plan_tells_a_line_and_counts_failures(tmp_path, caplog):
    tasks = [Task(f"seed {n}", Config().replace(seed=n, workers=1), tmp_path / str(n)) for n in range(3)]
    plan = RunsPlan(tasks, tasks[1:])
    first, second = plan.next(), plan.next()
    assert plan.next() is None and (first.name, second.name, first.cores) == ("seed 1", "seed 2", 1)
    assert plan.tell([]).done == 1
    assert plan.hear(first, Moment(0.5, 10.0, 2e6)) and plan.hear(second, Moment(0.25, 30.0, 5e5))
    standing = plan.tell(["seed 1", "seed 2"])
    assert (standing.done, standing.total) == (1.75, 3)
    assert standing.text == "2 running, 2.5M steps/s, return 20.0"
    for trial in (first, second, first):
        plan.hear(trial, Warned("careful"))
    assert [record.message for record in caplog.records] == ["seed 1: careful"]
    assert plan.fail(first, EnvFailure("seed 1: it broke")) == "seed 1 failed: it broke"
    assert plan.failures == {"seed 1": "it broke"} and plan.tell(["seed 2"]).done == 2.25


def rows(run_dir, *points):
    run_dir.mkdir()
    lines = [{"env_steps": x, "wall_s": x / 10, "mean_return": y} for x, y in points]
    (run_dir / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run_dir


def test_the_picture_shows_means_over_seeds(tmp_path, drawn):
    runs = [rows(tmp_path / f"r{n}", (0, 0.0), (100, 10.0 * n)) for n in range(4)]
    runs.append(rows(tmp_path / "r4", (0, 0.0), (100, 1000.0), (200, 1000.0)))
    broken = rows(tmp_path / "broken", (0, 0.0), (10, 1.0))
    assert draw(Config().replace(eval_every=50), runs, [broken], tmp_path / "picture.png")
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line for line in axes.lines}
    assert {"mean", "interquartile mean", "single seeds", "1 failed"} <= set(lines)
    assert lines["mean"].get_xdata()[-1] == 100.0  # where the first run ends
    assert lines["mean"].get_ydata()[-1] == pytest.approx((0 + 10 + 20 + 30 + 1000) / 5)
    assert lines["interquartile mean"].get_ydata()[-1] == pytest.approx(20.0)
    assert any(band.get_label() == "95 % interval of the mean" for band in axes.collections)
    assert axes.get_title(loc="left") == "CartPole-v1, a2c, 6 seeds"
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_a_run_that_came_to_its_target_stays_there_in_the_picture(tmp_path, drawn):
    runs = [rows(tmp_path / "a", (0, 0.0), (50, 100.0)), rows(tmp_path / "b", (0, 0.0), (200, 100.0))]
    draw(Config().replace(until_return=100.0), runs, [], tmp_path / "picture.png")
    lines = {line.get_label(): line for line in drawn[0].axes[0].lines}
    x, y = lines["mean"].get_data()
    assert x[-1] == 200.0 and y[-1] == 100.0
    assert y[x.searchsorted(100.0)] == pytest.approx(75.0, abs=0.5)
    assert "goal: 100" in lines


def test_without_curves_there_is_no_picture(tmp_path):
    assert not draw(Config(), [tmp_path], [], tmp_path / "picture.png")
    assert not (tmp_path / "picture.png").exists()


WORDS = ("train", "CartPole-v1", *SMALL_FLAGS, "--total-env-steps", "128", "--run-dir")


def test_the_command_twice(tmp_path, capsys):
    """End to end: two seeds in processes of their own; then a third, and the first two are not trained again."""
    folder = tmp_path / "many"
    assert main([*WORDS, str(folder), "--seeds", "2"]) == 0
    told = capsys.readouterr()
    assert "Return of 2 seeds" in told.out and "[2/2] seed" in told.err
    assert sorted(path.name for path in folder.iterdir()) == ["learning-curves.png", "seed0", "seed1", "seeds.json"]
    before = (folder / "seed0" / "summary.json").read_bytes()
    assert main([*WORDS, str(folder), "--seeds", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [run["seed"] for run in result["seeds"]] == [0, 1, 2] and result["failed"] == 0
    assert result == json.loads((folder / "seeds.json").read_text())
    assert (folder / "seed0" / "summary.json").read_bytes() == before
    assert fastac.load(folder / "seed2").config.run.workers == 1
    assert main([*WORDS, str(folder), "--seeds", "2", "--gamma", "0.5"]) == 2
    assert "holds a run with gamma 0.99, and the command says 0.5" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", ["0", "-1"])
def test_no_seeds_are_refused(tmp_path, capsys, seeds):
    assert main([*WORDS, str(tmp_path / "many"), "--seeds", seeds]) == 2
    assert f"seeds is {seeds}, expected a whole number from 1" in capsys.readouterr().err
    assert not (tmp_path / "many").exists()


def test_a_missing_package_is_told_before_anything_is_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastac.studies.seeds.find_spec", lambda name: None if name == "scipy" else SimpleNamespace())
    assert main([*WORDS, str(tmp_path / "many"), "--seeds", "2"]) == 2
    assert "needs scipy, which is not installed: pip install 'matplotlib" in capsys.readouterr().err


def test_an_environment_that_cannot_be_sent_is_refused(tmp_path):
    import gymnasium as gym

    with pytest.raises(ValueError, match="define its function at the top of a module"):
        fastac.train_seeds(lambda: gym.make("CartPole-v1"), seeds=2, run_dir=tmp_path / "many", total_env_steps=64)
