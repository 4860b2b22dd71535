"""Trials: results are kept as they come, cores are shared out, and what fails is told at the end."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from fastac.contract import WorkerFailure
from fastac.processes import was_sent
from fastac.trials import Trial, run_trials

PRELOAD = "fastac.trials"


def square(number):
    return number**2


def fail(number):
    raise RuntimeError(f"no {number}")


def log_span(folder, name):
    began = time.monotonic()
    (folder / f"here-{name}").touch()
    time.sleep(0.2)
    (folder / name).write_text(f"{began} {time.monotonic()}")


def meet(folder, name, other):
    """Return when the other one is there too."""
    (folder / name).touch()
    deadline = time.monotonic() + 60.0
    while not (folder / other).exists():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def collect(trials, **options):
    kept = {}
    assert (
        run_trials(trials, lambda at, result, wall_s: kept.update({at: (result, wall_s)}), PRELOAD, **options) is None
    )
    return kept


def test_results_are_kept_by_place_with_their_seconds(capsys):
    kept = collect([Trial(f"square of {n}", partial(square, n)) for n in (2, 3, 4)], num_done=7)
    assert {at: result for at, (result, _) in kept.items()} == {0: 4, 1: 9, 2: 16}
    assert all(0.0 <= wall_s < 60.0 for _, wall_s in kept.values())
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "7 of 10 trials are there" and len(lines) == 3
    assert sorted(line.partition("]")[0] for line in lines) == ["[10/10", "[8/10", "[9/10"]


def test_trials_of_one_core_run_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr("fastac.trials.count_cores", lambda: 2)
    collect([Trial("a", partial(meet, tmp_path, "a", "b")), Trial("b", partial(meet, tmp_path, "b", "a"))])


def test_one_that_needs_the_machine_has_it_alone_after_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("fastac.trials.count_cores", lambda: 2)
    names = {"whole": 2, "one": 1, "other": 1}
    collect([Trial(name, partial(log_span, tmp_path, name), cores) for name, cores in names.items()])
    spans = {name: tuple(map(float, (tmp_path / name).read_text().split())) for name in names}
    assert spans["whole"][0] >= max(spans["one"][1], spans["other"][1])


def test_what_fails_is_told_after_the_others_are_done():
    kept = {}
    trials = [Trial("a", partial(fail, 1)), Trial("b", partial(square, 2)), Trial("c", partial(os._exit, 3))]
    with pytest.raises(WorkerFailure, match=r"^2 of 3 trials failed, the first of them ") as caught:
        run_trials(trials, lambda at, result, wall_s: kept.update({at: result}), PRELOAD)
    assert kept == {1: 4}
    assert was_sent(caught.value) == ("a: raised RuntimeError: no 1" in str(caught.value))


def test_what_the_caller_fails_at_is_no_failed_trial():
    def keep(at, result, wall_s):
        raise WorkerFailure("no room for it")

    with pytest.raises(WorkerFailure, match=r"^no room for it$"):
        run_trials([Trial("a", partial(square, 1))], keep, PRELOAD)


def test_work_that_cannot_be_sent_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="a is done in another process: define its function"):
        collect([Trial("a", lambda: 1)])


def test_what_a_trial_prints_is_there(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from functools import partial\nfrom fastac.trials import Trial, run_trials\n"
        # Whole lines in one write each, since processes that write to one pipe mix their writes.
        "import sys\ndef say(what):\n    sys.stdout.write(what + '\\n')\n"
        "def work(number):\n    say(f'work {number}')\n    return number\n"
        "if __name__ == '__main__':\n"
        "    trials = [Trial(str(n), partial(work, n)) for n in range(3)]\n"
        "    run_trials(trials, lambda at, result, wall_s: say(f'kept {result}'), 'fastac.trials')\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert sorted(done.stdout.splitlines()) == ["kept 0", "kept 1", "kept 2", "work 0", "work 1", "work 2"], done.stderr


def test_a_trial_that_writes_in_passing_leaves_nothing(tmp_path, monkeypatch):
    kept = collect([Trial("a", leave_something)])
    ((path, _),) = kept.values()
    assert path.parent.name.startswith("fastac-") and not path.parent.exists()


def leave_something() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp())
