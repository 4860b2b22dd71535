"""The search, driven by hand: no process, no training; and continued after a kill."""

from __future__ import annotations

import optuna
import pytest

from fastac.config import Config
from fastac.contract import EnvFailure, NonFiniteError
from fastac.studies.search import Findings, Problem, Search, make_pruner, trial_config
from fastac.studies.spaces import Dimension
from fastac.studies.training import Rung

SPACE = (
    Dimension("learning_rate", "log-float", 1e-4, 1e-2),
    Dimension("gamma", "categorical", choices=(0.9, 0.99)),
)


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def problem(tmp_path):
    config = trial_config(Config().replace(total_env_steps=2_000, workers=1, seed=7), {"checkpoint_every"})
    return Problem(config, SPACE, "final", 2, "median", tmp_path)


def make_study(problem, storage=None):
    pruner = make_pruner(problem.pruner)
    return optuna.create_study(
        storage=storage, study_name="s", direction="maximize", load_if_exists=True, pruner=pruner
    )


def tasks_of(trial):
    return trial.work.args[0]


def score_of(trial):
    optim = tasks_of(trial)[0].config.optim
    return -abs(optim.learning_rate - 2e-3)


def params_of(study):
    return [trial.params for trial in study.get_trials() if trial.state != optuna.trial.TrialState.FAIL]


def test_trials_of_a_setting_have_its_seeds_and_folders(problem):
    search = Search(problem, make_study(problem), 10, None)
    first, second = search.next(), search.next()
    assert [task.config.run.seed for task in tasks_of(first)] == [7, 8]
    assert [task.run_dir.relative_to(problem.directory).as_posix() for task in tasks_of(second)] == [
        "trials/0001/seed7",
        "trials/0001/seed8",
    ]
    assert len({task.config.replace(seed=0) for task in tasks_of(first)}) == 1
    assert tasks_of(first)[0].config.run.eval_every == 100  # a twentieth


def test_the_mean_over_seeds_counts(problem):
    study = make_study(problem)
    search = Search(problem, study, 2, None)
    assert search.keep(search.next(), [1.0, 4.0], 0.1) == "trial 0 is the best so far: 2.5"
    assert search.keep(search.next(), [0.0, 4.0], 0.1) == ""
    assert [trial.value for trial in study.get_trials()] == [2.5, 2.0]
    assert search.next() is None
    assert search.tell([]).text == "best 2.5" and search.tell([]).done == 2


def test_a_bad_trial_is_pruned(problem):
    study = make_study(problem)
    search = Search(problem, study, 9, None)
    for value in range(6):  # the median needs five
        trial = search.next()
        assert all(search.hear(trial, Rung(number, 10.0 + value)) for number in range(1, 10))
        search.keep(trial, [10.0 + value] * 2, 0.1)
    trial = search.next()
    assert search.hear(trial, Rung(3, 0.0))  # the first fifth says little
    assert not search.hear(trial, Rung(4, 0.0))
    assert search.keep(trial, None, 0.1) == ""
    found = Findings.read(study)
    assert (len(found.completed), found.num_pruned, found.num_failed) == (6, 1, 0)
    assert "1 pruned" in search.tell([]).text


def test_halving_ends_three_quarters(problem):
    from dataclasses import replace

    search = Search(replace(problem, pruner="halving"), make_study(replace(problem, pruner="halving")), 9, None)
    goes_on = []
    for value in (8.0, 7.0, 6.0, 5.0, 4.0):
        trial = search.next()
        goes_on.append(search.hear(trial, Rung(4, value)))
        search.keep(trial, [value] * 2 if goes_on[-1] else None, 0.1)
    assert goes_on[0] and not any(goes_on[1:])


def test_failures_are_counted_and_not_worse_than_a_crash(problem):
    study = make_study(problem)
    search = Search(problem, study, 10, None)
    search.keep(search.next(), [1.0, 1.0], 0.1)
    assert search.fail(search.next(), NonFiniteError("the loss is nan")) == "failed: the loss is nan"
    search.fail(search.next(), EnvFailure("it broke"))
    states = [trial.state.name for trial in study.get_trials()]
    assert states == ["COMPLETE", "PRUNED", "FAIL"]  # the sampler learns from the second, not from the third
    found = Findings.read(study)
    assert (found.num_failed, found.num_pruned, found.num_begun) == (2, 0, 3)
    assert search.tell([]).text == "best 1.0, 2 failed"


def test_a_combination_that_does_not_work_is_a_failed_trial(problem):
    from dataclasses import replace

    study = make_study(problem)
    search = Search(replace(problem, space=(Dimension("gamma", "float", 0.5, 2.0),)), study, 30, None)
    values = []
    while (trial := search.next()) is not None:
        values.append(tasks_of(trial)[0].config.algo.gamma)
        search.keep(trial, [1.0, 1.0], 0.1)
    found = Findings.read(study)
    assert 0 < len(values) < 30 and all(value <= 1.0 for value in values)
    assert found.num_failed == 30 - len(values) and found.num_ended == 30


def test_if_all_of_the_first_fail_the_sweep_ends(problem):
    search = Search(problem, make_study(problem), 100, None)
    with pytest.raises(EnvFailure, match="the first 5 trials failed, the last of them it broke"):
        for _ in range(10):
            search.fail(search.next(), EnvFailure("it broke"))


def test_a_killed_sweep_goes_on_without_loss(problem, tmp_path):
    """As by kill -9: one trial is done, one in progress, and nobody tells the study."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    search = Search(problem, make_study(problem, url), 3, None)
    search.keep(search.next(), [3.0, 3.0], 0.1)
    lost = search.next()
    search.hear(lost, Rung(1, 2.0))
    study = make_study(problem, url)
    again = Search(problem, study, 3, None)
    assert again.tell([]).done == 1
    taken = again.next()
    assert tasks_of(taken) != tasks_of(lost)  # another name
    assert [task.run_dir for task in tasks_of(taken)] == [task.run_dir for task in tasks_of(lost)]
    assert [task.config for task in tasks_of(taken)] == [task.config for task in tasks_of(lost)]
    again.keep(taken, [4.0, 4.0], 0.1)
    again.keep(again.next(), [1.0, 1.0], 0.1)
    assert again.next() is None
    found = Findings.read(study)
    assert [trial.value for trial in found.completed] == [4.0, 3.0, 1.0]
    assert found.num_ended == 3 and found.num_failed == 0


def test_what_was_not_yet_drawn_is_not_queued_again(problem):
    study = make_study(problem)
    asked = study.ask()
    asked.set_user_attr("place", "here")
    search = Search(problem, study, 1, None)
    assert search.next() is not None and len(study.get_trials()) == 2


def test_a_sweep_in_two_parts_draws_what_one_in_one_part_draws(problem, tmp_path):
    def run(search, count):
        for _ in range(count):
            trial = search.next()
            search.keep(trial, [score_of(trial)] * 2, 0.1)

    whole = make_study(problem)
    run(Search(problem, whole, 14, None), 14)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    search = Search(problem, make_study(problem, url), 14, None)
    run(search, 12)
    search.next()  # killed in progress
    parts = make_study(problem, url)
    run(Search(problem, parts, 14, None), 2)
    assert params_of(parts) == params_of(whole)
    assert len({tuple(params.items()) for params in params_of(whole)}) == 14


def test_minutes_end_the_search_and_count_over_parts(problem):
    study = make_study(problem)
    search = Search(problem, study, 10, 1.0)
    trial = search.next()
    search.keep(trial, [1.0, 1.0], 0.1)
    lost = search.next()
    study.set_user_attr("spent_s here", 61.0)
    over = Search(problem, study, 10, 1.0)
    assert over.is_over and over.next() is None
    more = Search(problem, study, 10, 2.0)
    assert not more.is_over and tasks_of(more.next())[0].config == tasks_of(lost)[0].config


def test_a_trial_that_the_minutes_end_is_no_result(problem):
    study = make_study(problem)
    search = Search(problem, study, 10, None)
    assert search.keep(search.next(), None, 0.1) == ""
    assert [trial.state.name for trial in study.get_trials()] == ["RUNNING"]


def test_machines_that_share_a_study_leave_each_others_trials_alone(problem, tmp_path):
    from dataclasses import replace

    shared = replace(problem, has_shared_storage=True)
    study = make_study(problem)
    here = Search(shared, study, 10, None)
    mine = here.next()
    there = Search(replace(shared, directory=tmp_path / "other"), study, 10, None)
    other = there.next()
    assert tasks_of(mine)[0].config != tasks_of(other)[0].config
    assert [trial.state.name for trial in study.get_trials()] == ["RUNNING", "RUNNING"]


def test_of_ended_trials_only_the_evaluations_stay(problem):
    search = Search(problem, make_study(problem), 10, None)
    trial = search.next()
    run_dir = tasks_of(trial)[0].run_dir
    (run_dir / "checkpoints" / "step-1").mkdir(parents=True)
    for name in ("evaluations.jsonl", "progress.jsonl"):
        (run_dir / name).touch()
    search.keep(trial, [1.0, 1.0], 0.1)
    assert [path.name for path in run_dir.iterdir()] == ["evaluations.jsonl"]
