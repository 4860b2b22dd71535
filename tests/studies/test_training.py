"""What a trial's process does, in this process: it tells how it goes, ends when it is asked to, and goes on."""

from __future__ import annotations

import json

import pytest
from run_support import SMALL

from fastac.config import Config
from fastac.contract import NonFiniteError
from fastac.studies import training
from fastac.studies.curves import read_curve
from fastac.studies.training import Moment, Rung, Task, check_task, is_done, train_run, train_trial

SETTINGS = {**SMALL, "workers": 1, "eval_every": 64, "eval_episodes": 1, "total_env_steps": 256}


def make_task(folder, seed=0, **settings):
    config = Config().replace(**{**SETTINGS, "seed": seed, **settings})
    return Task(f"seed {seed}", config, folder / f"seed{seed}")


@pytest.fixture
def answers(monkeypatch):
    """What is said to the plan; it answers False from the message `end` on."""
    said: list[object] = []

    class Answers:
        end = None

        def __call__(self, message):
            said.append(message)
            return self.end is None or len(said) < self.end

    answer = Answers()
    answer.said = said
    monkeypatch.setattr(training, "consult", answer)
    monkeypatch.setattr(training, "_TELL_S", 0.0)
    return answer


def test_a_run_tells_how_far_it_is(tmp_path, answers):
    task = make_task(tmp_path)
    assert not is_done(task)
    assert train_run(task)
    assert is_done(task)
    assert all(isinstance(message, Moment) for message in answers.said)
    shares = [message.share for message in answers.said]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_a_run_that_is_asked_to_end_is_saved_and_goes_on_to_the_same(tmp_path, answers):
    whole, parts = make_task(tmp_path / "whole"), make_task(tmp_path / "parts")
    train_run(whole)
    answers.said.clear()
    answers.end = 3
    assert not train_run(parts) and not is_done(parts)
    answers.end = None
    assert train_run(parts) and is_done(parts)
    assert read_curve(parts.run_dir).returns.tolist() == read_curve(whole.run_dir).returns.tolist()
    assert read_curve(parts.run_dir).size == 4
    answers.said.clear()
    assert train_run(parts) and answers.said == []  # complete: nothing is trained again


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path, answers):
    task = make_task(tmp_path)
    train_run(task)
    for path in (task.run_dir / "checkpoints").iterdir():
        path.rename(tmp_path / path.name)
    (task.run_dir / "summary.json").unlink()
    assert not is_done(task)
    assert train_run(task) and is_done(task)
    (tmp_path / "seed1" / "checkpoints").mkdir(parents=True)  # killed in its first instant
    assert train_run(make_task(tmp_path, 1))


def test_a_directory_of_other_settings_is_refused(tmp_path, answers):
    train_run(make_task(tmp_path))
    check_task(make_task(tmp_path))
    with pytest.raises(ValueError, match=r"holds a run with gamma 0\.99, and the command says 0\.5"):
        check_task(make_task(tmp_path, gamma=0.5))
    longer = make_task(tmp_path, total_env_steps=320)
    assert not is_done(longer) and train_run(longer) and is_done(longer)


def test_the_seeds_of_a_trial_take_turns(tmp_path, answers):
    tasks = [make_task(tmp_path, seed) for seed in (0, 1)]
    scores = train_trial(tasks, "final")
    assert scores == [read_curve(task.run_dir).returns[-1] for task in tasks]
    rungs = [message for message in answers.said if message is not None]
    assert [rung.number for rung in rungs] == [1, 2, 3]
    for rung in rungs:
        returns = [read_curve(task.run_dir).returns[rung.number - 1] for task in tasks]
        assert rung.score == pytest.approx(sum(returns) / 2)
    alone = make_task(tmp_path / "alone", 1)
    train_run(alone)
    assert read_curve(alone.run_dir).returns.tolist() == read_curve(tasks[1].run_dir).returns.tolist()


def test_a_trial_that_is_ended_goes_on_to_the_same(tmp_path, answers):
    whole = [make_task(tmp_path / "whole", seed) for seed in (0, 1)]
    expected = train_trial(whole, "area")
    rungs = [message for message in answers.said if isinstance(message, Rung)]
    tasks = [make_task(tmp_path / "parts", seed) for seed in (0, 1)]
    answers.end = len(answers.said) + answers.said.index(rungs[1]) + 1
    assert train_trial(tasks, "area") is None
    answers.end = None
    assert train_trial(tasks, "area") == expected


def test_numbers_that_are_not_finite_end_a_trial_by_the_error_that_says_so(tmp_path, answers):
    with pytest.raises(NonFiniteError):
        train_trial([make_task(tmp_path, learning_rate=1e38, max_grad_norm=None, optimizer="rmsprop")], "final")


def test_warnings_are_told_not_printed(tmp_path, answers, capsys):
    with training._telling_warnings():
        training.logging.getLogger("fastac").warning("careful")
    assert answers.said == [training.Warned("careful")]
    assert json.dumps(capsys.readouterr().err) == '""'
