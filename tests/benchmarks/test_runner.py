"""Trials: what is done is not done again, what fails is told, and what is stopped leaves nothing half."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from functools import partial
from itertools import pairwise
from multiprocessing import get_context

import pytest
from experiments_support import (
    die,
    fail_with_seed_1,
    log_times,
    measure,
    measure_nan,
    meet,
    toy,
    wait_after_seed_0,
)

from benchmarks.experiments import run_experiment, write_report
from benchmarks.experiments.definition import Arm
from fastac.contract import WorkerFailure
from fastac.processes import WorkerTraceback
from fastac.runs.files import RecordError


def names(out):
    return sorted(path.name for path in (out / "trials").iterdir())


def wait_for(condition):
    deadline = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def test_a_place_that_cannot_be_written_is_known_before_any_trial(tmp_path, capsys):
    (tmp_path / "file").touch()
    called = tmp_path / "called"
    called.mkdir()
    experiment = toy(partial(wait_after_seed_0, folder=called))
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RecordError, match=f"cannot write {out}: .*; choose another --out."):
            run_experiment(experiment, 1, out)
    assert not list(called.iterdir())


def test_a_place_with_another_experiments_trials_is_refused_before_any_trial(tmp_path, capsys):
    path = tmp_path / "trials" / "first-arm-7-seed0.json"
    path.parent.mkdir()
    path.touch()
    for what in (run_experiment, write_report):
        with pytest.raises(ValueError, match=f"^{path} is no trial of toy: choose another --out.$"):
            what(toy(), 1, tmp_path)
    assert list(path.parent.iterdir()) == [path]


def test_every_arm_and_seed_has_a_file(tmp_path, capsys):
    assert run_experiment(toy(), 2, tmp_path) is None
    arms = ("first-arm-0", "first-arm-1", "second-arm-0")
    assert names(tmp_path) == sorted(f"{arm}-seed{seed}.json" for arm in arms for seed in (0, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["trials"]
    content = json.loads((tmp_path / "trials" / "first-arm-1-seed1.json").read_text())
    assert (content["group"], content["arm"], content["config"]["run"]["seed"]) == ("first", "arm 1", 1)
    assert content["config"]["env"]["num_envs"] == 32
    assert content["values"] == {"final": 15.0, "solved": 101.0, "never": None}
    assert content["curves"]["return"]["x"][:2] == [100.0, 200.0]
    code = content["measure"].pop("code")
    assert len(code) == 12 and content["measure"] == {"name": "experiments_support.measure", "offset": "5.0"}
    assert content["machine"]["cores"] >= 1 and "fastac" in content["machine"]["versions"]
    assert 0.0 <= content["wall_s"] < 60.0
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "0 of 6 trials are there"
    assert sorted(line[:5] for line in lines) == [f"[{i}/6]" for i in range(1, 7)]
    assert sum("] second / arm 0 / seed 1: " in line for line in lines) == 1


def run_and_wait(folder):
    run_experiment(toy(partial(wait_after_seed_0, folder=folder)), 3, folder / "out")


def test_after_a_kill_only_what_is_missing_is_done_and_the_report_is_the_same(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    process = get_context("forkserver").Process(target=run_and_wait, args=(killed,))
    process.start()
    trials = killed / "out" / "trials"
    wait_for(lambda: (killed / "called-1").exists() and len(list(trials.glob("*seed0.json"))) == 2)
    process.kill()
    process.join()
    before = {path: path.stat().st_mtime_ns for path in trials.glob("*.json")}
    assert len(before) == 2
    (killed / "go").touch()
    (whole / "go").touch()
    for folder in (whole, killed):
        experiment = toy(partial(wait_after_seed_0, folder=folder))
        assert run_experiment(experiment, 3, folder / "out") is None
        write_report(experiment, 3, folder / "out")
    assert len(names(killed / "out")) == 6
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (killed / "called-0").read_text() == "xx"  # once for each arm
    assert sorted(path.name for path in (killed / "out").iterdir()) == [
        "report.md",
        "results.json",
        "toy.png",
        "trials",
    ]
    for name in ("results.json", "report.md", "toy.png"):
        assert (whole / "out" / name).read_bytes() == (killed / "out" / name).read_bytes()


def test_more_seeds_are_added(tmp_path, capsys):
    run_experiment(toy(), 1, tmp_path)
    capsys.readouterr()
    run_experiment(toy(), 2, tmp_path)
    assert capsys.readouterr().err.startswith("3 of 6 trials are there\n")
    run_experiment(toy(), 2, tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (toy(learning_rate=0.5), r"learning_rate 0\.0007, now 0\.5"),
        (toy(fail_with_seed_1, partial(measure, offset=5.0)), "measure's name 'experiments_support.measure', now"),
        (toy(measure, partial(measure, offset=6.0)), r"measure's offset '5\.0', now '6\.0'"),
    ],
)
def test_a_trial_with_other_settings_is_refused(tmp_path, other, difference):
    run_experiment(toy(), 1, tmp_path)
    with pytest.raises(ValueError, match=rf"seed0\.json is a trial with other .*{difference}.*choose another --out"):
        run_experiment(other, 1, tmp_path)


def test_a_trial_of_a_measure_whose_code_was_another_is_refused(tmp_path, monkeypatch):
    run_experiment(toy(), 1, tmp_path)
    monkeypatch.setattr("benchmarks.experiments.jobs.inspect.getsource", lambda module: "other code")
    with pytest.raises(ValueError, match=r"trial with other settings \(measure's code '\w{12}', now '\w{12}'\)"):
        run_experiment(toy(), 1, tmp_path)


@pytest.mark.parametrize("content", ["", "{}", '{"measure": 3, "config": {}, "curves": {}}'])
def test_a_file_that_is_no_trial_is_told(tmp_path, content):
    path = tmp_path / "trials" / "first-arm-0-seed0.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ValueError, match=r"first-arm-0-seed0\.json is "):
        run_experiment(toy(), 1, tmp_path)
    assert names(tmp_path) == [path.name]


def test_a_trial_that_fails_is_told_when_all_others_are_done(tmp_path):
    with pytest.raises(WorkerFailure) as caught:
        run_experiment(toy(fail_with_seed_1), 3, tmp_path)
    assert str(caught.value).startswith("2 of 6 trials failed, the first of them ")
    assert str(caught.value).endswith("arm 0 / seed 1: raised RuntimeError: the toy broke")
    assert isinstance(caught.value.__cause__, WorkerTraceback)
    assert "in fail_with_seed_1" in str(caught.value.__cause__)
    assert names(tmp_path) == [f"{group}-arm-0-seed{seed}.json" for group in ("first", "second") for seed in (0, 2)]
    with pytest.raises(ValueError, match=r"seed1\.json is missing"):
        write_report(toy(fail_with_seed_1), 3, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["trials"]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (die, r"first / arm 1 / seed 0 died \(exit code -9\)"),
        (measure_nan, "the value final is nan, expected a finite number"),
    ],
)
def test_a_process_that_dies_and_a_number_that_is_none(tmp_path, broken, message):
    with pytest.raises(WorkerFailure, match=message):
        run_experiment(toy(measure, broken), 1, tmp_path)
    assert names(tmp_path) == ["first-arm-0-seed0.json", "second-arm-0-seed0.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_trials(tmp_path, number):
    experiment, out = toy(partial(wait_after_seed_0, folder=tmp_path)), tmp_path / "out"

    def send():
        wait_for(lambda: (tmp_path / "called-1").exists() and len(list(out.glob("trials/*"))) >= 2)
        os.kill(os.getpid(), number)

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(target=send)
    thread.start()
    assert run_experiment(experiment, 2, out) == number
    thread.join()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert names(out) == ["first-arm-0-seed0.json", "second-arm-0-seed0.json"]


def test_a_trial_with_workers_has_the_machine_to_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("fastac.trials.count_cores", lambda: 2)
    run_experiment(toy(partial(log_times, folder=tmp_path), workers=2), 2, tmp_path / "other")
    spans = {path.name: tuple(map(float, path.read_text().split())) for path in tmp_path.glob("*-*-*")}
    alone = sorted(span for name, span in spans.items() if name.startswith("2-"))
    assert len(alone) == 4
    assert all(end <= begin for (_, end), (begin, _) in pairwise(alone))


def test_trials_of_one_worker_run_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr("fastac.trials.count_cores", lambda: 2)
    run_experiment(
        toy(partial(meet, folder=tmp_path)), 1, tmp_path / "out"
    )  # else each would wait for the other in vain
    assert len(list(tmp_path.glob("here-*"))) == 2


def test_single_core_trials_come_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastac.trials.count_cores", lambda: 2)
    experiment = toy()
    first, *others = experiment.arms
    arms = (Arm(first.group, first.name, first.config.replace(workers=2), first.measure), *others)
    run_experiment(type(experiment)("toy", "?", arms, experiment.plots, experiment.columns), 2, tmp_path)
    *singles, one, two = capsys.readouterr().err.splitlines()[1:]
    assert "first / arm 0 / seed 0" in one and "first / arm 0 / seed 1" in two
    assert not any("first / arm 0" in line for line in singles)


def test_arms_that_would_share_a_file_are_refused(tmp_path):
    experiment = toy()
    arm = experiment.arms[0]
    twin = Arm(arm.group, "ARM/0", arm.config, arm.measure)
    with pytest.raises(ValueError, match="would have the same file"):
        run_experiment(type(experiment)("toy", "?", (arm, twin), (), ()), 1, tmp_path)
    with pytest.raises(ValueError, match="seeds is 0, expected at least 1"):
        run_experiment(experiment, 0, tmp_path)
