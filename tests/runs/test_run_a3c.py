"""Runs with A3C, as a user meets them: what they write, what they survive, and that nothing stays behind."""

from __future__ import annotations

import json
import logging
import multiprocessing.forkserver
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from a3c_envs import EVALUATED, make_at_home, make_mishap, make_opaque, make_unplayable
from run_support import (
    SMALL,
    checkpoints,
    last_env_steps,
    read_rows,
    spawn,
    spawn_main,
    train_past_a_best,
    wait_for,
)

import fastac
from fastac.cli import main
from fastac.config import Config
from fastac.runs.checkpoint import find_checkpoint, load_checkpoint
from fastac.runs.evaluate import MOST_STEPS, Evaluation
from fastac.runs.evaluator import InProcessEvaluator, ProcessEvaluator, Request, Stage
from fastac.workers import async_workers

ENDLESS = 10**9
A3C = {**SMALL, "algo": "a3c", "workers": 2, "eval_every": ENDLESS}  # evaluated beside training, but not yet
FLAGS = (
    *("--algo", "a3c", "--workers", "2", "--num-envs", "4", "--num-steps", "8", "--hidden-sizes", "8"),
    *("--eval-every", str(ENDLESS), "--eval-episodes", "2", "--no-tensorboard"),
)


def start(run_dir, env="CartPole-v1", **settings):
    return fastac.start(env, run_dir=run_dir, **(A3C | settings))


def finish(session):
    for _ in session:
        pass
    return fastac.finish(session).summary


def pids_of(session):
    return session.training._workers.children.pids


def evaluator_of(session):
    return session.evaluations._evaluator.child.pid


def read_stat(pid):
    """Return state, parent and session of a process, or nothing if there is none."""
    try:
        state, parent, _, leader, *_ = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return state, int(parent), int(leader)


def is_alive(pid):
    stat = read_stat(pid)
    return stat is not None and stat[0] != "Z"


def find_processes(which):
    """Return the live processes of which `which` holds, told their parent and session."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        stat = read_stat(path.name)
        if stat is not None and stat[0] != "Z" and which(*stat[1:]):
            found.add(int(path.name))
    return found


def below(pid):
    """Return the live processes that a process has started, and those that they have."""
    children = find_processes(lambda parent, _: parent == pid)
    return children.union(*map(below, children))


def forked():
    """Return the live processes that this process's fork server has started."""
    return below(multiprocessing.forkserver._forkserver._forkserver_pid)


def are_gone(pids, seconds=5.0):
    until = time.monotonic() + seconds
    while any(is_alive(pid) for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def shared_memory():
    return set(os.listdir("/dev/shm"))


def no_more_than(shared, seconds=5.0):
    """Wait until nothing is in shared memory that was not before; others have files there for a moment."""
    until = time.monotonic() + seconds
    while not shared_memory() <= shared:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


# --- what a run is -------------------------------------------------------------------------------


def test_a_run_leaves_what_one_of_a2c_leaves(tmp_path, capsys):
    settings = ("--num-envs", "4", "--num-steps", "8", "--hidden-sizes", "8", "--eval-episodes", "2")
    for algo, more in (("a2c", ()), ("a3c", ("--workers", "2", "--lock"))):
        words = ["train", "CartPole-v1", "--algo", algo, *more, *settings, "--total-env-steps", "3000"]
        evaluated = ("--eval-every", "1000", "--checkpoint-every", "1000")
        assert main([*words, *evaluated, "--run-dir", str(tmp_path / algo), "--json"]) == 0
    a2c, a3c = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert a2c.keys() == a3c.keys()
    names = [{path.name.split(".")[0] for path in (tmp_path / algo).iterdir()} for algo in ("a2c", "a3c")]
    assert names[0] == names[1]
    assert list((tmp_path / "a3c" / "tb").iterdir())
    assert a2c["asynchrony"] is None
    measured = a3c["asynchrony"]
    assert sum(measured["staleness"]) == sum(measured["updates_per_worker"]) == a3c["updates"]
    assert len(measured["updates_per_worker"]) == 2 and measured["restarts"] == 0
    lags = np.arange(len(measured["staleness"]))
    if measured["max_staleness"] < lags[-1]:  # which counts all beyond it too, where one worker had to wait for long
        assert measured["mean_staleness"] == pytest.approx(lags @ measured["staleness"] / a3c["updates"])
        assert measured["max_staleness"] == max(lag for lag in lags if measured["staleness"][lag])
    assert 3000 <= a3c["env_steps"] < 3000 + 2 * 8 * 2
    rows = read_rows(tmp_path / "a3c" / "progress.jsonl")
    for counter in ("iteration", "env_steps", "train_wall_s"):
        values = [row[counter] for row in rows]
        assert values == sorted(set(values)), counter
    assert rows[0]["iteration"] > 0
    assert rows[-1]["env_steps"] == a3c["env_steps"]
    assert sum(a3c["phases"].values()) == pytest.approx(a3c["train_wall_s"])
    evaluated = [row["env_steps"] for row in read_rows(tmp_path / "a3c" / "evaluations.jsonl")]
    assert evaluated == sorted(set(evaluated)) and evaluated[-1] == a3c["env_steps"]


def test_environments_per_worker_make_the_number_of_all(tmp_path):
    words = ["train", "CartPole-v1", *FLAGS[:4], "--envs-per-worker", "3", *FLAGS[6:], "--total-env-steps", "100"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["env"]["num_envs"], config["env"]["envs_per_worker"]) == (6, 3)


@pytest.mark.parametrize("flags", [("CartPole-v1", "--workers", "auto"), ("Acrobot-v1",)], ids=["asked", "by default"])
def test_as_many_workers_as_divide_the_environments(tmp_path, monkeypatch, flags):
    monkeypatch.setattr("fastac.build.shares.count_physical_cores", lambda: 3)
    words = ["train", *flags, "--algo", "a3c", "--num-envs", "64", *FLAGS[6:], "--total-env-steps", "2000"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["env"]["num_envs"], config["run"]["workers"]) == (64, 2)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["asynchrony"]["updates_per_worker"]) == 2


def test_efficiency_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastac.runs.session._LEAST_TRAIN_S", 0.0)
    words = ["train", "CartPole-v1", *FLAGS, "--total-env-steps", "20000", "--run-dir", str(tmp_path / "run"), "--json"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary["efficiency"] > 0.0 and "Efficiency" in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--device", "cuda"), "device is 'cuda' with algo a3c, expected 'cpu': its workers share parameters in the"),
        (("--vectorization", "process"), "vectorization process, expected one or the other"),
        (("--num-envs", "5"), "num_envs is 5, expected a multiple of workers, which is 2"),
        (("--max-restarts", "-1"), "max_restarts is -1, expected at least 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, capsys, flags, says):
    assert main(["train", "CartPole-v1", *FLAGS, *flags, "--run-dir", str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_for_a3c(tmp_path, capsys):
    assert main(["train", "CartPole-v1", "--algo", "a2c", "--lock", "--run-dir", str(tmp_path / "run")]) == 2
    assert "lock is True with algo a2c, expected False" in capsys.readouterr().err


# --- a worker is lost ----------------------------------------------------------------------------


def test_a_killed_worker_is_named_and_the_run_reaches_its_budget(tmp_path, caplog):
    session = start(tmp_path / "run", total_env_steps=ENDLESS)
    lost, steps = pids_of(session)[1], 0
    for report in session:
        if not steps:
            os.kill(lost, signal.SIGKILL)
        steps = report.env_steps
        if session.training.asynchrony.restarts:
            break
    fastac.finish(session)
    assert "worker 1 died (exit code -9): started again with new episodes" in caplog.text
    assert session.finish()["asynchrony"]["restarts"] == 1

    again = fastac.resume(tmp_path / "run", total_env_steps=session.report.env_steps + 500)
    summary = finish(again)
    assert summary["env_steps"] >= session.report.env_steps + 500
    assert summary["asynchrony"]["restarts"] == 1  # of the whole run


def marks_of(tmp_path):
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


def test_an_environment_that_raises_once_costs_its_worker_a_restart(tmp_path, caplog):
    factory = partial(make_mishap, "raises", os.getpid(), marks_of(tmp_path))
    session, steps = start(tmp_path / "run", factory, total_env_steps=ENDLESS), None
    for report in session:
        if session.training.asynchrony.restarts:
            steps = steps or report.env_steps
        if steps and report.env_steps > steps + 1000:
            break
    assert session.finish()["asynchrony"]["restarts"] == 1
    (told,) = [r.getMessage() for r in caplog.records if "started again" in r.getMessage()]
    assert re.match(r"worker [01]: .*RuntimeError: the wheel came off", told)
    rows = [row["env_steps"] for row in read_rows(tmp_path / "run" / "progress.jsonl")]
    assert rows == sorted(set(rows))


def test_an_environment_that_hangs_costs_its_worker_a_restart(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(async_workers, "SILENCE_S", 4.0)  # longer than a busy machine keeps the other one waiting
    monkeypatch.setattr(async_workers, "SILENCE_ITERATIONS", 1.0)
    factory = partial(make_mishap, "hangs", os.getpid(), marks_of(tmp_path))
    session = start(tmp_path / "run", factory, total_env_steps=ENDLESS)
    before, done = pids_of(session), None
    for _ in session:
        updates = session.training.asynchrony.updates
        if session.training.asynchrony.restarts and done is None:
            done = updates
        if done is not None and (updates > done).all():  # both work again
            break
    assert session.finish()["asynchrony"]["restarts"] == 1
    assert re.search(r"worker [01] finished no step for [\d.]+ s \(.*\): started again with new episodes", caplog.text)
    assert are_gone(before)


@pytest.mark.parametrize("workers", [1, 2])
def test_one_restart_too_many_ends_the_run_with_a_checkpoint(tmp_path, workers):
    factory = partial(make_mishap, "raises", os.getpid(), None)
    session = start(tmp_path / "run", factory, workers=workers, total_env_steps=10**6, max_restarts=1)
    with pytest.raises(fastac.EnvFailure, match=r"worker \d: .*the wheel came off.*as max_restarts allows \(1\)"):
        finish(session)
    last = load_checkpoint(checkpoints(tmp_path / "run")[-1])
    assert last.env_steps == last.state["training"]["trainer"]["env_steps"] > 0
    assert not (tmp_path / "run" / "summary.json").exists()
    again = fastac.resume(tmp_path / "run", env=make_opaque, total_env_steps=last.env_steps + 500)
    summary = finish(again)
    assert summary["env_steps"] >= last.env_steps + 500
    assert summary["asynchrony"]["restarts"] == 1
    rows = [row["env_steps"] for row in read_rows(tmp_path / "run" / "progress.jsonl")]
    assert rows == sorted(set(rows))


def test_the_last_checkpoint_of_a_run_that_lost_its_workers_is_of_all_that_was_done(tmp_path):
    session = start(tmp_path / "run", total_env_steps=ENDLESS, max_restarts=0)
    lost = pids_of(session)[1]
    with pytest.raises(fastac.WorkerFailure, match=r"worker 1 died \(exit code -9\)"):
        for report in session:
            if report.env_steps > 1000 and lost:
                os.kill(lost, signal.SIGKILL)
                lost = None
    last = load_checkpoint(checkpoints(tmp_path / "run")[-1])
    assert last.env_steps == last.state["training"]["trainer"]["env_steps"] == session.training.trainer.env_steps
    assert read_rows(tmp_path / "run" / "progress.jsonl")[-1]["env_steps"] == last.env_steps


def test_the_command_line_shows_the_workers_own_traceback(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FASTAC_TEST_HOME", str(os.getpid()))
    words = ["train", "run_envs:BreaksElsewhere-v0", *FLAGS, "--max-restarts", "1", "--total-env-steps", "1e6"]
    before = forked()
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 2  # as with workers in step
    err = capsys.readouterr().err
    assert 'raise MemoryError("no more")' in err
    assert re.search(r"fastac: worker \d: env 0 raised MemoryError: no more", err.splitlines()[-1]), err
    assert are_gone(forked() - before)


def test_steps_too_large_stop_the_run(tmp_path, capsys):
    words = ["train", "CartPole-v1", *FLAGS, "--learning-rate", "1e30", "--max-grad-norm", "None"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 1
    err = capsys.readouterr().err
    saved = re.search(r"fastac: worker \d: update \d+: \w+ is .*; the state is saved in (\S+)\.\n", err)
    assert saved, err
    load_checkpoint(Path(saved[1]), "CartPole-v1")


# --- start-up ------------------------------------------------------------------------------------


def test_a_worker_that_cannot_begin_leaves_neither_process_nor_directory(tmp_path):
    finish(start(tmp_path / "first", total_env_steps=64))  # so that there is a fork server
    before = forked()
    with pytest.raises(fastac.EnvFailure, match=r"worker \d: .*RuntimeError: there is no stage here"):
        start(tmp_path / "run", partial(make_at_home, os.getpid()))
    assert are_gone(forked() - before)
    assert not (tmp_path / "run").exists()


def test_functions_that_cannot_be_sent_are_refused(tmp_path):
    def build(space):
        return torch.nn.Linear(space.shape[0], 8)

    for arguments in ({"env": lambda num: make_opaque(num)}, {"encoder": build}):
        with pytest.raises(
            ValueError, match="the env and encoder functions are sent to other processes, so they must be defined"
        ):
            start(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()
    assert multiprocessing.active_children() == []


def run_script(tmp_path, lines):
    script = tmp_path / "script.py"
    script.write_text("import fastac\n" + lines)
    command = [sys.executable, str(script)]
    with (tmp_path / "output").open("w") as output:
        code = subprocess.run(command, timeout=120, stdout=output, stderr=output, cwd=tmp_path).returncode
    return code, (tmp_path / "output").read_text()


def test_a_script_without_a_guard_is_told_what_it_lacks(tmp_path):
    code, output = run_script(
        tmp_path,
        "def make(num_envs):\n"
        "    import gymnasium\n"
        "    return gymnasium.make_vec('CartPole-v1', num_envs=num_envs)\n"
        "fastac.train(make, 'a3c', workers=1, num_envs=2, run_dir='run', total_env_steps=100)\n",
    )
    assert code == 1
    assert "below `if __name__ == '__main__':`" in output.splitlines()[-1]


def test_a_session_that_nobody_finishes_lets_python_exit(tmp_path):
    code, output = run_script(
        tmp_path,
        "if __name__ == '__main__':\n"
        "    session = fastac.start('CartPole-v1', 'a3c', workers=2, num_envs=4, run_dir='run')\n"
        "    reports = iter(session)\n"
        "    next(reports)\n",
    )
    assert (code, output) == (0, "")


# --- the parent goes -----------------------------------------------------------------------------


def resume_further(run_dir, more=2000):
    """Resume by the command line, and check that the run goes on from its checkpoint."""
    last = load_checkpoint(checkpoints(run_dir)[-1]).state["training"]["trainer"]["env_steps"]
    assert main(["resume", str(run_dir), "--total-env-steps", str(last + more)]) == 0
    rows = [row["env_steps"] for row in read_rows(run_dir / "progress.jsonl")]
    assert rows == sorted(set(rows)) and rows[-1] >= last + more


def test_nothing_outlives_a_killed_run_which_can_be_resumed(tmp_path):
    shared, run_dir = shared_memory(), tmp_path / "run"
    words = ["-m", "fastac", "train", "CartPole-v1", *FLAGS, "--total-env-steps", "1e9", "--checkpoint-every", "500"]
    with (tmp_path / "stderr").open("w") as errors:
        command = [sys.executable, *words, "--run-dir", str(run_dir)]
        run = subprocess.Popen(command, stdout=errors, stderr=errors, start_new_session=True)
    try:
        while not checkpoints(run_dir):
            assert run.poll() is None, (tmp_path / "stderr").read_text()
            time.sleep(0.01)
        theirs = find_processes(lambda _, leader: leader == run.pid)
        assert len(theirs) >= 1 + 1 + 2 + 1  # itself, the fork server, two workers, the evaluator
    finally:
        run.kill()
        run.wait()
    assert are_gone(theirs | find_processes(lambda _, leader: leader == run.pid))
    assert no_more_than(shared)
    resume_further(run_dir)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_in_order_and_resume_goes_on(tmp_path, number, code):
    shared, run_dir = shared_memory(), tmp_path / "run"
    words = ["train", "CartPole-v1", *FLAGS, "--total-env-steps", "1e9", "--checkpoint-every", "500"]
    process = spawn_main([*words, "--run-dir", str(run_dir), "--json"], tmp_path)
    try:
        wait_for(lambda: checkpoints(run_dir), process)
        theirs = below(process.pid)
        assert len(theirs) >= 1 + 2 + 1  # its fork server, two workers, the evaluator
        os.kill(process.pid, number)
        process.join(60.0)
        assert process.exitcode == code
    finally:
        process.kill()
    assert are_gone(theirs)
    assert no_more_than(shared)
    began, *_, ended = (tmp_path / "stderr").read_text().splitlines()
    assert began.startswith("a3c on CartPole-v1")
    assert ended.startswith(f"Stopped by {signal.Signals(number).name} after ")
    assert ended.endswith(f"Continue with: fastac resume {run_dir}")
    summary = json.loads((tmp_path / "stdout").read_text())
    assert summary["stopped_by"] == signal.Signals(number).name
    assert checkpoints(run_dir)[-1].name == f"step-{summary['env_steps']:012d}"
    state = load_checkpoint(checkpoints(run_dir)[-1]).state["training"]["trainer"]
    assert state["env_steps"] == summary["env_steps"]
    resume_further(run_dir)


def test_a_second_signal_does_not_wait(tmp_path):
    session = start(tmp_path / "run", total_env_steps=ENDLESS)
    pids = [*pids_of(session), evaluator_of(session)]
    with pytest.raises(KeyboardInterrupt):
        for _ in session:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    assert session.finish()["env_steps"] > 0  # what was done is still there
    assert are_gone(pids)


def test_a_second_ctrl_c_does_not_wait_for_a_worker_that_is_stopped(tmp_path):
    shared, run_dir, told = shared_memory(), tmp_path / "run", tmp_path / "stderr"
    # Else the worker would be given up after a while, and the first Ctrl-C would do.
    script = "import sys; from fastac.cli import main; from fastac.workers import async_workers as w; "
    script += "w.SILENCE_S = 6000.0; "
    words = ["train", "CartPole-v1", *FLAGS, "--total-env-steps", "1e9", "--checkpoint-every", "500"]
    command = [sys.executable, "-c", script + "sys.exit(main())", *words, "--run-dir", str(run_dir)]
    with told.open("w") as errors:
        run = subprocess.Popen(command, stdout=errors, stderr=errors, start_new_session=True)
    try:
        while not checkpoints(run_dir):
            assert run.poll() is None, told.read_text()
            time.sleep(0.01)
        theirs = find_processes(lambda _, leader: leader == run.pid)
        workers = below(run.pid) - find_processes(lambda parent, _: parent == run.pid)
        assert len(workers) == 2 + 1  # and the evaluator
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        os.killpg(run.pid, signal.SIGINT)
        while "once more stops at once" not in told.read_text():
            assert run.poll() is None, told.read_text()
            time.sleep(0.01)
        time.sleep(1.0)  # it waits for the worker by now
        assert run.poll() is None, told.read_text()
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(60.0) == 130, told.read_text()
        assert are_gone(theirs | find_processes(lambda _, leader: leader == run.pid))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert no_more_than(shared)
    hint = f"fastac: interrupted; continue from the last checkpoint with: fastac resume {run_dir}"
    assert told.read_text().splitlines()[-1] == hint
    resume_further(run_dir)


# --- resuming ------------------------------------------------------------------------------------


def same(left, right, path="state"):
    if isinstance(left, dict):
        assert left.keys() == dict(right).keys(), path
        for name, value in left.items():
            same(value, right[name], f"{path}/{name}")
    elif isinstance(left, np.ndarray):
        np.testing.assert_array_equal(left, np.asarray(right), err_msg=path)
    else:
        assert left == right, path


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop_tf"])
def test_a_resumed_run_has_all_that_the_checkpoint_has(tmp_path, caplog, optimizer):
    settings = {"normalize_obs": True, "normalize_reward": True, "optimizer": optimizer}
    summary = finish(start(tmp_path / "run", total_env_steps=2000, **settings))
    saved = load_checkpoint(checkpoints(tmp_path / "run")[-1]).state
    session = fastac.resume(tmp_path / "run", total_env_steps=4000)
    began_anew, jumps = (record.message for record in caplog.records if record.levelno >= logging.WARNING)
    assert began_anew == "the state of the environments is not in the checkpoint: their episodes begin anew"
    assert "total_env_steps 2000 -> 4000, learning_rate 0 -> " in jumps
    same(saved["training"], session.training.get_state())
    counters = saved["training"]["trainer"]["counters"]
    assert session.training.asynchrony.updates.tolist() == summary["asynchrony"]["updates_per_worker"]
    assert counters["staleness"].sum(axis=0).tolist() == summary["asynchrony"]["staleness"]
    assert session.report.env_steps == summary["env_steps"]
    reports = list(session)
    assert reports[0].iteration > summary["updates"]
    again = session.finish()
    before, after = (each["asynchrony"]["updates_per_worker"] for each in (summary, again))
    assert all(late >= early for early, late in zip(before, after, strict=True))  # one worker may do it all
    assert sum(after) == again["updates"] > sum(before)
    rows = [row["iteration"] for row in read_rows(tmp_path / "run" / "progress.jsonl")]
    assert rows == sorted(set(rows))


def test_a_checkpoint_of_mid_training_resumes_too(tmp_path):
    session = start(tmp_path / "run", total_env_steps=ENDLESS, checkpoint_every=1)
    for _, report in zip(range(5), session, strict=False):
        steps = report.env_steps
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "run", kept)
    session.finish()
    last = load_checkpoint(checkpoints(kept)[-1])
    trainer = last.state["training"]["trainer"]
    assert last.env_steps <= trainer["env_steps"]
    again = fastac.resume(kept, total_env_steps=trainer["env_steps"] + 500)
    assert again.report.env_steps == again.training.trainer.env_steps == trainer["env_steps"] >= steps
    same(last.state["training"], again.training.get_state())
    assert finish(again)["env_steps"] >= trainer["env_steps"] + 500


def test_a_killed_run_goes_on_with_the_evaluation_of_its_checkpoint(tmp_path):
    run_dir = tmp_path / "run"
    settings = {**SMALL, "workers": 2, "eval_every": 200, "checkpoint_every": 0, "total_env_steps": ENDLESS}
    process = spawn(train_past_a_best, run_dir, **settings)
    wait_for((run_dir / "mark").exists, process)
    process.kill()
    process.join()
    saved = last_env_steps(run_dir)
    assert saved not in [row["env_steps"] for row in read_rows(run_dir / "progress.jsonl")]

    def evaluated():
        return [row["env_steps"] for row in read_rows(run_dir / "evaluations.jsonl")]

    assert saved in evaluated()
    session = fastac.resume(run_dir, total_env_steps=saved + 500)
    assert evaluated()[-1] == saved
    finish(session)
    assert saved in evaluated() and evaluated() == sorted(set(evaluated()))
    rows = [row["env_steps"] for row in read_rows(run_dir / "progress.jsonl")]
    assert rows == sorted(set(rows)) and saved not in rows


# --- evaluation beside training ------------------------------------------------------------------


def play(config, policy, env_steps):
    episodes = config.run.eval_episodes
    with closing(Stage(config, policy, None)) as stage:
        return stage.play(Request(env_steps, episodes, episodes, None, MOST_STEPS))


def test_the_best_checkpoint_is_what_was_evaluated(tmp_path):
    settings = {"num_envs": 8, "learning_rate": 0.02, "hidden_sizes": (32,), "eval_every": 500, "eval_episodes": 5}
    session = start(tmp_path / "run", total_env_steps=ENDLESS, until_return=60.0, seed=1, **settings)
    summary = finish(session)
    evaluations = read_rows(tmp_path / "run" / "evaluations.jsonl")
    reached = next(k for k, row in enumerate(evaluations) if row["mean_return"] >= 60.0)
    mean_return, last = evaluations[reached]["mean_return"], evaluations[-1]
    assert summary["solved"] is True
    assert summary["eval_mean_return"] == summary["best_eval_mean_return"] == mean_return
    best = load_checkpoint(find_checkpoint(tmp_path / "run", "best"))
    assert best.env_steps == evaluations[reached]["env_steps"] == summary["solved_env_steps"]
    model = fastac.load(tmp_path / "run").policy.model
    assert play(session.config, model, best.env_steps).mean_return == mean_return
    # Workers go on while it is evaluated, so another policy is the last one.
    assert reached >= len(evaluations) - 2
    assert (last["env_steps"], last["mean_return"]) == (summary["env_steps"], summary["last_eval_mean_return"])


def test_the_policy_that_is_returned_is_the_one_that_reached_the_target(tmp_path):
    settings = {"num_envs": 8, "learning_rate": 0.02, "hidden_sizes": (32,), "normalize_obs": True}
    settings |= {"eval_every": 500, "eval_episodes": 20, "until_return": 60.0, "total_env_steps": ENDLESS}
    session = start(tmp_path / "run", seed=1, **settings)
    for _ in session:
        pass
    run = fastac.finish(session)
    assert run.summary["solved"] is True
    best = load_checkpoint(find_checkpoint(run.directory, "best"))
    assert best.env_steps == run.summary["solved_env_steps"] < run.summary["env_steps"]
    model = run.policy.model.state_dict()
    assert model.keys() == best.state["training"]["model"].keys()
    for name, value in model.items():
        np.testing.assert_array_equal(best.state["training"]["model"][name], value.numpy(), err_msg=name)
    last = load_checkpoint(find_checkpoint(run.directory, "last")).state["training"]["model"]
    assert any(not np.array_equal(last[name], value.numpy()) for name, value in model.items()), "nobody has gone on"
    assert play(run.config, run.policy.model, best.env_steps).mean_return == run.summary["eval_mean_return"]


@pytest.mark.parametrize("settings", [{"eval_every": 0}, {"eval": False}])
def test_without_evaluations_in_between_no_process_waits_to_play_them(tmp_path, settings):
    session = start(tmp_path / "run", total_env_steps=200, **settings)
    assert isinstance(session.evaluations._evaluator, InProcessEvaluator)
    assert (finish(session)["eval_mean_return"] is None) == ("eval" in settings)


class ToldEvaluator:
    """Finishes its first evaluation when it is waited for, with so good a result that it is the best."""

    is_concurrent = True

    def __init__(self):
        self.weights, self._returns = [], iter([9.0, 1.0, 8.0])  # of the best, the last, and the best once more

    def begin(self, model, request):
        self.weights.append(({name: np.asarray(value).copy() for name, value in model.items()}, request.env_steps))

    def take(self, wait):
        return Evaluation(np.array([next(self._returns)]), np.array([1])) if wait else None

    def close(self):
        pass


def test_the_best_is_kept_where_its_evaluation_ends_after_later_checkpoints(tmp_path, monkeypatch):
    told = ToldEvaluator()
    monkeypatch.setattr("fastac.runs.evaluations.open_evaluator", lambda *_: told)
    settings = {"eval_every": 1, "checkpoint_every": 1, "keep_checkpoints": 1}
    session = start(tmp_path / "run", total_env_steps=ENDLESS, **settings)
    for _, _ in zip(range(6), session, strict=False):
        pass
    session.finish()
    (weights, env_steps), (_, later), (again, _) = told.weights
    assert all(np.array_equal(weights[name], again[name]) for name in weights)
    best = load_checkpoint(find_checkpoint(tmp_path / "run", "best"))
    assert env_steps < later
    assert best.env_steps == env_steps, "the best checkpoint has been deleted"
    for name, value in weights.items():
        np.testing.assert_array_equal(best.state["training"]["model"][name], value)


def test_a_killed_evaluator_is_started_again(tmp_path, caplog):
    session = start(tmp_path / "run", total_env_steps=ENDLESS, eval_every=1)
    killed, steps = evaluator_of(session), 0
    for report in session:
        if not steps:
            os.kill(killed, signal.SIGKILL)
            assert are_gone([killed])
            steps = report.env_steps
        if session.evaluations._played_at > steps:
            break
    assert evaluator_of(session) != killed
    summary = session.finish()
    assert summary["eval_mean_return"] is not None and summary["asynchrony"]["restarts"] == 0
    assert caplog.text.count("the evaluator died (exit code -9): started again") == 1


def hasten(monkeypatch):
    """Let an evaluator be given up after a second."""
    monkeypatch.setattr("fastac.runs.evaluator._SILENCE_S", 1.0)
    monkeypatch.setattr("fastac.runs.evaluator._SILENCE_TIMES", 1.0)


SILENT = "the evaluator has been silent for 1 s (raise env_timeout_s if it needs longer): started again (1 of"


def test_an_evaluator_that_hangs_is_started_again(tmp_path, monkeypatch, caplog):
    hasten(monkeypatch)
    session = start(tmp_path / "run", total_env_steps=ENDLESS, eval_every=1)
    hung = known = None
    for _ in session:
        if hung is None and session.evaluations.latest is not None:
            hung = evaluator_of(session)
            os.kill(hung, signal.SIGSTOP)
        elif hung is not None and evaluator_of(session) != hung:
            known = known or session.evaluations.latest
            if session.evaluations.latest is not known:  # another one has been made since
                break
    assert session.finish()["asynchrony"]["restarts"] == 0
    assert SILENT in caplog.text and are_gone([hung])


def test_an_evaluator_that_hangs_while_it_is_waited_for_is_started_again(tmp_path, monkeypatch, caplog):
    hasten(monkeypatch)
    session = start(tmp_path / "run", total_env_steps=100)
    assert session.evaluations._evaluator.child.has_news(60.0), "it is not ready"
    hung = evaluator_of(session)
    os.kill(hung, signal.SIGSTOP)
    assert finish(session)["eval_mean_return"] is not None
    assert SILENT in caplog.text and are_gone([hung])


def test_an_evaluator_that_is_killed_every_time_ends_the_run(tmp_path):
    session = start(tmp_path / "run", total_env_steps=ENDLESS, eval_every=1, max_restarts=0)
    killed = None
    with pytest.raises(fastac.WorkerFailure, match=r"the evaluator died \(exit code -9\)"):
        for _ in session:
            if evaluator_of(session) != killed:
                killed = evaluator_of(session)
                os.kill(killed, signal.SIGKILL)
    resumed = fastac.resume(tmp_path / "run")
    assert resumed.report.env_steps > 0
    next(iter(resumed))
    resumed.finish()


def test_an_evaluation_that_fails_ends_the_run_with_a_checkpoint(tmp_path):
    settings = {"eval_every": 100, "eval_episodes": EVALUATED, "total_env_steps": ENDLESS}
    session = start(tmp_path / "run", make_unplayable, **settings)
    pids = [*pids_of(session), evaluator_of(session)]
    with pytest.raises(
        fastac.EnvFailure,
        match=r"the evaluator: .*RuntimeError: the stage collapsed.*, in the evaluation after \d+ env",
    ):
        finish(session)
    assert are_gone(pids)
    assert load_checkpoint(checkpoints(tmp_path / "run")[-1]).env_steps >= 100


def test_an_evaluator_that_cannot_begin_says_why():
    evaluator = ProcessEvaluator(Config().replace(**A3C), partial(make_at_home, os.getpid()), None)
    try:
        process = evaluator.child.process
        process.join(60.0)  # however late it is asked
        with pytest.raises(fastac.EnvFailure, match=r"the evaluator: .*RuntimeError: there is no stage here"):
            evaluator.begin({}, Request(0, 1, 1, None, MOST_STEPS))
            evaluator.take(wait=True)
    finally:
        evaluator.close()


def test_who_ends_a_run_does_not_wait_for_its_evaluation(tmp_path):
    session = start(tmp_path / "run", total_env_steps=ENDLESS, eval_every=1, eval_episodes=10**5)
    evaluator = evaluator_of(session)
    for _ in session:
        signal.raise_signal(signal.SIGTERM)
    summary = session.finish()
    assert summary["stopped_by"] == "SIGTERM" and summary["eval_mean_return"] is None
    assert are_gone([evaluator])
