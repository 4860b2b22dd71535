"""The pages: short enough, links that lead somewhere, commands that the command line takes."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

import fastac
from fastac.cli import main
from fastac.config import Config
from fastac.runs.run_dir import RunDirectory

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "fastac/README.md",
    *sorted((ROOT / "fastac/guides").glob("*.md")),
    ROOT / "benchmarks/README.md",
    ROOT / "benchmarks/experiments/README.md",
]
OWN = """
import gymnasium as gym
from torch import nn

class MyEnv(gym.Env):
    def __init__(self, level=1):
        env = gym.make("CartPole-v1")
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.env, self.reset, self.step = env, env.reset, env.step

class MyDictEnv(gym.Env):
    observation_space = gym.spaces.Dict(
        mission=gym.spaces.Text(9), image=gym.spaces.Box(0, 255, (8, 8, 3), "uint8"), state=gym.spaces.Discrete(2)
    )
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, self.np_random.random() < 0.1, False, {}

def make_encoder(space):
    return nn.Linear(space.shape[0], 8)
"""


def commands() -> Iterator[tuple[str, str]]:
    """Yield every command of fastac in the pages' code, with the page that has it."""
    for page in PAGES:
        for line in re.findall(r"^(?:    |\s+- run: )(fastac .*)$", page.read_text(), re.M):
            yield page.relative_to(ROOT).as_posix(), re.sub(r"\s+#.*", "", line)


COMMANDS = sorted({(command, page) for page, command in commands()})
# By their first word: where the work begins that this test leaves out.
READS = {"--from", "--init-from"}  # flags of train that name an earlier run
DOORS = {
    "train": "fastac.api.start_config",
    "resume": "fastac.api.resume",
    "eval": "fastac.api.load",
    "record": "fastac.api.load",
    "plot": "fastac.tools.plot.plot",
    "export": "fastac.api.load",
    "tune": "fastac.tools.tune.Search",
    "sweep": "fastac.studies.sweep.run_sweep",
    "gate": "fastac.tools.gate.repository.check",
    "doctor": "fastac.tools.doctor.examine",
}


def door_of(words: list[str]) -> str:
    """Return where the work of a command begins."""
    if "--tuned" in words:
        return DOORS["tune"]
    return "fastac.studies.seeds.run_seeds" if "--seeds" in words else DOORS[words[0]]


def test_the_readme_is_read_in_minutes():
    text = README.read_text()
    assert len(text.splitlines()) <= 180 and len(text.split()) <= 1_800
    assert max(map(len, text.splitlines())) <= 120
    glossary = text[text.index("## Words") : text.index("## Where the rest is")]
    assert len(re.findall(r"^\| [a-z]", glossary, re.M)) - 1 <= 25  # less its head


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_are_there(page):
    text = page.read_text()
    assert not re.findall(r"TODO|\b[A-Z0-9]+_[TW]\b|\bKILLS\b", text), "something is left to fill in"
    linked = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in linked:
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with what a user of these pages has, to be in."""
    (tmp_path / "my.yaml").write_text("env_id: CartPole-v1\ngamma: 0.98")
    (tmp_path / "mymodule.py").write_text(OWN)
    (tmp_path / "gridworld.py").write_text(python_blocks(ROOT / "fastac/guides/compiled.md")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def skip_without_its_package(words: list[str]) -> None:
    """Skip a command of an environment that fastac does not install."""
    module, colon, _ = words[1].partition(":") if len(words) > 1 else ("", "", "")
    if colon and find_spec(module.partition(".")[0]) is None:
        pytest.skip(f"{module} is not installed")


@pytest.mark.parametrize(("command", "page"), COMMANDS)
def test_a_command_is_taken(own, monkeypatch, capsys, command, page):
    _, *words = shlex.split(command)
    skip_without_its_package(words)
    if READS & set(words):  # the run's configuration, before the work begins
        RunDirectory.create(Path("runs/mine"), Config())
    if words[0] in ("list", "hosts", "config"):
        assert main(words) == 0
        return

    def open_door(*_, **__):
        raise ValueError("the work begins")

    monkeypatch.setattr("fastac.tools.tune.load_tuned", lambda config: None)
    monkeypatch.setattr(door_of(words), open_door)
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "fastac: the work begins", page


def python_blocks(page: Path) -> list[str]:
    """Return the Python that a page shows."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_can_be_read(page):
    for block in python_blocks(page):
        compile(block, str(page), "exec")


class Short:
    """fastac, with budgets of a moment."""

    def __getattr__(self, name):
        return getattr(fastac, name)

    def train(self, *arguments, **settings):
        return fastac.train(*arguments, **{"total_env_steps": 2048, "eval_episodes": 1, **settings})

    def start(self, *arguments, **settings):
        return fastac.start(*arguments, **{"total_env_steps": 2048, "eval_episodes": 1, **settings})

    def train_seeds(self, *arguments, **settings):
        return fastac.train_seeds(*arguments, **{"total_env_steps": 2048, "eval_episodes": 1, **settings})

    def sweep(self, *arguments, options, **settings):
        options = fastac.SweepOptions(trials=1, seeds_per_trial=1, confirm_seeds=0)
        return fastac.sweep(*arguments, options=options, **{**settings, "total_env_steps": 2048})

    def resume(self, run_dir, total_env_steps=1e6, **settings):
        return fastac.resume(run_dir, total_env_steps=total_env_steps / 500, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_python_runs(own, page, monkeypatch):
    """In one namespace per page, with what a reader is told to have."""
    import gymnasium as gym
    import mymodule

    from fastac.models import MLPEncoder

    if "MyEnv-v0" not in gym.registry:
        gym.register("MyEnv-v0", "mymodule:MyEnv", max_episode_steps=50)
    with fastac.start("CartPole-v1", run_dir="runs/mine", num_envs=4, total_env_steps=512, eval_episodes=1) as session:
        next(iter(session))
    short = Short()
    monkeypatch.setitem(sys.modules, "fastac", short)
    names = {
        "fastac": short,
        "gym": gym,
        # A stand-in: EnvPool takes a second to import.
        "envpool": SimpleNamespace(make_gymnasium=lambda env_id, num_envs, seed: gym.make_vec(env_id, num_envs)),
        "observation": [0.0] * 4,
        "MyEnv": mymodule.MyEnv,
        "MyNet": lambda: MLPEncoder(4, (8,), "tanh"),
        "MyEncoder": lambda size: MLPEncoder(size, (8,), "tanh"),
        "MyVectorEnv": lambda num_envs: gym.make_vec("CartPole-v1", num_envs),
    }
    for block in python_blocks(page):
        exec(block, names)


def make_repository(folder: Path) -> None:
    """Make a git checkout of two commits of a folder."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for words in (
        ["init", "-q", "-b", "main"],
        ["add", "."],
        ["commit", "-qm", "1"],
        ["commit", "-qm2", "--allow-empty"],
    ):
        subprocess.run([*git, *words.split()], cwd=folder, check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "page"), COMMANDS)
def test_a_command_runs(own, command, page):
    """As it stands, but for a budget of a moment; runs of the names that it uses are there."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(own)])}
    _, *words = shlex.split(command)
    skip_without_its_package(words)
    is_train = words[0] == "train"
    read = [word for before, word in pairwise(words) if not is_train or before in READS]
    for run_dir in {word for word in read if word.startswith("runs/")}:
        fastac.train("CartPole-v1", run_dir=run_dir, num_envs=4, total_env_steps=512, eval_episodes=1)
    words += ["--total-env-steps", "2048", "--eval-episodes", "1"] if words[0] in ("train", "sweep") else []
    words += ["--trials", "1", "--seeds-per-trial", "1", "--confirm-seeds", "0"] if words[0] == "sweep" else []
    if "--storage" in words:
        words[words.index("--storage") + 1] = f"sqlite:///{own / 'shared.db'}"
    words += ["--seconds", "0.1"] if words[0] in ("tune", "doctor") else []
    if words[0] == "gate":
        make_repository(own)
        words = [*["HEAD" if word == "$BASE" else word for word in words], "--quick"]
    done = subprocess.run([sys.executable, "-m", "fastac", *words], env=environment, capture_output=True, text=True)
    is_over = words[0] == "resume" and "complete" in done.stderr  # a run of the whole budget, which it says
    is_over = is_over or (words[0] == "gate" and done.returncode == 1 and "FAILED" in done.stdout)  # on a busy machine
    assert done.returncode == 0 or is_over, (page, done.stderr)
