"""Holds the repository to its layout, and the pinned versions to the declared requirements."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fastac.install import INSTALL, Extra

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {"fastac", "benchmarks", "tests", "pyproject.toml", "README.md", "Makefile", "LICENSE"}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_top_level_holds_only_what_belongs_there():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    top_level = {line.split("/")[0] for line in tracked.splitlines()}
    assert {name for name in top_level if not name.startswith(".")} <= TOP_LEVEL


def test_every_requirement_is_pinned_to_a_version_it_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    requirements = [Requirement(line) for group in [project["dependencies"], *extras] for line in group]
    lines = (ROOT / ".constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    for requirement in requirements:
        if requirement.name != project["name"]:
            assert pinned.get(canonicalize_name(requirement.name), "none") in requirement.specifier, requirement


def declared(extra):
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    own = {line for line in lines if not line.startswith("fastac[")}
    others = [name for line in lines for name in re.findall(r"[\w-]+", line.removeprefix("fastac")) if line not in own]
    return own.union(*map(declared, others))


@pytest.mark.parametrize("extra", get_args(Extra))
def test_what_installs_an_extra_is_what_it_declares(extra):
    assert set(re.findall(r"'(.+?)'", INSTALL[extra])) == declared(extra)


# Elsewhere than in a clone, or with a URL, pip would fetch the project that has this name on the index.
FETCHES_A_STRANGER = re.compile(r"pip3? install (?!.*fastac(\[[^]]*\])? @)[^`\n]*\bfastac\b")


@pytest.mark.parametrize("text", ["pip install fastac", "pip install 'fastac[atari]'", "pip install -U fastac[plot]"])
def test_a_line_that_fetches_another_project_is_seen(text):
    assert FETCHES_A_STRANGER.search(text)
    assert not FETCHES_A_STRANGER.search("pip install 'fastac[atari] @ git+https://host/fastac'")
    assert not FETCHES_A_STRANGER.search("pip install -e '.[atari]'")


def test_no_page_or_message_fetches_another_project_of_the_name():
    places = [ROOT / "README.md", ROOT / "Makefile"]
    places += [
        path for room in ("fastac", "benchmarks") for kind in ("py", "md") for path in (ROOT / room).rglob(f"*.{kind}")
    ]
    found = {path: FETCHES_A_STRANGER.search(path.read_text()) for path in places}
    assert len(found) > 50
    assert not [f"{path}: {match[0]}" for path, match in found.items() if match]


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY:(.*)$", makefile, re.M)[1].split()) - {"always"}
    assert phony == set(re.findall(r"^([a-z-]+):.* ## \S", makefile, re.M))


AS_ON_WINDOWS = """
import importlib, multiprocessing.reduction, os, pkgutil, sys
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
del multiprocessing.reduction.DupFd, os.sched_getaffinity, os.sched_yield
import fastac
for module in pkgutil.walk_packages(fastac.__path__, "fastac."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert fastac.runs.provenance.peak_rss_mb() is None
"""


def test_modules_that_only_unix_has_are_not_needed_to_import_fastac():
    subprocess.run([sys.executable, "-c", AS_ON_WINDOWS], cwd=ROOT, check=True)
