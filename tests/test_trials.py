"""Trials: results are kept as they come, cores are shared out, and what fails is told at the end."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from fastac.contract import WorkerFailure
from fastac.cpu import count_cores
from fastac.processes import was_sent
from fastac.trials import Standing, Trial, consult, run_plan, run_trials

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


class Counting:
    """A plan of trials that count up, and are told to end at a number."""

    def __init__(self, trials, most):
        self.waiting, self.most = list(trials), most
        self.heard, self.kept, self.failed = [], {}, {}

    def next(self):
        return self.waiting.pop(0) if self.waiting else None

    def hear(self, trial, message):
        self.heard.append((trial.name, message))
        return message < self.most

    def keep(self, trial, result, wall_s):
        self.kept[trial.name] = result
        return f"{trial.name} is over"

    def fail(self, trial, error):
        self.failed[trial.name] = str(error)
        return ""

    def tell(self, running):
        return Standing(len(self.kept) + len(self.failed), 3)


def count_up(to):
    for number in range(to):
        if not consult(number):
            return f"stopped at {number}"
    return "done"


def test_a_plan_hears_its_trials_and_may_end_them(capsys):
    plan = Counting([Trial("long", partial(count_up, 9)), Trial("short", partial(count_up, 2))], most=3)
    assert run_plan(plan, PRELOAD) is None
    assert plan.kept == {"long": "stopped at 3", "short": "done"}
    assert [number for name, number in plan.heard if name == "long"] == [0, 1, 2, 3]
    assert sorted(capsys.readouterr().err.splitlines())[:1] == ["0 of 3 trials are there"]


def test_a_plan_goes_on_after_a_failure_and_may_be_silent(capsys):
    plan = Counting([Trial("a", partial(fail, 1)), Trial("b", partial(square, 2))], most=1)
    assert run_plan(plan, PRELOAD, is_shown=False) is None
    assert plan.kept == {"b": 4} and plan.failed == {"a": "a: raised RuntimeError: no 1"}
    assert capsys.readouterr().err == ""


def wait_for_the_end(folder):
    (folder / "here").touch()
    while consult(0):
        time.sleep(0.01)
    (folder / "ended").touch()


class Stopping(Counting):
    """Sends this process a signal as soon as a trial runs."""

    def hear(self, trial, message):
        if not self.heard:
            os.kill(os.getpid(), signal.SIGINT)
        return super().hear(trial, message)


def test_after_a_signal_trials_have_time_to_end_and_nothing_is_kept(tmp_path):
    plan = Stopping([Trial("a", partial(wait_for_the_end, tmp_path)), Trial("b", partial(count_up, 1))], most=1)
    plan.waiting = plan.waiting[:1]
    assert run_plan(plan, PRELOAD, grace_s=60.0, is_shown=False) == signal.SIGINT
    assert (tmp_path / "ended").exists() and plan.kept == {}


def test_outside_of_a_trial_nobody_ends_it():
    assert consult("whatever")


def test_no_trial_is_asked_for_before_there_is_a_core(monkeypatch):
    monkeypatch.setattr("fastac.trials.count_cores", lambda: 1)
    plan = Counting([Trial(str(n), partial(count_up, 1)) for n in range(3)], most=1)
    begun = []
    ask = plan.next
    plan.next = lambda: begun.append(len(plan.kept)) or ask()
    assert run_plan(plan, PRELOAD, is_shown=False) is None
    assert begun == [0, 1, 2, 3]  # each after the one before it is done


def test_a_trial_sees_only_the_cores_that_it_has(monkeypatch):
    monkeypatch.setattr("fastac.trials.count_cores", lambda: 2)
    kept = collect([Trial("one", count_cores), Trial("all", count_cores, 99)])
    assert kept[0][0] == 1 and kept[1][0] == count_cores()
