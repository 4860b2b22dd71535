"""Which revision the gate compares with, and how the trees are exported."""

import os
import subprocess

import pytest

from fastac.tools.gate import trees
from fastac.tools.gate.trees import InputError, NoBaseError, resolve_base


class Repo:
    def __init__(self, root):
        self.root = root
        root.mkdir()
        self.git("init", "-q", "-b", "main")

    def git(self, *words):
        who = {f"GIT_{role}_{key}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
        command = ["git", "-C", str(self.root), "-c", "commit.gpgsign=false", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | who).stdout.strip()

    def write(self, text, name="code.py"):
        (self.root / "fastac").mkdir(exist_ok=True)
        (self.root / "fastac" / name).write_text(text)

    def commit(self, text):
        self.write(text)
        self.git("add", ".")
        self.git("commit", "-q", "-m", text)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repo(tmp_path):
    return Repo(tmp_path / "repo")


def test_on_main_the_base_is_the_commit_before(repo):
    before = repo.commit("a")
    repo.commit("b")
    assert resolve_base(repo.root).commit == before


def test_on_main_uncommitted_changes_are_compared_with_their_commit(repo):
    repo.commit("a")
    head = repo.commit("b")
    repo.write("c")
    assert resolve_base(repo.root).commit == head


def test_on_main_changes_outside_what_is_watched_do_not_count(repo):
    before = repo.commit("a")
    repo.commit("b")
    (repo.root / "README.md").write_text("")
    assert resolve_base(repo.root, watched="fastac").commit == before


@pytest.mark.parametrize("dirty", [False, True])
def test_on_a_branch_the_base_is_where_it_left_main(repo, dirty):
    fork = repo.commit("a")
    repo.git("checkout", "-q", "-b", "branch")
    repo.commit("b")
    repo.commit("c")
    repo.git("checkout", "-q", "main")
    repo.commit("d")
    repo.git("checkout", "-q", "branch")
    if dirty:
        repo.write("e")
    assert resolve_base(repo.root).commit == fork


def test_a_branch_without_commits_and_a_detached_head_are_like_main(repo):
    before = repo.commit("a")
    repo.commit("b")
    repo.git("checkout", "-q", "-b", "branch")
    assert resolve_base(repo.root).commit == before
    repo.git("checkout", "-q", "--detach")
    assert resolve_base(repo.root).commit == before


def test_the_remote_main_counts_where_there_is_no_local_one(repo, tmp_path):
    fork = repo.commit("a")
    repo.git("checkout", "-q", "-b", "branch")
    repo.commit("b")
    repo.git("clone", "-q", "--branch", "branch", ".", str(tmp_path / "clone"))
    assert resolve_base(tmp_path / "clone").commit == fork


def test_a_named_revision_overrides(repo):
    first = repo.commit("a")
    repo.git("tag", "old")
    repo.commit("b")
    repo.commit("c")
    assert resolve_base(repo.root, "old").commit == resolve_base(repo.root, "HEAD~2").commit == first


@pytest.mark.parametrize("revision", ["nowhere", "HEAD~1", "--all", ""])
def test_a_revision_that_is_not_there_is_bad_input(repo, revision):
    repo.commit("a")
    with pytest.raises(InputError, match="which names no commit"):
        resolve_base(repo.root, revision)


def test_one_commit_has_no_base(repo):
    head = repo.commit("a")
    with pytest.raises(NoBaseError, match=r"no commit before HEAD.*--unshallow.*name a base"):
        resolve_base(repo.root)
    repo.write("b")
    assert resolve_base(repo.root).commit == head


def test_a_shallow_clone_has_no_base(repo, tmp_path):
    repo.commit("a")
    repo.commit("b")
    repo.git("clone", "-q", "--depth", "1", f"file://{repo.root}", str(tmp_path / "clone"))
    with pytest.raises(NoBaseError, match="--unshallow"):
        resolve_base(tmp_path / "clone")


def test_a_branch_that_shares_nothing_with_main_has_no_base(repo):
    repo.commit("a")
    repo.git("checkout", "-q", "--orphan", "branch")
    repo.commit("b")
    with pytest.raises(NoBaseError, match="does not reach back"):
        resolve_base(repo.root)


def test_no_checkout_has_no_base(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(NoBaseError, match="no git checkout"):
        resolve_base(tmp_path)


# The trees


def read(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_revision_is_exported_as_it_was_and_the_working_tree_as_it_is(repo, tmp_path):
    repo.write("mine", "gone.py")
    old = repo.commit("old")
    repo.commit("new")
    repo.write("changed")
    repo.write("untracked", "more.py")
    repo.write("compiled", "code.pyc")
    (repo.root / "fastac" / "gone.py").unlink()
    (repo.root / ".gitignore").write_text("*.pyc\n")
    trees.export_revision(repo.root, old, tmp_path / "old")
    trees.export_working_tree(repo.root, tmp_path / "now")
    assert read(tmp_path / "old") == {"fastac/code.py": "old", "fastac/gone.py": "mine"}
    now = {"fastac/code.py": "changed", "fastac/more.py": "untracked"}
    assert read(tmp_path / "now") == {**now, ".gitignore": "*.pyc\n"}
    assert read(repo.root / "fastac")["code.py"] == "changed"  # exporting checks nothing out
    trees.export_working_tree(repo.root, tmp_path / "part", ["fastac"])
    assert read(tmp_path / "part") == now


def test_a_revision_without_the_folder_is_bad_input(repo, tmp_path):
    (repo.root / "README.md").write_text("")
    repo.git("add", ".")
    repo.git("commit", "-q", "-m", "no package")
    with pytest.raises(InputError, match="holds no fastac"):
        trees.export_revision(repo.root, "HEAD", tmp_path, ["fastac"])


def test_compiled_kernels_go_along_where_there_are_kernels(tmp_path):
    for name in ("kernels/__pycache__/gae.nbi", "kernels/__pycache__/gae.pyc", "kernels/new/__pycache__/x.nbc"):
        path = tmp_path / "root" / "fastac" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "tree" / "fastac" / "kernels").mkdir(parents=True)
    trees.copy_compiled(tmp_path / "root", tmp_path / "tree")
    assert set(read(tmp_path / "tree")) == {"fastac/kernels/__pycache__/gae.nbi"}


def test_a_checkout_is_found_from_within(repo, tmp_path, monkeypatch):
    repo.commit("a")
    assert trees.find_root(repo.root / "fastac") == repo.root.resolve()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(InputError, match="is in no git checkout"):
        trees.find_root(tmp_path)


def test_changes_are_seen_new_files_too(repo):
    repo.commit("a")
    assert not trees.has_uncommitted(repo.root)
    repo.write("b", "new.py")
    assert trees.has_uncommitted(repo.root)
