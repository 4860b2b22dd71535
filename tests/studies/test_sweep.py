"""A whole sweep: its report, what it refuses, and one from the command line that is killed and goes on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pytest

import fastac
from fastac.build import default_config
from fastac.cli import main
from fastac.cli.train import TrainOptions, read_settings
from fastac.config import Config
from fastac.presets import find
from fastac.studies.curves import NEVER_S
from fastac.studies.options import SweepOptions
from fastac.studies.search import _suggest
from fastac.studies.spaces import SPACES, fit_settings
from fastac.studies.sweep import Candidate, Sweep, _pose, _rank
from fastac.studies.sweep_report import _OWN, tell, to_command, to_dict, to_preset, write_report

FRESH = (10, 11, 12, 13, 14)


def made(folder, objective="final", **changes):
    config = find("CartPole-v1", "a2c").replace(learning_rate=0.00123, normalize_obs=False, hidden_sizes=(32, 32))
    candidates = (
        Candidate("trial 7", config, 450.0, (480.0, 490.0, 500.0, 470.0, 460.0)),
        Candidate("start", config.replace(gamma=0.5), None, (100.0, 200.0, 300.0, 400.0, None)),
    )
    settings = {"learning_rate": 0.00123, "hidden_sizes": (32, 32)}
    history = ((0, 100.0), (1, 90.0), (7, 450.0))
    done = Sweep(config, settings, candidates, folder, objective, 3, 4, 2, history, {"gamma": 0.75, "vf_coef": 0.25})
    return fastac.Sweep(**{**{name: getattr(done, name) for name in Sweep.__slots__}, "fresh_seeds": FRESH, **changes})


def flat(config):
    return {name: value for name, value in config.to_flat().items() if name not in _OWN}


@pytest.mark.parametrize(("env_id", "algo"), [("CartPole-v1", "a2c"), ("Pendulum-v1", "ppo"), ("CartPole-v1", "a3c")])
def test_the_command_and_the_preset_are_the_settings(tmp_path, env_id, algo):
    """For settings that were drawn: parsed, and executed, they are the same configuration."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(10):
        trial = study.ask()
        start = find(env_id, algo) or Config().replace(env_id=env_id, algo=algo)
        space = [each for each in SPACES[algo] if each.only is None or each.only == "vectors"]
        config = fit_settings(start, {each.name: each.to_value(_suggest(trial, each)) for each in space})
        words = shlex.split(to_command(made(tmp_path, config=config)))
        assert words[:2] == ["fastac", "train"]
        assert flat(read_settings("train", TrainOptions, words[2:])[1].config) == flat(config)
        names = {"Config": Config}
        exec("\n".join(line[4:] for line in to_preset(config).splitlines()), names)
        assert flat(names[f"{env_id.lower().replace('-', '_')}_{algo}"]()) == flat(config)


def test_an_environment_without_a_name_is_trained_from_python(tmp_path):
    done = made(tmp_path, config=Config().replace(env_id="<__main__:MyEnv>"))
    expected = "fastac.train(YOUR_ENV, 'a2c', **{'learning_rate': 0.00123, 'hidden_sizes': (32, 32)})"
    assert to_command(done) == expected and expected in tell(done)


def test_the_report_by_hand(tmp_path, drawn):
    done = made(tmp_path)
    write_report(done)
    page = (tmp_path / "report.md").read_text()
    assert "9 trials: 3 completed, 4 pruned, 2 failed." in page
    assert "mean over seeds" in page and "too good" in page and "seeds 10 to 14" in page
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert rows[0] == ["settings", "in the sweep", "fresh: mean", "worst seed"]
    assert rows[2][:2] == ["trial 7", "450.0"] and rows[2][2].startswith("480.0 [") and rows[2][3] == "460.0"
    assert rows[3][:3] == ["start", "-", "1 failed"]
    assert "Best: trial 7. Train it with:" in page and "--learning-rate 0.00123" in page
    assert "gamma 0.75, vf_coef 0.25" in page
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes]
    assert titles == ["3 completed trials (4 pruned, 2 failed)", "with 5 fresh seeds", "what decided"]
    best = next(line for line in drawn[0].axes[0].lines if line.get_label() == "best so far")
    assert best.get_ydata().tolist() == [100.0, 100.0, 450.0]
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert content["settings"] == {"learning_rate": 0.00123, "hidden_sizes": [32, 32]}
    assert content["failed"] == 2 and content == json.loads(json.dumps(to_dict(done)))


def test_importances_that_are_missing_are_said_to_be(tmp_path):
    assert "What decided cannot be said of fewer than 10 completed trials." in tell(made(tmp_path, importances={}))
    assert "What decided" not in tell(made(tmp_path, importances={}, num_completed=10))


def test_seconds_are_told_as_seconds(tmp_path, drawn):
    fast = Candidate("trial 7", Config(), -0.5, (-0.5, -1.5, -1.0, -0.75, -1.25))
    lame = Candidate("trial 8", Config(), -0.5, (-0.5, -NEVER_S, -1.0, -0.75, -1.25))
    done = made(tmp_path, "seconds", candidates=(fast, lame), history=((0, -NEVER_S), (7, -0.5)))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tell(done).splitlines() if line[:1] == "|"]
    assert rows[2][1] == "0.50 s" and rows[2][2].startswith("1.00 s [0.") and rows[2][3] == "1.50 s"
    assert rows[3][2:] == ["4 of 5 seeds", "never"]
    write_report(done)
    assert np.isnan(drawn[0].axes[0].lines[0].get_ydata()[0])


def test_the_best_is_the_best_with_fresh_seeds():
    config = Config()
    lucky = Candidate("trial 1", config, 500.0, (100.0, 100.0))
    steady = Candidate("trial 2", config, 400.0, (390.0, 400.0))
    same = Candidate("start", config, None, (395.0, 395.0))
    broken = Candidate("trial 3", config, 600.0, (900.0, None))
    names = [each.name for each in sorted([broken, lucky, steady, same], key=_rank)]
    assert names == ["start", "trial 2", "trial 1", "trial 3"]  # of equal ones the start


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"trials": 0}, "trials is 0, expected at least 1"),
        ({"minutes": 0.0}, "minutes is 0.0, expected above 0"),
        ({"seeds_per_trial": 0}, "seeds_per_trial is 0"),
        ({"objective": "best"}, "objective is 'best', expected one of final, area, seconds"),
        ({"pruner": "hyperband"}, "pruner is 'hyperband', expected one of median, halving, none"),
        ({"confirm_seeds": -1}, "confirm_seeds is -1"),
        ({"study": "mine"}, "study is 'mine' without a storage"),
    ],
)
def test_options_out_of_range_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        SweepOptions(**options)


TINY = ("--total-env-steps", "256", "--eval-episodes", "1", "--num-envs", "4", "--num-steps", "8")
WORDS = ("sweep", "CartPole-v1", "--algo", "a2c", *TINY, "--seeds-per-trial", "2")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--objective", "seconds"), "give --until-return"),
        (("--no-eval",), "leave out --no-eval"),
        (("--eval-every", "0"), "leave out --no-eval and --eval-every 0"),
        (("--until-return", "475"), "expected objective 'seconds'"),
        (("--storage", "nosuch://nowhere"), "the storage nosuch://nowhere cannot be opened"),
        (("--space", "nowhere.toml"), "nowhere.toml cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, flags, told):
    assert main([*WORDS, *flags, "--run-dir", str(tmp_path / "sweep")]) == 2
    assert told in capsys.readouterr().err


def test_without_optuna_one_sentence_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastac.studies.sweep.find_spec", lambda name: None)
    assert main([*WORDS, "--run-dir", str(tmp_path / "sweep")]) == 2
    assert "a sweep needs optuna, which is not installed: pip install" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_the_command(tmp_path, capsys):
    """End to end, in processes: a trial, two settings with a fresh seed, then more trials, then nothing left to do."""
    folder = tmp_path / "sweep"
    words = [*WORDS, "--run-dir", str(folder), "--confirm-seeds", "1"]
    assert main([*words, "--trials", "1"]) == 0
    told = capsys.readouterr()
    assert "1 trial: 1 completed" in told.out and "fastac train CartPole-v1 --algo a2c" in told.out
    assert main([*words, "--trials", "2", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["completed"] + content["pruned"] + content["failed"] == 2
    assert {each["name"] for each in content["candidates"]} >= {"start"}
    assert content["fresh_seeds"] == [2] and content["config"]["env"]["num_envs"] == 4  # given, so not searched
    assert sorted(path.name for path in folder.iterdir()) == [
        *("fresh", "report.md", "study.db", "sweep.json", "sweep.png", "trials")
    ]
    assert fastac.load(next((folder / "fresh").glob("*/seed2"))).config.env.num_envs == 4
    assert main([*words, "--trials", "2", "--gamma", "0.5"]) == 2
    assert "holds a sweep with another search space: give the command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("env_id", "algo"), [("CartPole-v1", "a3c"), ("Pendulum-v1", "ppo"), ("CartPole-v1", "reinforce")]
)
def test_a_problem_is_posed_for_every_algorithm(tmp_path, env_id, algo):
    start = default_config(env_id, algo, None)
    problem = _pose(start, ["gamma"], SweepOptions(), tmp_path, None, None)
    names = {each.name for each in problem.space}
    assert "learning_rate" in names and "gamma" not in names
    assert ("log_std_init" in names) == (env_id == "Pendulum-v1")
    with pytest.raises(ValueError, match="gamma is given, and the search space names it"):
        _pose(start, ["gamma"], SweepOptions(space={"gamma": {"choices": [0.9]}}), tmp_path, None, None)


def count_completed(folder: Path) -> int:
    if not (folder / "study.db").exists():
        return 0
    try:
        study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'study.db'}")
    except Exception:  # the tables are just being made
        return 0
    return len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)))


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on(tmp_path, capsys):
    folder = tmp_path / "sweep"
    words = [*WORDS, "--run-dir", str(folder), "--confirm-seeds", "1", "--trials", "8", "--pruner", "none"]
    process = subprocess.Popen([sys.executable, "-m", "fastac", *words], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120.0
    while count_completed(folder) < 2:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert main([*words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["completed"], content["pruned"], content["failed"]) == (8, 0, 0)
