"""What experiments measure, by values known otherwise."""

from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.experiments import measures
from benchmarks.experiments.definition import Curve, CurvePlot, ValuePlot
from benchmarks.experiments.definitions import EXPERIMENTS
from benchmarks.experiments.jobs import EXTRAS
from benchmarks.experiments.measures import (
    EpisodeLog,
    Horizons,
    advantage_variances,
    exact_critic,
    gradient_variance,
    learn,
    learn_by_episodes,
)
from fastac.build import Streams, build_envs, build_model
from fastac.build.worker import build_worker
from fastac.config import Config
from fastac.contract import Alone, Phases
from fastac.kernels import compute_gae

CARTPOLE = Config().replace(
    env_id="CartPole-v1",
    num_envs=8,
    num_steps=16,
    hidden_sizes=(8,),
    shared_trunk=False,
    total_env_steps=2_000,
    eval_every=500,
    eval_episodes=3,
)
EPISODES = CARTPOLE.replace(collect="episodes", num_envs=1, num_steps=500, gae_lambda=1.0)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.9, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("num_steps", [5, 128])
def test_with_an_exact_critic_the_variance_is_what_the_formula_says(gae_lambda, num_steps):
    """Within 5 %; at 65,536 rows the ratio's own deviation is 0.8 %."""
    config = CARTPOLE.replace(num_envs=65_536, num_steps=num_steps, gae_lambda=gae_lambda, gamma=0.99, seed=3)
    values = exact_critic(config).values
    assert values["variance_ratio"] == pytest.approx(values["formula"], rel=0.05)
    known = {(5, 0.95): 3.97, (5, 1.0): 4.80, (128, 0.95): 8.66, (128, 1.0): 46.4}  # of the GAE paper's variance
    if (num_steps, gae_lambda) in known:
        assert values["formula"] == pytest.approx(known[num_steps, gae_lambda], rel=2e-3)


def test_an_advantages_variance_is_over_valid_rows_and_beside_that_of_td_errors():
    with torch.no_grad():
        config = CARTPOLE.replace(seed=1)
        envs = build_envs(config.env, Streams.spawn(1).env)
        model = build_model(config.model, envs, 0)
        worker = build_worker(config, [envs], model, measures._Recorder(model), [0], Alone())
        for _ in range(4):  # until episodes have ended
            worker.collect(Phases())
        worker.learn(0.0, Phases())
    rollout = worker.shards[0].rollout
    assert not rollout.valid.all()
    found = advantage_variances(rollout, config.algo.gamma)
    rows = (rollout.reward, rollout.value, rollout.terminated, rollout.truncated, config.algo.gamma)
    (advantage, _), (td_error, _) = (compute_gae(*rows, lam) for lam in (config.algo.gae_lambda, 0.0))
    variance, below = (np.var(x[rollout.valid].numpy(), ddof=1) for x in (advantage, td_error))
    assert found["variance"] == pytest.approx(variance, rel=1e-4)
    assert found["td_variance"] == pytest.approx(below, rel=1e-4)


def test_a_run_is_read_by_steps_and_by_seconds():
    trial = learn(CARTPOLE, threshold=-1.0, at_env_steps=1_200, at_seconds=0.0)
    again = learn(CARTPOLE, threshold=1e9)
    curve = trial.curves["return"]
    assert curve == again.curves["return"] and len(curve.x) == 4
    assert all(0 <= x - due <= 128 for x, due in zip(curve.x, (500, 1_000, 1_500, 2_000), strict=True))
    assert trial.curves["return_by_seconds"].y == curve.y
    assert trial.values["env_steps_to"] == curve.x[0] and again.values["env_steps_to"] is None
    assert trial.values["stays"] == 100.0 and again.values["stays"] is None
    assert trial.values["seconds_to"] == trial.curves["return_by_seconds"].x[0] > 0.0
    assert trial.values["return_at_env_steps"] == curve.y[2]  # the first evaluation from 1,200 on
    assert trial.values["return_at_seconds"] == curve.y[0] and trial.values["final_return"] == curve.y[-1]
    assert learn(CARTPOLE, at_seconds=1e9).values["return_at_seconds"] is None


@pytest.mark.parametrize(
    ("returns", "stays"),
    [((9, 10, 10, 9, 11), 200 / 3), ((10, 9), 0.0), ((10, 12), 100.0), ((9, 10), None), ((9, 9), None), ((), None)],
)
def test_how_many_later_evaluations_stay_at_the_threshold(returns, stays):
    points = measures._Points(list(range(len(returns))), list(returns))
    assert points.percent_staying(10) == (None if stays is None else pytest.approx(stays))


def test_an_episodes_mean_is_of_the_last_fifty_before_each_horizon():
    log, horizons = EpisodeLog(), Horizons(episodes=60, env_steps=700, seconds=8.5)
    for number in range(1, 101):
        assert log.has_passed(horizons, 10 * number, number / 10) == (number >= 85)
        log.note(float(number), 10 * number, number / 10)
    assert log.to_trial(Horizons(101, 700, 8.5)).values["return_at_episodes"] is None  # not that far
    trial = log.to_trial(horizons)
    assert trial.values == {
        "return_at_episodes": np.mean(range(11, 61)),
        "return_at_env_steps": np.mean(range(21, 71)),
        "return_at_seconds": np.mean(range(36, 86)),
        "fall_at_episodes": 0.0,
        "fall_at_env_steps": 0.0,
        "fall_at_seconds": 0.0,
    }
    assert trial.curves["return_by_episodes"].x[-1] == 60 and trial.curves["return_by_seconds"].x[-1] == 8.5
    assert trial.curves["return_by_env_steps"].y[:2] == (1.0, 1.5)
    assert trial.curves["return_by_env_steps"].y[-1] == np.mean(range(21, 71))


def test_a_fall_is_from_the_best_so_far():
    points = measures._Points([1.0, 2.0, 3.0, 4.0], [5.0, 9.0, 6.0, 20.0])
    assert [points.fall_before(x) for x in (0.5, 1.0, 2.5, 3.0, 9.0)] == [None, 0.0, 0.0, 3.0, 0.0]


def test_a_thinned_curve_is_of_even_stretches():
    crowd = [float(x) for x in range(1, 101)]  # a hundred points in the first tenth, and one at the end
    points = measures._Points([*crowd, 1001.0], [*([2.0] * 50), *([4.0] * 50), 10.0])
    curve = points.thinned()
    np.testing.assert_allclose(curve.x, np.linspace(1.0, 1001.0, 101)[1:])
    assert curve.y[:4] == (2.0, 2.0, 2.0, 2.0) and curve.y[5:99] == (4.0,) * 94 and curve.y[99] == 10.0
    beyond = measures._Points([1.0, 3.0], [7.0, 8.0]).thinned(5.0)  # goes on with the last
    assert beyond.x[-1] == 5.0 and beyond.y[0] == 7.0 and beyond.y[-1] == 8.0
    before = measures._Points([1.0, 3.0], [7.0, 8.0]).thinned(2.0)
    assert set(before.y) == {7.0}
    assert measures._Points([1.0, 3.0], [7.0, 8.0]).thinned() == Curve((1.0, 3.0), (7.0, 8.0))


def test_a_seed_that_diverges_is_one_that_failed():
    trial = learn(CARTPOLE.replace(learning_rate=1e30, max_grad_norm=None, eval_every=64), threshold=1e9)
    assert trial.values["final_return"] is trial.values["sps"] is trial.values["env_steps_to"] is None


def test_a_run_by_episodes_goes_on_to_the_last_horizon_or_its_budget():
    horizons = Horizons(episodes=30, env_steps=200, seconds=0.0)
    trial = learn_by_episodes(EPISODES, horizons)
    assert trial.curves["return_by_episodes"].x[-1] == 30
    assert trial.values["return_at_seconds"] is None
    short = learn_by_episodes(EPISODES.replace(total_env_steps=100), Horizons(10**6, 10**6, 10**6))
    assert short.curves["return_by_env_steps"].x[-1] >= 100


def test_a_gradient_estimate_is_that_of_one_episode():
    config = EPISODES.replace(algo="reinforce", baseline=False, seed=5, vf_coef=0.0, ent_coef=0.0)
    envs = build_envs(config.env, Streams.spawn(5).env)
    model = build_model(config.model, envs, 1)
    found = measures._estimate_gradients(config, {k: v.clone() for k, v in model.state_dict().items()}, 3)
    worker = build_worker(config, [envs], model, measures._Recorder(model), [Streams.spawn(5).actions], Alone())
    for row in found:
        worker.collect(Phases())
        length = worker.shards[0].collected.num_steps  # of the one episode; rows after it are of an earlier one
        obs, action = worker.shards[0].rollout.obs[:length, 0], worker.shards[0].rollout.action[:length, 0]
        returns = [(1 - 0.99 ** (length - t)) / 0.01 for t in range(length)]
        params, _, _ = model(obs, torch.zeros(length, 0), torch.zeros(length, dtype=torch.bool))
        log_prob, _ = model.head.log_prob_entropy(params, action)
        loss = -(log_prob * torch.tensor(returns)).mean()
        grads = torch.autograd.grad(loss, [*model.trunks[0].parameters(), *model.head.parameters()])
        expected = torch.cat([grad.flatten() for grad in grads])
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(row, expected, rtol=1e-3, atol=1e-5)


def test_variance_of_gradients(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    mean, deviation = torch.tensor([3.0, -4.0]), torch.tensor([1.0, 2.0])
    gradients = mean + deviation * torch.randn(20_000, 2, generator=rng)
    monkeypatch.setattr(measures, "_estimate_gradients", lambda config, frozen, number: gradients)
    trial = gradient_variance(EPISODES.replace(total_env_steps=100), CARTPOLE, 100, len(gradients))
    assert trial.values["gradient_variance"] == pytest.approx(2.5, rel=0.03)  # the mean of 1 and 4
    assert "final_return" in trial.values


SMALL = {"num_envs": 2, "workers": 1, "num_minibatches": 1, "num_epochs": 1, "eval_episodes": 2, "total_env_steps": 300}


def shrink(measure):
    """Return what asks less of a measure."""
    few = {"base_env_steps": 100, "num_gradients": 2, "horizons": Horizons(2, 100, 0.0)}
    few |= {"at_env_steps": 100, "at_seconds": 0.0}
    return partial(measure.func, **measure.keywords | {k: v for k, v in few.items() if k in measure.keywords})


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda each: each.name)
def test_every_plot_and_column_is_of_something_that_is_measured(experiment):
    for package in (package for extra in experiment.extras for package in EXTRAS[extra]):
        pytest.importorskip(package)
    assert len({(arm.group, arm.name) for arm in experiment.arms}) == len(experiment.arms)
    curves, values, done = set(), set(), set()
    for arm in experiment.arms:
        measure = shrink(arm.measure if isinstance(arm.measure, partial) else partial(arm.measure))
        if measure.func in done:
            continue
        done.add(measure.func)
        whole = arm.config.algo.collect == "episodes"
        trial = measure(arm.config.replace(**SMALL, num_steps=500 if whole else 8, eval_every=100))
        curves |= trial.curves.keys()
        values |= trial.values.keys()
    shown = [plot for plot in experiment.plots if isinstance(plot, ValuePlot)]
    assert {plot.curve for plot in experiment.plots if isinstance(plot, CurvePlot)} <= curves
    assert {name for plot in shown for name in plot.values} | {column.value for column in experiment.columns} <= values
