"""Holds the imports of fastac/ to the table of rooms, and the copy of that table in fastac/README.md to this one."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "fastac").rglob("*.py"))

# Each room, and the rooms that it may import besides itself, all of them above it.
TABLE = {
    "text": "",
    "garbage": "",
    "install": "",
    "system": "",
    "cpu": "system",
    "memory": "",
    "torchrun": "system",
    "shared_memory": "system memory",
    "contract": "",
    "config": "",
    "kernels": "",
    "presets": "config",
    "fork_server": "",
    "pickling": "",
    "processes": "system contract pickling",
    "rollout": "memory contract kernels",
    "envs": "install cpu shared_memory contract config kernels pickling processes",
    "models": "contract config kernels",
    "learning": "memory contract config kernels rollout models",
    "workers": "system torchrun memory shared_memory contract config pickling processes rollout models learning",
    "build": "cpu shared_memory contract config kernels presets processes rollout envs models learning workers",
    "runs": (
        "install system torchrun text memory contract config kernels pickling processes rollout envs models learning "
        "workers build"
    ),
    "tools": "text install cpu system memory contract config pickling rollout envs models learning runs build",
    "api": "torchrun text contract config pickling envs models workers build runs tools",
    "trials": "system cpu pickling processes",
    "studies": "torchrun text install contract config pickling processes build runs tools api trials",
    "cli": "system torchrun text garbage cpu contract config presets processes build runs tools api studies",
}
MAY_IMPORT = {room: set(names.split()) for room, names in TABLE.items()}
# The two doors are no rooms: `python -m fastac` opens the command line, and the public face may show anything.
DOORS: dict[str, set[str]] = {"__main__": {"cli"}, "__init__": set(MAY_IMPORT) - {"cli"}}

# Unpickling runs code from the file. What fastac saves is safetensors and JSON, and nothing else.
PICKLING = {"pickle", "cloudpickle", "dill", "torch.load", "torch.save", "allow_pickle"}
# These hand factories to a worker process of their own, in memory: no file is involved.
TO_WORKERS = {Path("fastac/pickling.py")}


def imported(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """Yield the line and absolute dotted name of every import, also those inside functions and `if`s."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - (node.level - 1)] if node.level else []
            for alias in node.names:
                yield node.lineno, ".".join([*above, *filter(None, [node.module]), alias.name])


def room_errors(source: str, path: Path) -> list[str]:
    """Say which imports of the module at `path` (from the repository's root) the table does not allow."""
    room = path.parts[1].removesuffix(".py")
    allowed = MAY_IMPORT | DOORS
    if room not in allowed:
        return [f"{path}: {room!r} is not a room; add it to TABLE and to fastac/README.md, or move the module."]
    errors = []
    for line, name in imported(ast.parse(source), list(path.parent.parts)):
        if name.split(".")[0] != "fastac" or name == "fastac.__version__":
            continue
        target = name.removeprefix("fastac").strip(".").split(".")[0]  # a room, or a name from the public face
        if target not in MAY_IMPORT:
            errors.append(f"{path}:{line}: imports {name}, which is in no room; import it from the room that has it.")
        elif target != room and target not in allowed[room]:
            errors.append(f"{path}:{line}: {room} may not import {target} (it imports {name}).")
    return errors


def pickling_errors(source: str, path: Path) -> list[str]:
    """Say where a module pickles, or lets torch or numpy do it."""
    tree = ast.parse(source)
    used = list(imported(tree, list(path.parent.parts)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used.append((node.lineno, ast.unparse(node)))
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            used.append((node.value.lineno, "allow_pickle"))
    banned = PICKLING - {"pickle"} if path in TO_WORKERS else PICKLING
    return [
        f"{path}:{line}: uses {name}; save arrays with safetensors and the rest as JSON."
        for line, name in used
        if name in banned or name.split(".")[0] in banned
    ]


def test_data_flows_one_way():
    above: set[str] = set()
    for room, imports in MAY_IMPORT.items():
        assert imports <= above, f"{room} may import {imports - above}, which is not above it"
        above.add(room)


@pytest.mark.parametrize("path", [m.relative_to(ROOT) for m in MODULES], ids=str)
def test_module_keeps_to_its_room(path):
    errors = room_errors((ROOT / path).read_text(), path)
    assert not errors, "\n".join(errors)


@pytest.mark.parametrize("path", [m.relative_to(ROOT) for m in MODULES], ids=str)
def test_module_does_not_pickle(path):
    errors = pickling_errors((ROOT / path).read_text(), path)
    assert not errors, "\n".join(errors)


# The checks themselves: what they must see, and what they must let pass.


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("learning/losses.py", "import fastac.envs"),
        ("learning/losses.py", "from fastac import envs"),
        ("learning/losses.py", "from .. import envs"),
        ("learning/losses.py", "from ..envs import make"),
        ("kernels/gae.py", "from ..envs.probe import Probe"),
        ("kernels/__init__.py", "from .. import envs"),
        ("learning/losses.py", "def f():\n    import fastac.envs.probe as p"),
        ("learning/losses.py", "if TYPE_CHECKING:\n    from fastac.envs import VecEnv"),
        ("run.py", "from fastac.cli import main"),
        ("__init__.py", "from fastac.cli import main"),
        ("__main__.py", "from fastac.runs import run"),
        ("learning/losses.py", "from fastac import Config"),
        ("learning/losses.py", "import fastac"),
        ("utils.py", ""),
    ],
)
def test_a_forbidden_import_is_seen(path, source):
    assert room_errors(source, Path("fastac", path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("learning/learner.py", "import torch\nfrom fastac.kernels import gae\nfrom ..contract import Act"),
        (
            "kernels/gae.py",
            "from . import kernel\nfrom .kernel import Kernel\nfrom fastac.kernels.kernel import Kernel",
        ),
        ("__main__.py", "from fastac.cli import main"),
        ("__init__.py", "def __getattr__(name):\n    from fastac.runs import train"),
    ],
)
def test_an_allowed_import_passes(path, source):
    assert not room_errors(source, Path("fastac", path))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import dumps",
        "def f():\n    import dill as d",
        "torch.load(path)",
        "from torch import save",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_pickling_is_seen(source):
    assert pickling_errors(source, Path("fastac/runs/checkpoint.py"))


def readme_table() -> dict[str, set[str]]:
    """Read `room | purpose | may import` in the page about the architecture."""
    section = re.search(r"^# Architecture\n(.*?)(?=^#|\Z)", (ROOT / "fastac/README.md").read_text(), re.M | re.S)
    assert section, 'fastac/README.md has no heading "Architecture"'
    lines = [line for line in section[1].splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows and rows[0] == ["room", "purpose", "may import"], "fastac/README.md has no table of rooms"
    table: dict[str, set[str]] = {}
    for room, _, may_import in rows[2:]:
        above = set(table) if "all above" in may_import else set()
        table[room.strip("`/").removesuffix(".py")] = above | set(re.findall(r"`(\w+)(?:\.py|/)?`", may_import))
    return table


def test_readme_has_the_same_table():
    assert readme_table() == MAY_IMPORT
