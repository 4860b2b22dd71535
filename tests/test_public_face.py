"""What `import fastac` shows."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_type_hints

import pytest

import fastac
from fastac.cli import main
from fastac.config import Config, TrainSettings, WrapperFactory
from fastac.config.config import LogName


def test_dir_is_the_public_names():
    shown = [name for name in dir(fastac) if not name.startswith("__")]
    assert sorted(shown) == sorted(fastac.__all__)
    assert "Session" in shown and "cli" not in shown
    for name in shown:
        assert getattr(fastac, name).__name__ == name


def errors():
    """Yield every exception that fastac defines for its users: those that are no private signal."""
    for module in pkgutil.walk_packages(fastac.__path__, "fastac."):
        if module.name.endswith(("__main__", "fork_server")):
            continue  # one runs a command, the other makes this process deaf to signals
        for name, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if kind.__module__ == module.name and issubclass(kind, RuntimeError):
                yield name


def test_everything_that_is_raised_is_shown():
    raised = set(errors())
    assert raised >= {"EnvFailure", "WorkerFailure", "NonFiniteError", "RecordError"}
    assert raised <= set(fastac.__all__)


def test_typed_settings_are_the_configurations_fields():
    named = {"env_id", "algo", "encoder"}  # arguments of `train`
    fields = {
        name: kind
        for section in get_type_hints(Config).values()
        for name, kind in get_type_hints(section).items()
        if name not in named
    }
    wider = {"hidden_sizes": Sequence[int], "total_env_steps": float, "checkpoint_every": float}
    wider["eval_every"] = float | None  # 1e6 goes for a whole number
    wider |= dict.fromkeys(("drop_keys", "critic_keys"), Sequence[str])
    wider["wrappers"] = Sequence[str | WrapperFactory]
    wider["log"] = Sequence[LogName]
    wider |= dict.fromkeys(("actor_sizes", "critic_sizes"), Sequence[int] | None)
    assert get_type_hints(TrainSettings) == fields | wider


@pytest.mark.slow  # half a minute
def test_a_type_checker_finds_typos(tmp_path):
    (tmp_path / "typo.py").write_text('import fastac\nfastac.train("CartPole-v1", nun_envs=4)\n')
    (tmp_path / "right.py").write_text('import fastac\nfastac.start("CartPole-v1", num_envs=4, total_env_steps=1e5)\n')
    words = [sys.executable, "-m", "mypy", "--follow-imports", "silent"]
    root = Path(__file__).parents[1]
    done = [
        subprocess.run([*words, tmp_path / name], cwd=root, capture_output=True, text=True)
        for name in ("right.py", "typo.py")
    ]
    assert [run.returncode for run in done] == [0, 1], done[0].stdout
    assert '"nun_envs"' in done[1].stdout


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fastac' has no attribute 'trian'"):
        _ = fastac.trian


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastac {fastac.__version__}\n"
    assert fastac.__version__.count(".") == 2


def test_sessions_and_runs_have_short_reprs(tmp_path):
    session = fastac.start("CartPole-v1", num_envs=2, total_env_steps=20, eval_episodes=2, run_dir=tmp_path / "run")
    assert repr(session) == f"Session(a2c on CartPole-v1, seed 0, 0 of 20 env steps, {tmp_path / 'run'})"
    for _ in session:
        pass
    run = fastac.finish(session)
    mean_return = run.summary["eval_mean_return"]
    assert (
        repr(run)
        == f"Run(a2c on CartPole-v1, seed 0, mean return {mean_return:.1f} over 2 episodes, {tmp_path / 'run'})"
    )
