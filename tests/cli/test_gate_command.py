"""fastac gate, in a repository made up, with packages made up."""

import json
import os
import subprocess

import pytest
from gate_support import write_packages

from fastac.cli import main
from fastac.tools.gate import measure, repository
from fastac.tools.gate.measure import MARGINS, Effort, Measured, Memory
from fastac.tools.gate.report import format_counts, format_measured, to_json
from fastac.tools.gate.statistics import Comparison

ENVS = "def make_env():\n    pass\n"


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """The root of a repository with one commit, to be in; it holds the fake fastac and torch that both sides run."""
    root = write_packages(tmp_path / "repo")
    (root / "mine").mkdir()
    (root / "mine" / "__init__.py").touch()
    (root / "mine" / "envs.py").write_text(ENVS)
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "one"]):
        git(root, *words)
    monkeypatch.chdir(root)
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(measure, "plan_slices", lambda iteration_s: (4, 1))
    monkeypatch.setattr(repository, "QUICK", Effort((2,)))
    return root


def git(root, *words):
    who = {f"GIT_{role}_{key}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    command = ["git", "-C", str(root), "-c", "commit.gpgsign=false", *words]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | who)


def test_it_measures_both_trees_and_writes_the_numbers(repo, capsys, caplog, tmp_path):
    (repo / "mine" / "envs.py").write_text(ENVS + "# more\n")  # the working tree counts as it lies there
    words = ["gate", "--target", "mine.envs:make_env", "--quick", "--json", "numbers.json", "--num-envs", "8"]
    code = main(words)
    told = capsys.readouterr().out
    assert told.endswith("\nPassed.\n" if code == 0 else "\nFAILED.\n")  # how fast this machine is proves nothing
    assert told.startswith("The working tree, with its uncommitted changes, against ")
    progress = [text.partition(",")[0] for text in caplog.messages]
    assert progress == ["measured in 1 of 2 pairs of processes", "measured in 2 of 2 pairs of processes"]
    assert all(f"| mine.envs:make_env: {part} " in told for part in MARGINS)
    assert {"rollout, mine.envs:make_env", "own item() calls"} <= {row[0] for row in cells(told)}
    assert {"mine.envs:make_env: iteration, HEAD / base", "operators"} <= {row["name"] for row in read_numbers(repo)}
    assert set((tmp_path / "log").read_text().split()) == {"base", "head"}


def read_numbers(repo):
    return json.loads((repo / "numbers.json").read_text())


def bad(capsys, *words):
    assert main(["gate", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("fastac: ")
    return line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "gate needs your environment: fastac gate --target mypackage.envs:make_env"),
        (["--target", "CartPole-v1"], "target is 'CartPole-v1', expected module:name of this repository's code"),
        (["--target", "mine.envs:make_env", "--base", "nowhere"], "base is 'nowhere', which names no commit"),
        (["--target", "mine.envs:make_env"], "this clone holds no commit before HEAD"),
        (["--target", "nothing.envs:make_env", "--base", "HEAD"], "No module named 'nothing'."),
        (["--target", "json:loads", "--base", "HEAD"], "json is imported from"),
        (["--target", "mine.envs:make_env", "--base", "HEAD", "--python", "/nowhere"], "which cannot be started"),
        (["--target", "mine.envs:make_env", "--algo", "a3c"], "algo is 'a3c', expected one that trains in one process"),
        (["--target", "mine.envs:make_env", "--workers", "2"], "'--workers' is not an option of fastac gate"),
        (["--target", "mine.envs:make_env", "--num-envs", "0"], "num_envs is 0, expected"),
        (["--target", "mine.envs:make_env", "--json", "no/where.json"], "expected a file in a folder that exists"),
        (["--target", "mine.envs:make_env", "--json-format", "xml"], "'xml' is not known"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(repo, capsys, words, told):
    before = sorted(repo.rglob("*"))
    assert told in bad(capsys, *words)
    assert sorted(repo.rglob("*")) == before


def test_outside_of_a_checkout_is_bad_input(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "is in no git checkout" in bad(capsys, "--target", "mine.envs:make_env")


def test_a_module_that_the_base_lacks_is_bad_input(repo, capsys):
    (repo / "mine" / "late.py").write_text(ENVS)
    line = bad(capsys, "--target", "mine.late:make_env", "--base", "HEAD")
    assert line == (
        "fastac: the base does not run mine.late:make_env: ModuleNotFoundError: No module named 'mine.late'."
    )


def test_a_folder_that_the_base_lacks_is_bad_input(repo, capsys, monkeypatch):
    (repo / "late").mkdir()
    monkeypatch.chdir(repo / "late")
    assert "which has no folder late: name a later" in bad(capsys, "--target", "envs:make_env", "--base", "HEAD")


def test_code_below_src_and_a_subfolder_is_found(repo):
    (repo / "lib" / "src").mkdir(parents=True)
    assert repository._find_paths(repo / "lib") == ["src", "."]
    assert repository._find_paths(repo) == ["."]


# What is said


def comparison(ratio, part="update", half=0.01):
    return Comparison("mine:env", part, 1.0, ratio, ratio, ratio - half, ratio + half, MARGINS[part], 4)


COUNTS = {"operators": 12, "own item() calls": 1}


def measured(ratio=1.0, peak=1000):
    return Measured([comparison(ratio)], [Memory("peak", 1000, peak), Memory("rollout, mine:env", 1000, 1000)])


@pytest.mark.parametrize(
    ("found", "code", "told"),
    [
        (measured(), 0, "Passed."),
        (measured(0.9), 0, "mine:env: update takes 10.0% less than in the base: figures may follow."),
        (measured(1.1), 1, "mine:env: update takes 10.0% more than in the base, margin 2.5%."),
        (measured(peak=2**21), 1, "peak takes 2,097,152 bytes, 1,000 in the base, margin 5%."),
        (Measured([]), 1, "Nothing could be compared, which is a failure too"),
    ],
)
def test_the_exit_code_and_a_sentence_say_what_was_found(monkeypatch, capsys, found, code, told):
    monkeypatch.setattr(repository, "check", lambda *given: repository.Compared(found, COUNTS, COUNTS))
    assert main(["gate", "--target", "mine:env"]) == code
    assert told in capsys.readouterr().out


def test_memory_has_a_margin_and_a_peak_some_noise_too():
    assert not Memory("rollout, a", 1000, 1050).more and Memory("rollout, a", 1000, 1051).more
    assert not Memory("peak", 10**8, 1.05 * 10**8 + 2**20).more and Memory("peak", 10**8, 1.05 * 10**8 + 2**21).more


def test_github_action_benchmark_gets_a_list():
    """As its `customSmallerIsBetter` reads it: name, unit and value, and `range` and `extra` as text."""
    rows = to_json("github", measured(1.1), COUNTS)
    assert all({"name", "unit", "value"} <= set(row) <= {"name", "unit", "value", "range", "extra"} for row in rows)
    assert all(isinstance(row["value"], int | float) for row in rows)
    assert rows[0] == {
        "name": "mine:env: update, HEAD / base",
        "unit": "ratio",
        "value": 1.1,
        "range": "± 0.0100",
        "extra": "base 1000 ms, HEAD 1100 ms, 4 pairs of processes",
    }
    assert {row["name"]: row["value"] for row in rows}["operators"] == 12
    assert len({row["name"] for row in rows}) == len(rows)


def test_bencher_gets_its_metric_format():
    """By benchmark, then by measure of at most 64 characters: `value`, and perhaps `lower_value` and `upper_value`."""
    found = to_json("bencher", measured(1.1), COUNTS)
    metrics = [metric for measures in found.values() for metric in measures.values()]
    assert all({"value"} <= set(metric) <= {"value", "lower_value", "upper_value"} for metric in metrics)
    assert all(len(measure) <= 64 for measures in found.values() for measure in measures)
    ratio = found["mine:env: update"]["head-over-base"]
    assert ratio == {"value": 1.1, "lower_value": 1.09, "upper_value": 1.11}
    assert found["peak"] == {"bytes": {"value": 1000}} and found["own item() calls"] == {"calls": {"value": 1}}


def cells(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]


def test_the_tables_name_both_sides():
    told = format_measured(Measured([comparison(1.1)], skipped={"two": "ValueError: old"}))
    assert "two is not compared, the base does not run it: ValueError: old" in told
    row = ["mine:env: update", "1000.000", "1100.000", "1.100", "1.090 to 1.110", "4", "3.5%", "SLOWER"]
    assert cells(told)[2] == row
    assert cells(format_counts({"operators": 1}, {"operators": 3}))[2] == ["operators", "1", "3", "+2"]
