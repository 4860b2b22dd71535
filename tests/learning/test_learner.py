"""The learner: what does not count, ratio 1 where nothing has changed, schedules, and stopping at the first NaN."""

import itertools
import math

import numpy as np
import pytest
import torch
from core_support import (
    CHAINS,
    CPU,
    PROBES,
    PlainDescent,
    allocate,
    apply_rule,
    estimate,
    make_chains,
    make_collector,
    make_training,
    run_iterations,
    take_step,
    weights,
)

from fastac.build import build_rule
from fastac.config import Config
from fastac.contract import NonFiniteError, Phases
from fastac.learning.autograd import AutogradGradient
from fastac.learning.learner import Learner
from fastac.learning.losses import clipped_surrogate, policy_gradient
from fastac.learning.objectives import PlainObjective
from fastac.learning.optimizer import LocalOptimizer
from fastac.learning.schedules import anneal
from fastac.learning.update_rules import RMSprop
from fastac.models import (
    ActorCritic,
    CategoricalHead,
    IdentityCore,
    LSTMCore,
    MLPEncoder,
    NoObsNormalizer,
    ObsNormalizer,
    Trunk,
)
from fastac.rollout import Batch, Collector, FlatMinibatches, ModelActor, SequenceMinibatches

CHAIN = PROBES + "ToyChain-v0"


def make_model(core="identity", shared=True, seed=0):
    torch.manual_seed(seed)
    trunks = []
    for _ in range(1 if shared else 2):
        encoder = MLPEncoder(1, (6,), "tanh")
        with torch.no_grad():
            encoder.layers[0].weight.mul_(0.003)  # the chains show large numbers
        trunks.append(Trunk(encoder, LSTMCore(6, 5) if core == "lstm" else IdentityCore(6)))
    model = ActorCritic(trunks, CategoricalHead(trunks[0].core.output_size, 2), NoObsNormalizer())
    with torch.no_grad():
        model.head.layer.weight.mul_(100.0)
    return model


def collect(model, num_steps=12, rollouts=1, mode="next_step"):
    rollout = allocate(num_steps, len(CHAINS), state_size=model.state_size)
    collector = Collector(make_chains(mode), ModelActor(model, rollout, torch.Generator().manual_seed(0), CPU), rollout)
    for _ in range(rollouts):
        collector.collect(Phases())
    return rollout


def make_learner(model, minibatches, loss=policy_gradient, **settings):
    config = Config().replace(**settings)
    optimizer = LocalOptimizer(model, build_rule(config.optim), config.optim.max_grad_norm)
    gradient = AutogradGradient(model, PlainObjective(getattr(model, "head", None), loss), CPU)
    return Learner(config, [gradient], [minibatches], optimizer)


def learn(learner, rollout, done_fraction=0.0):
    return learner.learn([rollout], [rollout.reward], done_fraction, Phases())


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_close(one, two, **tolerance):
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def differ(one, two):
    return any(not torch.equal(value, two[name]) for name, value in one.items())


# --- rows without information --------------------------------------------------------------------


class OnlyValid:
    """One flat batch of the rows that are valid, and no others."""

    def begin_epoch(self, rollout):
        self.rollout = rollout
        return []

    def batches(self):
        rollout = self.rollout
        kept, rows = rollout.valid, rollout.num_steps
        training = [rollout.obs[:rows], rollout.action, rollout.log_prob]
        training += [rollout.advantage, rollout.return_]
        yield Batch(*(part[kept] for part in training), kept[kept], rollout.start[:rows][kept], rollout.state)


@pytest.mark.parametrize("normalize_advantage", [False, True])
@pytest.mark.parametrize("loss", [policy_gradient, clipped_surrogate])
def test_rows_that_are_not_valid_might_as_well_be_removed(loss, normalize_advantage):
    settings = {"normalize_advantage": normalize_advantage, "ent_coef": 0.05, "learning_rate": 0.01}
    ends, metrics = [], []
    for minibatches in (FlatMinibatches(1, torch.Generator()), OnlyValid()):
        model = make_model()
        rollout = collect(model, rollouts=2)
        assert not rollout.valid.all()
        learner = make_learner(model, minibatches, loss, **settings)
        metrics.append([learn(learner, rollout) for _ in range(3)][-1])
        ends.append(state_of(model))
    assert_close(*ends, rtol=1e-4, atol=1e-6)
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("core", ["identity", "lstm"])
def test_garbage_in_rows_that_are_not_valid_changes_no_weight(core):
    slicing = SequenceMinibatches if core == "lstm" else FlatMinibatches
    ends = []
    for garbage in (0.0, 1e3):
        model = make_model(core)
        rollout = collect(model)
        rollout.reward[~rollout.valid] = garbage
        rollout.log_prob[~rollout.valid] = -garbage / 1e3
        rollout.action[~rollout.valid] = int(garbage > 0.0)
        settings = {"num_epochs": 2, "num_minibatches": 2, "normalize_advantage": True}
        learner = make_learner(model, slicing(2, torch.Generator().manual_seed(0)), clipped_surrogate, **settings)
        learn(learner, rollout)
        ends.append(state_of(model))
    assert not differ(*ends)


def test_explained_variance_is_of_valid_rows():
    rollout = make_collector(make_chains("next_step"), 15).collect(Phases())
    metrics = estimate(rollout)
    valid = rollout.valid.numpy()
    return_, value = rollout.return_.numpy()[valid], rollout.value[:-1].numpy()[valid]
    expected = 1.0 - np.var(return_ - value) / np.var(return_)
    assert metrics["explained_variance"] == pytest.approx(expected, rel=1e-3)
    exact = allocate(1, 3)
    exact.valid.fill_(True)
    exact.terminated.fill_(True)
    exact.reward[0] = exact.value[0] = torch.tensor([1.0, 2.0, 4.0])  # a critic that knows
    assert estimate(exact)["explained_variance"] == 1.0
    exact.reward.fill_(3.0)
    assert math.isnan(estimate(exact)["explained_variance"])


# --- the same policy learns that acted -----------------------------------------------------------


class Spy:
    """A loss that keeps the log-ratios and value differences of the rows it was shown."""

    def __init__(self):
        self.seen = []

    def __call__(self, log_prob, entropy, value, old_log_prob, advantage, return_, weight, *coefs):
        self.seen.append((log_prob - old_log_prob).detach().abs().max().item())
        return clipped_surrogate(log_prob, entropy, value, old_log_prob, advantage, return_, weight, *coefs)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("num_minibatches", [1, 2, 4])
@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_the_first_epoch_sees_the_log_probs_that_acted_with_an_lstm(mode, num_minibatches, shared):
    # A vanishing step: whatever is not ratio 1 is a memory that was not rebuilt as it was.
    model = make_model("lstm", shared)
    spy = Spy()
    minibatches = SequenceMinibatches(num_minibatches, torch.Generator().manual_seed(1))
    learner = make_learner(model, minibatches, spy, num_minibatches=num_minibatches, learning_rate=1e-12)
    rollout = allocate(7, len(CHAINS), state_size=model.state_size)
    collector = Collector(make_chains(mode), ModelActor(model, rollout, torch.Generator().manual_seed(0), CPU), rollout)
    for _ in range(4):
        learn(learner, collector.collect(Phases()))
    assert len(spy.seen) == 4 * num_minibatches
    assert max(spy.seen) < 1e-5
    # The check is worth something: with the memory lost, the ratios are far from 1.
    rollout.state.zero_()
    learn(learner, rollout)
    assert max(spy.seen[4 * num_minibatches :]) > 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalize_obs": True},
        {"core": "lstm", "lstm_size": 8, "shared_trunk": False},
        {"core": "lstm", "lstm_size": 8, "normalize_obs": True},
    ],
)
def test_whole_runs_begin_every_update_at_ratio_1(settings):
    training = make_training(
        algo="ppo", num_envs=8, num_steps=24, learning_rate=0.02, total_env_steps=6 * 192, **settings
    )
    for report in training.trainer.run():
        assert abs(report.losses["approx_kl"]) < 1e-6
        assert report.losses["clip_fraction"] == 0.0
    assert report.episodes > 5


def test_minibatches_cover_every_row_once_per_pass():
    rollout = collect(make_model("lstm"), num_steps=6)
    rollout.advantage.copy_(torch.arange(24.0).view(6, 4))
    for minibatches in (
        FlatMinibatches(3, torch.Generator().manual_seed(0)),
        SequenceMinibatches(2, torch.Generator().manual_seed(0)),
    ):
        orders = []
        for _ in range(2):
            rows = []
            for batch in minibatches.split(rollout):  # looked at one by one: a batch may overwrite the one before
                rows += batch.advantage.flatten().tolist()
                row = batch.advantage.long()
                assert torch.equal(batch.valid, rollout.valid.flatten()[row])
                assert torch.equal(batch.obs[..., 0], rollout.obs[:-1].flatten()[row])
                for name in ("action", "log_prob", "return_"):
                    assert torch.equal(getattr(batch, name), getattr(rollout, name).flatten()[row]), name
            assert sorted(rows) == list(range(24))
            orders.append(rows)
        assert orders[0] != orders[1]


def test_sequence_minibatches_bring_each_envs_own_memory():
    rollout = collect(make_model("lstm"), num_steps=3, rollouts=3)
    rollout.advantage.copy_(torch.arange(4.0).expand(3, 4))
    for batch in SequenceMinibatches(2, torch.Generator().manual_seed(0)).split(rollout):
        assert batch.advantage.shape == (3, 2)
        envs = batch.advantage[0].long()
        assert torch.equal(batch.state, rollout.state[envs])
        assert torch.equal(batch.start, rollout.start[:3, envs])


# --- A2C is a special case of PPO ----------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "rmsprop_tf"])
@pytest.mark.parametrize("core", ["identity", "lstm"])
def test_ppo_with_one_epoch_and_one_batch_is_a2c(core, optimizer):
    ends = []
    for algo in ("a2c", "ppo"):
        training = make_training(
            algo=algo, core=core, lstm_size=8, num_envs=4, num_steps=10, optimizer=optimizer, seed=3
        )
        begin = weights(training)
        run_iterations(training, 6)
        ends.append(weights(training))
        assert differ(begin, ends[-1])
    assert_close(*ends, rtol=1e-4, atol=2e-6)


def test_several_epochs_of_ppo_are_clipped_and_those_of_a2c_are_not():
    clipped = {}
    for algo in ("ppo", "a2c"):
        training = make_training(algo=algo, num_epochs=4, num_envs=4, num_steps=32, learning_rate=0.02)
        (report,) = itertools.islice(training.trainer.run(), 1)
        assert report.updates == 4
        clipped[algo] = report.losses["clip_fraction"], report.losses["approx_kl"]
    assert min(clipped["ppo"]) > 0.01
    assert clipped["a2c"] == (0.0, 0.0)


# --- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("poison", "term"),
    [
        (lambda rollout: rollout.reward[2].fill_(math.nan), "policy_loss"),
        (lambda rollout: rollout.reward[2].fill_(math.inf), "policy_loss"),
        (lambda rollout: rollout.reward.fill_(1e30), "value_loss"),
        (lambda rollout: rollout.log_prob.fill_(-1e5), "approx_kl"),
    ],
)
def test_a_term_that_is_not_finite_stops_before_the_parameters_change(poison, term):
    model = make_model()
    rollout = collect(model)
    learner = make_learner(model, FlatMinibatches(1, torch.Generator()), clipped_surrogate)
    learn(learner, rollout)
    before = state_of(model)
    poison(rollout)
    with pytest.raises(NonFiniteError, match=f"^update 2: {term} is (nan|-?inf), expected"):
        learn(learner, rollout)
    assert not differ(before, state_of(model))
    assert learner.updates == 1


def test_a_gradient_that_is_not_finite_stops_before_the_parameters_change():
    def loss(log_prob, entropy, value, *rest):
        terms = policy_gradient(log_prob, entropy, value, *rest)
        broken = (value - value.detach()).sum().abs().sqrt()  # worth 0, with an infinite slope
        return type(terms)(terms.total + broken, *(getattr(terms, name) for name in terms.__slots__[1:]))

    model = make_model()
    rollout = collect(model)
    learner = make_learner(model, FlatMinibatches(1, torch.Generator()), loss)
    before = state_of(model)
    with pytest.raises(NonFiniteError, match=r"^update 1: grad_norm is (nan|inf), expected a finite number"):
        learn(learner, rollout)
    assert not differ(before, state_of(model))
    assert learner.updates == 0


# --- schedules and steps -------------------------------------------------------------------------


def test_anneal():
    assert anneal("constant", 0.3, 0.9) == 0.3
    assert [anneal("linear", 0.4, done) for done in (0.0, 0.5, 1.0, 1.5)] == [0.4, 0.2, 0.0, 0.0]


def test_a_linear_learning_rate_falls_over_the_budget():
    training = make_training(num_envs=2, num_steps=5, total_env_steps=40, learning_rate_schedule="linear")
    reports = list(training.trainer.run())
    assert reports[0].losses["learning_rate"] == 7e-4
    for before, after in itertools.pairwise(reports):
        assert after.losses["learning_rate"] == pytest.approx(7e-4 * (1.0 - before.env_steps / 40))
    assert 40 <= reports[-1].env_steps < 50


def test_the_learning_rate_scales_the_step():
    steps = []
    for learning_rate in (1e-3, 2e-3):
        model = make_model()
        rollout = collect(model)
        before = state_of(model)
        minibatches = FlatMinibatches(1, torch.Generator())
        learn(make_learner(model, minibatches, learning_rate=learning_rate), rollout)
        steps.append(sum((model.state_dict()[name] - before[name]).abs().sum() for name in before))
    assert float(steps[1] / steps[0]) == pytest.approx(2.0, rel=1e-3)


def differentiate_and_step(optimizer, loss, learning_rate):
    loss.backward()
    return take_step(optimizer, learning_rate)[1]


@pytest.mark.parametrize("max_grad_norm", [0.1, None])
def test_the_gradient_is_clipped_to_a_global_norm(max_grad_norm):
    model = torch.nn.Linear(3, 2)
    optimizer = LocalOptimizer(model, PlainDescent(), max_grad_norm)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    norm = differentiate_and_step(optimizer, 100.0 * model(torch.ones(1, 3)).sum(), 0.5)
    moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    assert norm == pytest.approx(100.0 * math.sqrt(8.0))
    assert moved.norm().item() == pytest.approx(0.5 * (norm if max_grad_norm is None else max_grad_norm), rel=1e-4)


def test_rmsprop_tf_by_formula():
    param = torch.tensor([1.0, -2.0, 0.5])
    rule = RMSprop(eps=1e-3, tensorflow=True)
    slots = {name: torch.full_like(param, value) for name, value in rule.slots.items()}
    expected, average = param.double().numpy().copy(), np.ones(3)
    for step in range(5):
        grad = np.array([0.5, -3.0, 0.001]) * (step + 1)
        apply_rule(rule, (param, torch.from_numpy(grad).float(), slots), 1.0, 0.1, step + 1)
        average = 0.99 * average + 0.01 * grad**2
        expected -= 0.1 * grad / np.sqrt(average + 1e-3)
        np.testing.assert_allclose(param.numpy(), expected, rtol=1e-5)


def test_parameters_keep_their_values_and_become_views_of_one_vector():
    model = make_model()
    before = state_of(model)
    LocalOptimizer(model, PlainDescent(), None)
    assert not differ(before, state_of(model))
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == 1
    assert len({p.grad.untyped_storage().data_ptr() for p in model.parameters()}) == 1


def test_frozen_parameters_stay():
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    differentiate_and_step(LocalOptimizer(model, PlainDescent(), None), model(torch.ones(1, 3)).sum(), 0.5)
    assert torch.equal(model.bias, before) and model.bias.grad is None


def test_parameters_of_another_precision_are_refused():
    with pytest.raises(ValueError, match=r"torch\.float64, expected torch\.float32"):
        LocalOptimizer(torch.nn.Linear(3, 2).double(), PlainDescent(), None)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "rmsprop_tf"])
def test_an_optimiser_goes_on_bit_for_bit_from_its_state(optimizer):
    def make():
        model = make_model()
        return model, make_learner(model, FlatMinibatches(1, torch.Generator()), optimizer=optimizer)

    model, learner = make()
    rollout = collect(model)
    for _ in range(3):
        learn(learner, rollout)
    twin, twin_learner = make()
    twin.load_state_dict(model.state_dict())
    twin_learner.set_state(learner.get_state())
    for _ in range(3):
        learn(learner, rollout)
        learn(twin_learner, rollout)
    assert not differ(state_of(model), state_of(twin))
    assert learner.updates == twin_learner.updates == 6


@pytest.mark.parametrize("baseline", [True, False])
def test_without_a_baseline_the_critic_is_left_alone(baseline):
    training = make_training(
        algo="reinforce", collect="episodes", gae_lambda=1.0, num_envs=4, num_steps=20, baseline=baseline
    )
    before = weights(training)
    run_iterations(training, 2)
    assert torch.equal(before["value_head.weight"], weights(training)["value_head.weight"]) == (not baseline)
    assert not torch.equal(before["head.layer.weight"], weights(training)["head.layer.weight"])


def test_observation_statistics_change_after_an_update_and_not_before():
    training = make_training(env_id=CHAIN, vectorization="sync", num_envs=3, num_steps=7, normalize_obs=True)
    assert isinstance(training.model.obs_normalizer, ObsNormalizer)
    rows = []
    for report in training.trainer.run():
        rows.append(training.rollouts[0].obs[:-1][training.rollouts[0].valid].double())
        together = torch.cat(rows)
        torch.testing.assert_close(training.model.obs_normalizer.moments.mean, together.mean(dim=0))
        assert report.env_steps == len(together)
        if report.iteration == 4:
            break


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_linear_schedules_reach_the_loss(fraction):
    seen = []

    def spy(*args):
        seen.append(args[7:10])  # vf_coef, ent_coef, clip_coef
        return policy_gradient(*args)

    model = make_model()
    settings = {"ent_coef": 0.02, "clip_coef": 0.2, "ent_coef_schedule": "linear", "clip_coef_schedule": "linear"}
    learner = make_learner(model, FlatMinibatches(1, torch.Generator()), loss=spy, algo="ppo", **settings)
    learn(learner, collect(model), fraction)
    assert seen == [(0.5, pytest.approx(0.02 * (1 - fraction)), pytest.approx(0.2 * (1 - fraction)))]


@pytest.mark.parametrize("kind", [FlatMinibatches, SequenceMinibatches])
def test_the_preview_of_an_epoch_is_what_its_minibatches_have(kind):
    rollout = collect(make_model(), rollouts=2)
    minibatches = kind(2, torch.Generator().manual_seed(4))
    for _ in range(2):
        previews = minibatches.begin_epoch(rollout)
        for (advantage, valid), batch in zip(previews, minibatches.batches(), strict=True):
            assert torch.equal(advantage, batch.advantage.view(-1)) and torch.equal(valid, batch.valid.view(-1))
