"""Bad input: one sentence on stderr, exit code 2, and nothing is written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from run_envs import Opaque
from run_support import SMALL, checkpoints, snapshot

import fastac
from fastac.cli import main
from fastac.contract import EnvFailure
from fastac.runs.checkpoint import find_checkpoint


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with several checkpoints; copied by whoever damages it."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    fastac.train("CartPole-v1", run_dir=run_dir, **SMALL, total_env_steps=320, checkpoint_every=100)
    assert len(checkpoints(run_dir)) == 3
    return run_dir


def assert_refused(capsys, words: list[str], says: str) -> None:
    before = snapshot(Path())
    code = main(words)
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("fastac: ")
    assert err.count("\n") == 1, err
    assert "fastac: fastac" not in err
    assert re.search(says, err), err
    assert snapshot(Path()) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train CartPol-v1", "'CartPol-v1'.* did you mean CartPole-v1"),
        ("train no_such_module:Thing-v0", "'no_such_module' cannot be imported"),
        ("train run_envs:Opaqe-v0", "did you mean Opaque-v0"),
        ("train run_envs:SequenceObs-v0", "the observation space is Sequence.*, expected a Box"),
        ("train CartPole-v1 --squash-actions", "squash_actions is True, expected False: the action space is Discrete"),
        ("train CartPole-v1 --dependent-std", "dependent_std is True, expected False: the action space is Discrete"),
        ("train", "train needs an environment id first, such as: fastac train CartPole-v1"),
        ("train --seed 1 CartPole-v1", "needs an environment id first"),
        ("train CartPole-v1 --nun-envs 3", "'--nun-envs' is not an option.* did you mean --num-envs"),
        ("train CartPole-v1 --zzz 3", "'--zzz' is not an option.* see fastac train ENV_ID --help"),
        ("train CartPole-v1 Pendulum-v1", "'Pendulum-v1' is one word too many"),
        ("train CartPole-v1 --total_env_stepz=3", "did you mean --total-env-steps"),
        ("train CartPole-v1 --env-id Pendulum-v1", "named twice, CartPole-v1 and --env-id Pendulum-v1"),
        ("train CartPole-v1 --algo PPO", "--algo: 'PPO' is not known: did you mean ppo"),
        ("train CartPole-v1 --lr 1e-3", "'--lr' is not an option.* did you mean --learning-rate"),
        ("train CartPole-v1 --n-steps 8", "did you mean --num-steps"),
        ("train CartPole-v1 --total-timesteps 8", "did you mean --total-env-steps"),
        ("train CartPole-v1 --n-envs=8", "did you mean --num-envs"),
        ("resume --json", "resume needs a run's directory"),
        ("completion fish", "'fish' is not known"),
        ("train CartPole-v1 --num-envs", "--num-envs needs a value"),
        ("train CartPole-v1 --num-envs eight", "--num-envs: 'eight' is not a whole number"),
        ("train CartPole-v1 --num-envs 2.5", "--num-envs: '2.5' is not a whole number"),
        *(
            (f"train CartPole-v1 --{flag}-sizes {word}", f"'{re.escape(word)}' is not.*: separate with spaces: 32 16$")
            for flag in ("hidden", "actor", "critic")
            for word in ("32,16", "[32,16]")
        ),
        ("train CartPole-v1 --hidden-sizes many", "--hidden-sizes: 'many' is not a whole number.$"),
        ("train CartPole-v1 --num-envs 0", "num_envs is 0, expected a whole number from 1"),
        ("train CartPole-v1 --num-envs -3", "num_envs is -3, expected a whole number from 1"),
        ("train CartPole-v1 --gamma nan", "gamma is nan, expected a number from 0 to 1"),
        ("train CartPole-v1 --learning-rate inf", "learning_rate is inf, expected a finite number above 0"),
        ("train CartPole-v1 --num-envs 4 --num-steps 8 --num-minibatches 7", "num_minibatches is 7.* a divisor of 32,"),
        ("train CartPole-v1 --max-grad-norm none", "--max-grad-norm: 'none' is neither None nor a number"),
        ("train CartPole-v1 --algo sac", "--algo: 'sac' is not known: expected one of a2c, a3c, ppo, reinforce"),
        ("train CartPole-v1 --algo a3c --device cuda", "device is 'cuda' with algo a3c, expected 'cpu'"),
        ("train CartPole-v1 --algo a3c --vectorization process", "workers is .* with vectorization process"),
        ("train CartPole-v1 --lock", "lock is True with algo a2c"),
        ("train CartPole-v1 --envs-per-worker 0", "envs_per_worker is 0, expected at least 1"),
        ("train CartPole-v1 --envs-per-worker 4 --num-envs 8", "num_envs and envs_per_worker are both given"),
        ("train CartPole-v1 --preset lectur", "preset is 'lectur', expected one of .*lecture"),
        (
            "train run_envs:Opaque-v0 --preset nope",
            "expected none: there is no preset for run_envs:Opaque-v0",
        ),
        ("train CartPole-v1 --optimizer sgd", "'sgd'.*adam"),
        ("train CartPole-v1 --device gpu", "device is 'gpu'"),
        ("train CartPole-v1 --vectorization native --num-envs two", "'two' is not a whole number"),
        ("train Pendulum-v1 --vectorization native", "Pendulum-v1 has no batched version: use auto, compiled or sync."),
        ("train run_envs:Opaque-v0 --vectorization native", "Opaque-v0 has no batched version: use auto or sync."),
        ("resume", "resume needs a run's directory, such as: fastac resume runs/"),
        ("resume nowhere", "nowhere holds no fastac run"),
        ("resume --total-env-stepz 3 nowhere", "did you mean --total-env-steps"),
        ("eval nowhere", "nowhere holds no fastac run"),
        ("record nowhere", "nowhere holds no fastac run"),
        ("plot nowhere", "nowhere holds no fastac run"),
        ("plot", "no run directory was given"),
        ("list all", "'all' is one word too many for fastac list"),
        ("tain CartPole-v1", "'tain' is not a command: did you mean train"),
        ("zzz", "'zzz' is not a command: expected one of train, resume"),
    ],
)
def test_words_that_do_not_fit(capsys, words, says):
    assert_refused(capsys, words.split(), says)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"nun_envs": 3}, "'nun_envs' is not a fastac setting. Did you mean num_envs"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"num_envs": 9, "envs_per_worker": 4, "workers": 2}, "num_envs is 9, but envs_per_worker times workers is 8"),
        ({"algo": "sac"}, "algo is 'sac'"),
        ({"preset": "lectur"}, "preset is 'lectur'"),
        ({"num_minibatches": 7, "num_envs": 4}, "num_minibatches is 7"),
    ],
)
def test_settings_from_python_that_do_not_fit(settings, says):
    with pytest.raises(ValueError, match=says):
        fastac.start("CartPole-v1", **settings)
    assert snapshot(Path()) == {}


class Misshapen(Opaque):
    """Shows other observations than its space has."""

    def step(self, action):
        return np.zeros(5, np.float32), 0.0, False, False, {}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium's, of the same
def test_an_environment_that_is_tried_is_refused_before_anything_is_written(monkeypatch):
    monkeypatch.setattr("fastac.envs.make.count_cores", lambda: 2)
    with pytest.raises(EnvFailure, match=r"Misshapen returned an observation of shape \(5,\), expected \(1,\)\.$"):
        fastac.start(Misshapen, num_envs=2)
    assert snapshot(Path()) == {}


def test_a_directory_that_holds_a_run(capsys, finished):
    shutil.copytree(finished, "run")
    assert_refused(capsys, ["train", "CartPole-v1", "--run-dir", "run"], "run already holds a run.*fastac resume run")


def test_a_directory_that_cannot_be_written(capsys):
    Path("file").touch()
    assert_refused(capsys, ["train", "CartPole-v1", "--run-dir", "file/run"], "cannot create run directory file/run")


def test_a_run_without_a_checkpoint(capsys, finished):
    shutil.copytree(finished, "run", ignore=shutil.ignore_patterns("checkpoints"))
    for command in ("resume", "eval", "record"):
        assert_refused(capsys, [command, "run"], "run holds no checkpoint yet")


def edit_json(path: Path, edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("command", ["resume", "eval", "record"])
@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [flip_a_byte, lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_damaged_checkpoint(capsys, finished, command, name, damage):
    shutil.copytree(finished, "run")
    older, last = checkpoints(Path("run"))[-2:]
    (find_checkpoint(Path("run"), "best") / "best.json").unlink()  # eval and record prefer the best
    damage(last / name)
    assert_refused(
        capsys, [command, "run"], f"{name} is damaged.*{older.name} beside it is older and good: delete {last}"
    )


def test_without_the_damaged_checkpoint_the_run_goes_on(capsys, finished):
    shutil.copytree(finished, "run")
    last = checkpoints(Path("run"))[-1]
    flip_a_byte(last / "state.safetensors")
    shutil.rmtree(last)
    assert main(["resume", "run"]) == 0
    whole = finished / "checkpoints" / last.name
    assert (last / "state.safetensors").read_bytes() == (whole / "state.safetensors").read_bytes()


def test_a_checkpoint_of_another_environment(capsys, finished):
    fastac.train("Acrobot-v1", run_dir="run", **SMALL, total_env_steps=32)
    shutil.rmtree("run/checkpoints")
    shutil.copytree(finished / "checkpoints", "run/checkpoints")
    for command in ("resume", "eval", "record"):
        assert_refused(capsys, [command, "run"], "was trained on CartPole-v1, expected Acrobot-v1")


def test_a_checkpoint_of_a_newer_fastac(capsys, finished):
    shutil.copytree(finished, "run")
    for checkpoint in checkpoints(Path("run")):
        edit_json(checkpoint / "state.json", lambda content: content.update(schema=99))
    assert_refused(capsys, ["resume", "run"], "written by a newer fastac .schema 99.*upgrade fastac")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda config: config["env"].update(nun_envs=3), "'nun_envs' is not a fastac setting. Did you mean num_envs"),
        (lambda config: config.update(envs={}), "'envs' is not a section"),
        (lambda config: config["algo"].update(gamma=2), "gamma is 2"),
        (lambda config: config["algo"].update(gamma="x"), "gamma"),
    ],
)
def test_a_config_file_that_does_not_fit(capsys, finished, edit, says):
    shutil.copytree(finished, "run")
    edit_json(Path("run/config.json"), edit)
    for command in ("resume", "eval", "record", "plot"):
        assert_refused(capsys, [command, "run"], says)


def test_episodes_to_play_that_do_not_fit(capsys, finished):
    assert_refused(capsys, ["eval", str(finished), "--episodes", "0"], "episodes is 0, expected at least 1")


def test_a_film_or_picture_of_another_format(capsys, finished):
    assert_refused(capsys, ["record", str(finished), "--output", "film.avi"], "film.avi")
    assert_refused(capsys, ["plot", str(finished), "--output", "picture.svg"], "picture.svg")


def test_resume_without_the_runs_own_encoder(finished):
    from torch import nn

    def wide(space):
        return nn.Sequential(nn.Linear(space.shape[0], 5))

    fastac.train("CartPole-v1", run_dir="run", encoder=wide, **SMALL, total_env_steps=32)
    for begin in (partial(fastac.resume, total_env_steps=64), fastac.load):
        with pytest.raises(ValueError, match="which was given in Python and cannot be imported") as refused:
            begin("run")
        assert "\n" not in str(refused.value)
    assert fastac.load("run", encoder=wide).policy.act([0.0] * 4) in (0, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("words", ["--num-envs 0", "--learning-rate abc", "--vectorization async"])
def test_on_a_terminal_it_is_one_sentence_too(words):
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "fastac", "train", "CartPole-v1", *words.split()]
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, env=env, timeout=60)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert done.stderr.startswith("fastac: ") and done.stderr.count("\n") == 1
    assert words.split()[1] in done.stderr and not set(done.stderr) & {"\x1b", "│", "─"}
