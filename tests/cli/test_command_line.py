"""The command line: help without waiting, what goes to stdout, and every command once."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from run_support import SMALL, SMALL_FLAGS, read_rows

import fastac
from fastac.cli import main
from fastac.cli.train import COMMON, _follow
from fastac.config import setting_names
from fastac.contract import WorkerFailure
from fastac.presets import PRESETS

HELP = """
import sys
from fastac.cli import main
commands = ("train", "config", "resume", "tune", "sweep", "eval", "record", "plot", "list", "gate", "doctor")
for words in (["--help"], *([command, "--help-all"] for command in commands)):
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 0, words
assert main(["list"]) == 0
slow = {"torch", "gymnasium", "numba", "matplotlib"} & set(sys.modules)
assert not slow, slow
"""

TRAIN = """
import gc, sys
from fastac.cli import main
assert main(sys.argv[1:]) == 0
# Compilers, what compiling needs beyond loading from the cache, other backends of environments, pictures.
slow = {"torch._dynamo", "torch._inductor", "torch.onnx", "torch.utils.tensorboard", "sympy", "triton"}
slow |= {"numba.np.linalg", "scipy.linalg", "shtab", "matplotlib", "PIL", "imageio", "pandas", "pygame"}
slow |= {"envpool", "ale_py", "mujoco", "stable_baselines3", "jax", "fastac.tools.plot"}
slow &= set(sys.modules)
assert not slow, slow
assert gc.isenabled() and gc.get_freeze_count() > 100_000, "the collector goes over all modules"
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fastac.train("CartPole-v1", run_dir=tmp_path_factory.mktemp("cli") / "run", **SMALL, total_env_steps=640)


def test_help_and_list_wait_for_nothing():
    done = subprocess.run([sys.executable, "-W", "error", "-c", HELP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for command in ("train", "resume", "tune", "eval", "record", "plot", "list", "gate", "doctor"):
        assert f"  {command} " in done.stdout
    for flag in ("--num-envs", "--[no-]baseline", "--until-return", "--total-env-steps", "--[no-]json", "--episodes"):
        assert flag in done.stdout
    assert "lecture" in done.stdout


def test_a_run_imports_only_what_it_needs(run, tmp_path):
    """After the first `run`, which compiles what is not in the cache."""
    words = ["train", "CartPole-v1", *SMALL_FLAGS, "--total-env-steps", "100", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", TRAIN, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_python_m_fastac_is_the_command():
    done = subprocess.run([sys.executable, "-m", "fastac", "tain"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "fastac: 'tain' is not a command: did you mean train?\n"


def test_no_command_is_help_and_an_error(capsys):
    assert main([]) == 2
    assert "usage: fastac COMMAND" in capsys.readouterr().out


def test_help_shows_the_presets_values(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "CartPole-v1", "--preset", "lecture", "--help"])
    assert stop.value.code == 0
    told = " ".join(capsys.readouterr().out.split())  # as no terminal's width wraps it
    assert "--num-envs INT Environments stepped side by side, by all workers together. (default: 1)" in told


def help_of(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main([*words])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_shows_what_people_use_and_all_where_asked(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    short, whole = help_of(capsys, "train", "--help"), help_of(capsys, "train", "--help-all")
    flags = [re.findall(r"^  --(?:\[no-\])?([a-z0-9-]+)", told, re.M) for told in (short, whole)]
    assert set(flags[0]) == {name.replace("_", "-").replace("wrappers", "wrapper") for name in COMMON}
    assert len(flags[0]) == len(COMMON) == 23
    assert set(flags[1]) >= {name.replace("_", "-") for name in setting_names() if name != "wrappers"}
    groups = re.findall(r"^(\w[\w ]+):$", whole, re.M)
    assert groups[-1] == "Atari games" and len(groups) == 7
    assert max(map(len, whole.splitlines())) <= 80


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_commands_and_flags(capsys, shell):
    assert main(["completion", shell]) == 0
    told = capsys.readouterr().out
    assert "total-env-steps" in told and "resume" in told and "checkpoint" in told


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_is_wrong_is_said_on_every_terminal(capsys, monkeypatch, encoding):
    monkeypatch.setattr(sys.stdout, "_encoding", encoding, raising=False)
    monkeypatch.setattr(type(sys.stdout), "encoding", encoding, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["train", "CartPole-v1", "--gamma", "nan"]) == 2
    assert capsys.readouterr().err == "fastac: gamma is nan, expected a number from 0 to 1.\n"


def test_train_says_how_it_ended_on_stderr(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastac.runs.session._LEAST_TRAIN_S", math.inf)  # no line about efficiency
    run_dir = tmp_path / "run"
    words = ["train", "CartPole-v1", *SMALL_FLAGS, "--total-env-steps", "1_000", "--run-dir", str(run_dir)]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out == ""
    *progress, names, spent, ended = err.splitlines()  # lines and no bar, because this is no terminal
    assert progress and all("steps" in line and "return" in line for line in progress)
    assert names.split() == ["Time", "env", "act", "advantage", "update", "other", "evaluation"]
    assert len(names) == len(spent)
    assert ended.startswith("Trained on CartPole-v1: greedy mean return ")
    assert err.endswith(f"Everything is in {run_dir}\n")
    assert json.loads((run_dir / "summary.json").read_text())["command"] == "fastac " + " ".join(words)


@pytest.mark.parametrize(("target", "says"), [("1", "Solved CartPole-v1: "), ("600", ", short of 600, after ")])
def test_train_says_whether_the_target_was_reached(tmp_path, capsys, target, says):
    words = ["train", "CartPole-v1", *SMALL_FLAGS, "--total-env-steps", "1e2", "--run-dir", str(tmp_path / "run")]
    assert main([*words, "--until-return", target]) == 0
    assert says in capsys.readouterr().err


def test_json_is_the_last_line_of_stdout_and_all_of_it(tmp_path, capsys):
    words = [*SMALL_FLAGS, "--total-env-steps", "500", "--run-dir", str(tmp_path / "run"), "--json"]
    assert main(["train", "CartPole-v1", *words]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert main(["resume", str(tmp_path / "run"), "--total-env-steps", "1000", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["env_steps"] >= 1000


def test_flags_override_the_preset(tmp_path):
    run_dir = tmp_path / "run"
    words = ["train", "CartPole-v1", "--preset", "lecture", "--total-env-steps", "100", "--no-normalize-advantage"]
    assert main([*words, "--max-grad-norm", "None", "--run-dir", str(run_dir)]) == 0
    config = fastac.load(run_dir).config
    assert (config.env.num_envs, config.algo.collect) == (1, "episodes")
    assert config.algo.normalize_advantage is False
    assert config.optim.max_grad_norm is None


def test_fastacs_own_environment_has_its_preset_without_its_module(tmp_path, capsys):
    words = ["fastac/MaskedCartPole-v1", "--algo", "ppo", "--num-envs", "4", "--num-steps", "8", "--lstm-size", "8"]
    run_dir = tmp_path / "run"
    assert main(["train", *words, "--total-env-steps", "64", "--no-eval", "--run-dir", str(run_dir)]) == 0
    config = fastac.load(run_dir).config
    assert config.env.env_id == "fastac.envs.masked:fastac/MaskedCartPole-v1" and config.model.core == "lstm"
    assert "(default: lstm)" in " ".join(help_of(capsys, "train", *words, "--help-all").split())


def test_reinforce_without_a_baseline(tmp_path):
    words = ["train", "CartPole-v1", "--algo", "reinforce", "--no-baseline", "--num-envs", "2", "--eval-episodes", "2"]
    assert main([*words, "--total-env-steps", "100", "--run-dir", str(tmp_path / "run")]) == 0
    assert len(read_rows(tmp_path / "run" / "progress.jsonl")) >= 1
    assert fastac.load(tmp_path / "run").config.algo.baseline is False


def test_eval(run, capsys):
    assert main(["eval", str(run.directory), "--episodes", "5"]) == 0
    assert "5 greedy episodes" in capsys.readouterr().out
    assert main(["eval", str(run.directory), "--episodes", "5", "--seed", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["mean_return"] == fastac.evaluate(run, 5, 2).mean_return


def test_record(run, tmp_path, capsys):
    pytest.importorskip("pygame")
    film = tmp_path / "film.gif"
    assert main(["record", str(run.directory), "--output", str(film)]) == 0
    assert film.read_bytes()[:3] == b"GIF"
    assert capsys.readouterr().out.startswith(f"{film}: one episode, return ")


def test_plot(run, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "picture.png"
    assert main(["plot", str(run.directory), str(run.directory), "--output", str(picture), "--x", "seconds"]) == 0
    assert picture.read_bytes()[1:4] == b"PNG"
    assert capsys.readouterr().out == f"{picture}\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("words", [["list"], ["--help"]], ids=" ".join)
def test_a_narrow_terminal_breaks_no_word(capsys, monkeypatch, words, columns):
    assert main(words) == 0
    whole = capsys.readouterr().out
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(words) == 0
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    assert set(terminal.getvalue().split()) <= set(whole.split())
    for preset in PRESETS if words == ["list"] else ():
        assert preset.what.split()[-1] in terminal.getvalue().split()


def test_list(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["environment", "preset", "reaches", "what", "it", "is"]
    assert any(line.startswith("CartPole-v1") and "lecture" in line and "475" in line for line in lines)


class Lost:
    """A session whose worker dies after a checkpoint."""

    is_saved = True
    directory = SimpleNamespace(path="runs/mine")

    def __iter__(self):
        raise WorkerFailure("worker 1 died (exit code -9).")


def test_a_run_that_lost_a_worker_says_how_to_go_on():
    with pytest.raises(WorkerFailure) as caught:
        _follow(Lost(), as_json=False)
    hint = "continue from the last checkpoint with: fastac resume runs/mine"
    assert str(caught.value) == f"worker 1 died (exit code -9); {hint}"
