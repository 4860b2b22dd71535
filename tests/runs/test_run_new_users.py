"""What new users tripped over: going on from Python, two sessions of one run, failures before the first step."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from run_support import SMALL, read_rows

import fastac
from fastac.cli import main

BROKEN = """
import gymnasium as gym

class Robot(gym.Env):
    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 60:
            return {}["torque"]
        return self.observation_space.sample(), 0.0, False, False, {}
"""


def test_complete_goes_on_to_the_end(tmp_path):
    fastac.train("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=320)
    run = fastac.complete(fastac.resume(tmp_path / "run", total_env_steps=640), "last")
    assert run.summary["env_steps"] >= 640 and run.checkpoint == "last"
    assert fastac.load(tmp_path / "run").summary == run.summary


def test_an_interrupt_says_what_goes_on(tmp_path, monkeypatch):
    env = gym.make("CartPole-v1")
    monkeypatch.setattr("fastac.runs.recorder.Recorder.report", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as raised:
        fastac.train(env.spec, run_dir=tmp_path / "run", **SMALL, total_env_steps=640)
    monkeypatch.undo()
    command = str(raised.value).partition("go on with ")[2]
    run = eval(command, {"fastac": fastac})
    assert run.summary["env_steps"] >= 640


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_resumed_session_changes_nothing_before_it_trains(tmp_path):
    fastac.train("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=320)
    before = contents(tmp_path / "run")
    fastac.resume(tmp_path / "run", total_env_steps=640, learning_rate=1e-5).close()
    assert contents(tmp_path / "run") == before
    fastac.complete(fastac.resume(tmp_path / "run", total_env_steps=640))
    assert fastac.load(tmp_path / "run").config.optim.learning_rate != 1e-5


def test_a_run_has_one_session_at_a_time(tmp_path):
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=640)
    next(iter(session))
    session.close()
    first = fastac.resume(session.directory)
    with pytest.raises(ValueError, match="run is open in another session"):
        fastac.resume(tmp_path / "run")
    code = "import fastac, sys; fastac.resume(sys.argv[1])"
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert "run is open in another session" in other.stderr
    fastac.complete(first)
    rows = [row["env_steps"] for row in read_rows(tmp_path / "run" / "progress.jsonl")]
    assert rows == sorted(set(rows))


def test_a_run_remembers_what_it_was_trained_in(tmp_path):
    class Local(gym.Wrapper):
        def __init__(self):
            super().__init__(gym.make("CartPole-v1"))

    run = fastac.train(Local, run_dir=tmp_path / "run", **SMALL, total_env_steps=64)
    assert fastac.evaluate(run, 2).episodes == 2
    with pytest.raises(ValueError, match="cannot be imported"):
        fastac.evaluate(fastac.load(tmp_path / "run"), 2)


def test_a_run_whose_directory_is_gone_ends_at_once(tmp_path):
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=10**9)
    with pytest.raises(fastac.RecordError, match="was moved or removed"):
        for report in session:
            if report.iteration == 2:
                shutil.rmtree(tmp_path / "run")
            assert report.iteration < 4


@pytest.fixture
def broken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "robots_of_mine.py").write_text(BROKEN)
    return ["train", "robots_of_mine:Robot", "--num-envs", "2", "--num-steps", "16", "--run-dir", "run", "--no-eval"]


def test_what_an_environment_raised_is_told_with_its_line(broken, capsys):
    assert main(broken) == 2
    err = capsys.readouterr().err
    assert 'robots_of_mine.py", line 16, in step' in err and 'return {}["torque"]' in err
    assert "site-packages" not in err and err.splitlines()[-1].startswith("fastac: env 0")


def test_a_run_that_failed_before_its_first_update_leaves_its_directory_free(broken, capsys):
    words = [*broken, "--num-steps", "64"]
    for _ in range(2):
        assert main(words) == 2
        assert "raised KeyError: 'torque' in step" in capsys.readouterr().err
        assert not Path("run").exists()


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m fastac list | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and done.stdout.startswith("environment")


def test_an_interrupt_waits_until_torch_is_imported(monkeypatch):
    imported = []

    def slow_import(name):
        signal.raise_signal(signal.SIGINT)
        imported.append(name)
        return SimpleNamespace(Config="it")

    monkeypatch.setattr(fastac, "import_module", slow_import)
    with pytest.raises(KeyboardInterrupt):
        fastac.__getattr__("Config")
    assert imported == ["fastac.config"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_names_of_other_libraries_are_hints():
    with pytest.raises(ValueError, match="Did you mean learning_rate"):
        fastac.start("CartPole-v1", lr=1e-3)


def test_a_run_tells_over_how_many_episodes_its_return_is(tmp_path):
    run = fastac.train("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=64)
    assert f"over {run.summary['eval_episodes']} episodes" in repr(run)
    assert np.isfinite(run.summary["eval_mean_return"])


def test_what_was_in_a_directory_before_the_run_stays(broken):
    precious = Path("run", "tb", "mine")
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    for _ in range(2):
        assert main([*broken, "--num-steps", "64"]) == 2
    assert precious.read_text() == "mine" and not {"config.json", "checkpoints"} & set(os.listdir("run"))


def test_a_session_that_cannot_begin_is_closed(tmp_path, monkeypatch):
    fastac.train("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=320)
    session = fastac.resume(tmp_path / "run", total_env_steps=640)

    def fail(*_):
        raise fastac.RecordError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(fastac.RecordError):
        patch.setattr("fastac.runs.run_dir.RunDirectory.reopen", fail)
        next(iter(session))
    with pytest.raises(ValueError, match="the session is closed: go on with"):
        next(iter(session))
    fastac.complete(fastac.resume(tmp_path / "run", total_env_steps=640))
    rows = [row["iteration"] for row in read_rows(tmp_path / "run" / "progress.jsonl")]
    assert rows == list(range(1, len(rows) + 1))


def test_a_session_whose_last_rows_cannot_be_written_is_closed(tmp_path, monkeypatch):
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=64)

    def fail(*_):
        raise fastac.RecordError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(fastac.RecordError):
        patch.setattr(session.training.trainer, "halt", fail)
        fastac.finish(session)
    with pytest.raises(ValueError, match="the session is closed: nothing was saved"):
        next(iter(session))


def test_a_session_that_was_not_iterated_over_can_be_still(tmp_path):
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=64)
    with pytest.raises(ValueError, match="iterate over the session first"):
        fastac.finish(session)
    run = fastac.complete(session)
    with pytest.raises(ValueError, match="the run has ended"):
        fastac.complete(session)
    assert run.summary["env_steps"] >= 64


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_keep_a_run(tmp_path):
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **SMALL, total_env_steps=64)
    child = subprocess.Popen(["sleep", "60"], pass_fds=[fd for fd in held_by(tmp_path / "run")])
    try:
        fastac.complete(session)
        fastac.resume(tmp_path / "run", total_env_steps=128).close()
    finally:
        child.kill()
        child.wait()


def held_by(run_dir: Path) -> list[int]:
    """Return this process's open files in a run's directory."""
    links = {int(fd.name): os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
    return [fd for fd, target in links.items() if target.startswith(str(run_dir))]


def test_plot_takes_directories_around_its_flags(tmp_path, capsys):
    assert main(["plot", str(tmp_path / "a"), "--x", "seconds", str(tmp_path / "b")]) == 2
    assert f"{tmp_path / 'a'} holds no fastac run" in capsys.readouterr().err
