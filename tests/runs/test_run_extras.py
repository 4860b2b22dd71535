"""What episodes say in `info` is in a run's records, wherever they are played."""

import os

import pytest
from run_envs import EPISODE_STEPS, make_next_step
from run_support import SMALL, read_rows

import fastac


@pytest.mark.parametrize(
    ("settings", "away"),
    [
        ({"algo": "ppo", "num_minibatches": 1}, 0.0),
        ({"algo": "reinforce", "num_steps": 20, "num_minibatches": 1}, 0.0),
        ({"vectorization": "process"}, 1.0),
        ({"workers": 2}, 0.5),  # what both have played
        ({"algo": "a3c", "workers": 2}, 1.0),
    ],
    ids=["alone", "episodes", "processes", "workers", "a3c"],
)
def test_records_have_means_of_what_episodes_say(tmp_path, monkeypatch, settings, away):
    monkeypatch.setenv("FASTAC_TEST_HOME", str(os.getpid()))
    fastac.train("run_envs:Telling-v0", run_dir=tmp_path / "run", **(SMALL | settings), total_env_steps=400)
    rows = read_rows(tmp_path / "run" / "progress.jsonl")
    assert rows[-1]["success_rate"] == 1.0
    assert rows[-1]["info/steps/played"] == EPISODE_STEPS
    assert rows[-1]["info/away"] == away


def test_records_of_others_have_no_such_thing(tmp_path):
    fastac.train(make_next_step, run_dir=tmp_path / "run", **SMALL, total_env_steps=400)
    (*_, last) = read_rows(tmp_path / "run" / "progress.jsonl")
    assert last["episodes"] > 0
    assert not [key for key in last if key.startswith("info/") or key == "success_rate"]
