"""What the runs on Atari keep: results that say what was reached, thin records, and nothing done twice."""

import json
from dataclasses import replace

import pytest

from benchmarks import atari, zoo_curves
from benchmarks.atari import RunError, format_results, judge, main, read_results, thin, train_command

CONFIG = {"env": {"frame_skip": 4, "atari_protocol": "dqn"}, "run": {"eval_actions": "sampled"}}
GAMES = {"mean_return": 18.5, "std_return": 1.25, "mean_length": 1700.0}


def summary(seed=0, target=18.0, solved=True):
    return {
        "seed": seed,
        "until_return": target,
        "solved": solved,
        "solved_env_steps": 1000 if solved else None,
        "solved_wall_s": 60.0 if solved else None,
        "env_steps": 1200,
        "train_wall_s": 90.0,
        "sps": 16.0,
    }


def test_a_run_that_reached_its_target_ends_there():
    result = judge("ppo", summary(), CONFIG, GAMES, evaluated_s=120.0, total_s=600.0)
    assert (result.minutes, result.train_minutes, result.env_steps, result.frames) == (2.0, 1.0, 1000, 4000)
    assert (result.reached, result.actions, result.protocol, result.mean_return) == (True, "sampled", "dqn", 18.5)


@pytest.mark.parametrize(("target", "solved"), [(18.0, False), (None, None)])
def test_one_that_did_not_or_had_none_counts_to_its_end(target, solved):
    result = judge("ppo", summary(0, target, solved), CONFIG, GAMES, evaluated_s=120.0, total_s=600.0)
    assert (result.minutes, result.train_minutes, result.env_steps, result.reached) == (10.0, 1.5, 1200, solved)


def test_the_table_has_a_row_per_run_and_one_for_all_seeds():
    results = [
        judge("ppo", summary(0), CONFIG, GAMES, 120.0, 600.0),
        judge("ppo", summary(1), CONFIG, {**GAMES, "mean_return": 12.0}, 240.0, 600.0),
        judge("ppo", summary(2, solved=False), CONFIG, {**GAMES, "mean_return": -3.0}, 240.0, 600.0),
        judge("a2c", summary(0), CONFIG, GAMES, 120.0, 600.0),
    ]
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in format_results("pong", results).splitlines()
    ]
    assert [row[0] for row in rows[2:]] == [
        "ppo, seed 0", "ppo, seed 1", "ppo, seed 2", "a2c, seed 0", "ppo, 3 seeds, median / worst",
    ]  # fmt: skip
    assert rows[4][2] == "18, NOT REACHED"
    assert rows[6][2:4] == ["2 of 3", "4.0 / 10.0"] and rows[6][9] == "12.00 / -3.00"


def test_progress_is_thinned_to_its_first_its_last_and_rows_between():
    rows = [{"env_steps": 80 * n, "train_wall_s": n + 0.123456789, "mean_return": None} for n in range(10_001)]
    kept = thin(rows, most=5)
    assert [row["env_steps"] for row in kept] == [0, 200_000, 400_000, 600_000, 800_000]
    assert kept[-1] == {"env_steps": 800_000, "train_wall_s": 10000.1, "mean_return": None}
    assert thin(rows[:3], most=5) == thin(rows[:3], most=3) and len(thin(rows[:3])) == 3
    assert thin([]) == [] and len(thin(rows[:1])) == 1


def test_a_game_whose_curve_is_kept_is_shown_beside_the_zoos_ppo():
    result = judge("ppo", summary(0, None, None) | {"env_steps": 2_000_000}, CONFIG, GAMES, 1.0, 600.0)
    at, mean = zip(*atari.read_zoo("qbert"), strict=True)
    assert at[7:9] == (1_875_000, 2_125_000) and mean[7] < mean[8]
    table = atari.format_results("qbert", [result, replace(result, env_steps=11_000_000)]).splitlines()
    assert table[0].endswith("zoo's PPO in training then |")
    assert table[2].endswith(f" {(mean[7] + mean[8]) / 2:,.0f} |") and table[3].endswith(" |")
    assert table[3].split("|")[-2].strip() == "" and "zoo" not in atari.format_results("pong", [result])


def test_the_zoos_curve_is_of_games_of_all_environments_by_steps_of_the_run(tmp_path):
    # Games of 40,000 frames are 80,000 steps of a run with 8 environments of 4 frames per step.
    lines = ['#{"t_start": 1.0, "env_id": "X"}\n', "r,l,t\n", *(f"{n}.0,40000,{n}.5\r\n" for n in range(1, 8))]
    assert zoo_curves.read_monitor(lines)[:2] == [(80_000.0, 1.0), (160_000.0, 2.0)]
    (tmp_path / "qbert-0.csv").write_text("".join(lines))
    (tmp_path / "qbert-2.csv").write_text("10.0,260000,1.0\n")
    zoo_curves.main([str(tmp_path), "--output", str(tmp_path / "zoo.json")])
    curves = json.loads((tmp_path / "zoo.json").read_text())["curves"]
    # Games 1 to 3 end by 250,000 steps, 4 to 6 by 500,000; the other environment's ends at 520,000, after both.
    assert curves == {"qbert": [[125_000, 2.0], [375_000, 5.0]]}


def test_a_folder_without_monitors_is_refused_and_nothing_written(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        zoo_curves.main([str(tmp_path), "--output", str(tmp_path / "zoo.json")])
    assert "has no file <game>-<i>.csv" in capsys.readouterr().err and not (tmp_path / "zoo.json").exists()


def test_a_curve_is_interpolated_between_its_points_only():
    curve = [(100.0, 1.0), (200.0, 3.0), (400.0, 1.0)]
    assert [atari.interpolate(curve, at) for at in (99, 100, 150, 200, 300, 401)] == [None, 1.0, 2.0, 3.0, 2.0, None]


def test_targets_and_budgets_are_flags_of_the_run():
    words = train_command("breakout", ["--algo", "ppo"], None, 60.0)
    assert words == ["fastac", "train", "ALE/Breakout-v5", "--algo", "ppo", "--budget-minutes", "60"]
    assert train_command("pong", [], 18.0, None)[-2:] == ["--until-return", "18"]


def fake_fastac(monkeypatch, tmp_path, fails=()):
    """Stands for the commands of fastac, and notes what was called."""
    calls = []

    def call(words):
        calls.append(words)
        if words[1] == "eval":
            return GAMES
        seed, run_dir = (words[words.index(flag) + 1] for flag in ("--seed", "--run-dir"))
        if int(seed) in fails:
            raise RunError("exit code 1")
        folder = tmp_path / "runs" / run_dir
        folder.mkdir(parents=True)
        rows = [{"env_steps": n, "train_wall_s": n / 10, "mean_return": 0.5 * n if n else None} for n in range(600)]
        (folder / "progress.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (folder / "evaluations.jsonl").write_text(
            json.dumps({"env_steps": 9, "wall_s": 1.0, "mean_return": 18.5}) + "\n"
        )
        (folder / "config.json").write_text(json.dumps(CONFIG))
        (folder / "summary.json").write_text(json.dumps(summary(int(seed))))
        return summary(int(seed))

    monkeypatch.setattr(atari, "_call", call)
    monkeypatch.setattr(atari, "_RUNS", tmp_path / "runs")
    return calls


def test_a_run_is_kept_whole_and_not_run_again(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    calls, output = fake_fastac(monkeypatch, tmp_path), tmp_path / "out"
    assert main(["pong", "--seeds", "0", "1", "--output", str(output)]) == 0
    assert [words[1] for words in calls] == ["train", "eval", "train", "eval"]
    folder = output / "pong-ppo-seed1"
    assert {path.name for path in folder.iterdir()} == {
        "summary.json", "config.json", "evaluations.jsonl", "progress.jsonl", "results.json",
    }  # fmt: skip
    assert len((folder / "progress.jsonl").read_text().splitlines()) == 400
    results = json.loads((folder / "results.json").read_text())
    assert results["commands"][0].startswith("fastac train ALE/Pong-v5 --algo ppo --until-return 18.25 --seed 1")
    assert "commit" in results["machine"] and results["result"]["mean_return"] == 18.5
    assert {"pong.md", "pong.png"} <= {path.name for path in output.iterdir()}
    assert main(["pong", "--seeds", "0", "1", "2", "--output", str(output)]) == 0
    assert len(calls) == 6 and [r.seed for r in read_results(output, "pong").values()] == [0, 1, 2]
    assert "is there already" in capsys.readouterr().out


def test_the_picture_has_the_zoos_curve_where_one_is_kept(monkeypatch, tmp_path):
    figures = pytest.importorskip("matplotlib.figure")
    fake_fastac(monkeypatch, tmp_path)
    labels, savefig = [], figures.Figure.savefig

    def look(figure, *args, **kwargs):
        labels.append([text.get_text() for legend in figure.legends for text in legend.get_texts()])
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(figures.Figure, "savefig", look)
    monkeypatch.setattr(atari, "read_zoo", lambda game: [(500, 1.0), (900, 2.0), (9e6, 3.0)] if game == "qbert" else [])
    for game in ("qbert", "pong"):
        assert main([game, "--minutes", "1", "--output", str(tmp_path / "out")]) == 0
    assert [sum("zoo" in label for label in found) for found in labels] == [1, 0]


def test_a_run_that_failed_leaves_nothing_and_the_others_go_on(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    fake_fastac(monkeypatch, tmp_path, fails=(0,))
    output = tmp_path / "out"
    assert main(["pong", "--seeds", "0", "1", "--output", str(output)]) == 1
    assert [r.seed for r in read_results(output, "pong").values()] == [1]


@pytest.mark.parametrize("words", [["breakout"], ["pong", "--num-envs", "8"]])
def test_runs_without_an_end_and_settings_without_a_name_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert "give --" in capsys.readouterr().err
