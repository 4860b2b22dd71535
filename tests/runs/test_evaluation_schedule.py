"""When evaluations come, and what they cost."""

from __future__ import annotations

import pytest

from fastac.config import Config, ConfigValue
from fastac.presets import PRESETS
from fastac.runs.evaluation_schedule import EvaluationSchedule
from fastac.runs.evaluator import Request
from fastac.runs.state import Progress

PROBE = "probes:fastac/ConstantReward-v0"  # not batched by itself


def play_run(config: Config, length: float) -> tuple[list[int], float, int]:
    """Return when a run evaluates, if an episode has so many steps, what that costs, and how many end it."""
    progress = Progress()
    schedule, at, rows = EvaluationSchedule(config, None, progress), [], config.batch_size
    for env_steps in range(rows, config.run.total_env_steps + rows, rows):
        if schedule.is_due(env_steps):
            request = schedule.request(env_steps, int(length))
            schedule.note(request, calls=int(length), mean_length=length, episodes=request.episodes)
            at.append(env_steps)
    return at, progress.eval_spent, schedule.request_last(env_steps, length, int(length)).episodes


def configure(env_id: str, **settings: ConfigValue) -> Config:
    return Config().replace(**{"env_id": env_id, "num_envs": 16, "num_steps": 16, **settings})


@pytest.mark.parametrize("length", [10.0, 200.0, 1000.0])
@pytest.mark.parametrize("total", [20_000, 500_000, 3_000_000])
@pytest.mark.parametrize("env_id", ["CartPole-v1", PROBE])
def test_evaluations_in_between_cost_a_twentieth_of_the_steps(env_id: str, total: int, length: float):
    at, spent, _ = play_run(configure(env_id, total_env_steps=total), length)
    latest = spent / len(at) if at else 0.0  # what is spent beyond the share is one evaluation's, and is waited for
    assert spent - latest <= 0.05 * total
    assert len(at) <= 20
    if length <= 200.0 and total >= 500_000:
        assert len(at) >= 5


@pytest.mark.parametrize(("length", "total", "few"), [(10.0, 500_000, 5), (1000.0, 500_000, 5), (1000.0, 20_000, 1)])
def test_the_last_evaluation_goes_on_to_100_episodes_while_a_fiftieth_of_the_steps_lasts(length, total, few):
    request = last_request(configure(PROBE, total_env_steps=total), length)
    assert (request.episodes, request.most, request.budget) == (few, 100, total // 50)
    batched = last_request(configure("CartPole-v1", total_env_steps=total), length)
    assert batched.episodes == 100  # a batch costs no more


def last_request(config: Config, length: float) -> Request:
    return EvaluationSchedule(config, None, Progress()).request_last(config.run.total_env_steps, length, int(length))


def test_a_target_is_looked_for_more_often():
    settings = {"total_env_steps": 500_000}
    usual, _, _ = play_run(configure("CartPole-v1", **settings), 200.0)
    until, _, _ = play_run(configure("CartPole-v1", **settings, until_return=475.0), 200.0)
    assert until[0] <= 5_000 + 256
    assert len([at for at in until if at <= 100_000]) >= 6 * len([at for at in usual if at <= 100_000])


@pytest.mark.parametrize("env_id", ["CartPole-v1", PROBE])
def test_a_target_that_is_not_reached_soon_is_looked_for_at_a_twelfth_of_the_steps(env_id: str):
    total, length = 5_000_000, 500.0
    at, spent, _ = play_run(configure(env_id, total_env_steps=total, until_return=475.0), length)
    assert spent - spent / len(at) <= 0.08 * total + (50_000 if env_id == "CartPole-v1" else 0)


def test_a3c_evaluates_as_often_as_its_workers_wait_meanwhile():
    config = configure("CartPole-v1", total_env_steps=500_000)
    assert play_run(config.replace(algo="a3c"), 500.0) == play_run(config, 500.0)


def test_what_is_asked_for_is_what_comes():
    config = configure(PROBE, total_env_steps=10_240, eval_every=1000, eval_episodes=7)
    at, _, last = play_run(config, 1000.0)
    # After the first rollout that passes a multiple of 1000; after the last rollout comes the last evaluation.
    assert at == list(range(1024, 10_240, 1024))
    assert last == 7
    schedule = EvaluationSchedule(config, None, Progress())
    assert (schedule.request(1, 5).episodes, schedule.request(1, 5).most) == (7, 7)
    assert play_run(config.replace(eval_every=0), 10.0)[0] == []
    assert play_run(config.replace(eval=False), 10.0)[0] == []


def test_a_few_episodes_that_reach_the_target_are_confirmed_over_a_hundred():
    schedule = EvaluationSchedule(configure(PROBE, until_return=1.0), None, Progress())
    request = schedule.request(1000, 500)
    assert (request.episodes, request.most, request.goal) == (5, 100, 1.0)
    pong = configure("ALE/Pong-v5")
    few = [
        EvaluationSchedule(each, None, Progress()).request(1, 5).episodes
        for each in (pong, pong.replace(until_return=1.0))
    ]
    assert few == [5, 20]


def test_a_target_that_is_just_missed_is_looked_for_again_after_as_many_steps():
    config, progress = configure(PROBE, total_env_steps=10**7, until_return=18.0), Progress()
    schedule, missed_at, length = EvaluationSchedule(config, None, progress), 1_000_000, 2000
    request = schedule.request(missed_at, length)
    cost = 8 * 20 * length  # of 8 envs, which an evaluation's 5 episodes are counted as
    schedule.note(request, calls=20 * length, mean_length=length, episodes=100)
    assert not schedule.is_due(missed_at + cost - 1000) and schedule.is_due(missed_at + cost + 100_000)
    few = Progress()
    schedule = EvaluationSchedule(config, None, few)
    schedule.note(request, calls=length, mean_length=length, episodes=5)
    assert few.eval_spent == 8 * length  # as planned: all of it counts


def test_the_cadence_goes_by_steps_and_configuration_alone():
    config = configure("CartPole-v1", total_env_steps=300_000)
    assert play_run(config, 100.0) == play_run(config, 100.0)
    progress = Progress(eval_spent=1e9)
    assert not EvaluationSchedule(config, None, progress).is_due(200_000)  # it is kept where a checkpoint keeps it


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: f"{preset.env_id}-{preset.name}")
def test_every_preset_leaves_the_cadence_to_the_budget(preset):
    run = preset.make().run
    assert (run.eval, run.eval_every, run.eval_episodes) == (True, None, None)
