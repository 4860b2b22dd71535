"""The two campaigns, in small: runs that are killed, and what is left of runs that somebody has changed."""

import os
import sys
from importlib import import_module

import pytest
from run_support import spawn

import fastac
from benchmarks import faults_forged, faults_kill, forked


def run_campaign(name, words, told):
    for number in (1, 2):
        os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.exit(import_module(f"benchmarks.{name}").main(words))


@pytest.mark.parametrize(
    ("campaign", "words", "count"),
    [
        ("faults_kill", ["--kills", "2", "--kinds", "a2c", "evaluation"], 2),
        ("faults_forged", ["--number", "15"], 15),
    ],
)
def test_a_small_campaign_finds_nothing(tmp_path, campaign, words, count):
    # In a process of its own, since this one has threads, with which nobody may fork.
    words = [*words, "--jobs", "1", "--output", str(tmp_path / "page")]
    process = spawn(run_campaign, campaign, words, tmp_path / "told")
    process.join(300.0)
    assert process.exitcode == 0, (tmp_path / "told").read_text()
    *_, whole = (line for line in (tmp_path / "page").read_text().splitlines() if line.startswith("all "))
    came = [int(word) for word in whole.split()[1:]]
    assert sum(came[1:]) == count
    assert came[-1] == 0


def test_what_a_killed_run_left_is_compared(tmp_path):
    run = fastac.train("CartPole-v1", run_dir=tmp_path / "run", num_envs=2, total_env_steps=64, eval_episodes=1)
    whole = faults_kill.Whole(faults_kill.left_by(run.directory), 1.0, 1)
    assert faults_kill._differences(run.directory, whole) == ""
    (run.directory / ".writing-summary.1.json").touch()
    assert faults_kill._differences(run.directory, whole).startswith("/names is [")
    (run.directory / ".writing-summary.1.json").unlink()
    with (run.directory / "evaluations.jsonl").open("r+") as file:
        line = file.readline()
        file.write(line)
    assert faults_kill._differences(run.directory, whole).startswith("/evaluations.jsonl is [")


def test_the_readings_are_judged():
    ended = forked.Ended
    judged = {
        "refused": ended(2, "", "fastac: it is damaged.\n"),
        "goes on": ended(0, "", "done\n"),
        "fails in a sentence": ended(1, "", "fastac: env 0 returned nothing.\n"),
        "hangs": ended(None, "", ""),
        "executed": ended(99, "", "executed: os.system"),
        "traceback": ended(1, "", "Traceback (most recent call last):\nfastac: x"),
        "no sentence": ended(2, "", "fastac: one\nfastac: two\n"),
    }
    assert {name: faults_forged._classify(how, is_foreign=False)[0] for name, how in judged.items()} == {
        name: name for name in judged
    }
    assert faults_forged._classify(judged["goes on"], is_foreign=True) == ("foreign accepted", "accepted")
    assert faults_forged._classify(ended(-11, "", ""), is_foreign=False)[0] == "traceback"
