"""Holds the repository to its layout, and the pinned versions to the declared requirements."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {"fastac", "benchmarks", "tests", "pyproject.toml", "README.md", "Makefile"}


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


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY:(.*)$", makefile, re.M)[1].split()) - {"always"}
    assert phony == set(re.findall(r"^([a-z-]+):.* ## \S", makefile, re.M))
