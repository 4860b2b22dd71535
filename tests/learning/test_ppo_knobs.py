"""PPO's knobs: a target KL, an adaptive learning rate, clipped values, the scope of advantages, the critic's rate."""

import math
from itertools import islice, pairwise

import pytest
import torch
from core_support import PlainDescent, make_training, run_iterations, take_step, weights
from test_learner import collect, learn, make_model

from fastac.build import build_rule
from fastac.config import Config
from fastac.learning.learner import Learner
from fastac.learning.losses import clipped_surrogate
from fastac.learning.objectives import TERMS
from fastac.learning.optimizer import LocalOptimizer
from fastac.learning.schedules import adapt_rate
from fastac.learning.spans import Span, find_spans, prepare_update
from fastac.learning.update_rules import Adam, RMSprop, Step
from fastac.rollout import FlatMinibatches, SequenceMinibatches

PPO = {"algo": "ppo", "num_epochs": 5, "num_minibatches": 2}


class Scripted:
    """A gradient of 0 whose updates have the KLs of a list; it notes the weights and learning rates that it sees."""

    def __init__(self, *kls):
        self.kls, self.weights, self.rates = list(kls), [], []

    def prepare(self, batch, coefs, terms, is_fresh):
        def update():
            terms.zero_()
            terms[TERMS.index("approx_kl")] = self.kls.pop(0)
            self.weights.append((int(batch.valid.sum()), *coefs.weights.tolist()))
            self.rates.append(self.learner._rates.tolist())

        return [update]


def scripted(*kls, rollouts=1, **settings):
    """Learn from a rollout with an objective of these KLs; return the learner, its gradient and the last metrics."""
    config, model, gradient = Config().replace(**PPO | settings), make_model(), Scripted(*kls)
    minibatches = FlatMinibatches(config.algo.num_minibatches, torch.Generator().manual_seed(0))
    optimizer = LocalOptimizer(model, build_rule(config.optim), None)
    gradient.learner = learner = Learner(config, [gradient], [minibatches], optimizer)
    rollout = collect(model)
    for _ in range(rollouts):
        metrics = learn(learner, rollout)
    return learner, gradient, metrics, rollout


# ---- the target KL ----------------------------------------------------------------------------------


def test_epochs_end_with_the_first_whose_last_minibatch_is_beyond_the_target():
    # The first minibatch of an epoch does not count, nor does a KL that equals the target.
    learner, gradient, metrics, _ = scripted(9.0, 0.01, 9.0, 0.02, 9.0, 0.021, target_kl=0.02)
    assert (learner.updates, metrics["epochs"], gradient.kls) == (6, 3.0, [])
    assert metrics["approx_kl"] == pytest.approx((3 * 9.0 + 0.01 + 0.02 + 0.021) / 6)


def test_within_the_target_all_epochs_are_done():
    learner, _, metrics, _ = scripted(*[0.01] * 10, target_kl=0.02)
    assert (learner.updates, metrics["epochs"]) == (10, 5.0)


def test_the_kl_before_the_first_update_says_nothing():
    learner, _, metrics, _ = scripted(1.0, 0.01, 0.03, num_minibatches=1, target_kl=0.02)
    assert (learner.updates, metrics["epochs"]) == (3, 3.0)


def test_without_a_target_nothing_is_said_of_epochs():
    assert "epochs" not in scripted(*[9.0] * 10)[2]


def test_a_small_target_ends_real_epochs():
    settings = {"num_envs": 8, "num_steps": 32, "learning_rate": 0.01, **PPO, "num_epochs": 8}
    (report,) = islice(make_training(**settings, target_kl=1e-4).trainer.run(), 1)
    assert 2 <= report.updates < 16 and report.losses["epochs"] == report.updates / 2


# ---- the adaptive learning rate -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "kl", "becomes"),
    [
        (3e-4, 0.0201, 2e-4),
        (3e-4, 0.02, 3e-4),
        (3e-4, 0.005, 3e-4),
        (3e-4, 0.0049, 4.5e-4),
        (1.2e-5, 1.0, 1e-5),
        (9e-3, 0.0, 1e-2),
    ],
)
def test_adapt_rate_by_hand(rate, kl, becomes):
    assert adapt_rate(rate, kl, 0.01) == pytest.approx(becomes, rel=1e-12)


def test_an_adaptive_learning_rate_changes_between_epochs_and_goes_on():
    settings = {"learning_rate": 3e-4, "target_kl": 0.01, "learning_rate_schedule": "adaptive", "num_epochs": 3}
    settings |= {"shared_trunk": False, "critic_learning_rate": 6e-4}
    kls = [9.0, 0.1, 9.0, 0.01, 9.0, 0.001, 9.0, 0.001, 9.0, 0.01, 9.0, 0.1]
    learner, gradient, metrics, _ = scripted(*kls, rollouts=2, **settings)
    factors = [rate / 3e-4 for rate, _ in gradient.rates]
    assert factors == pytest.approx([1.0] * 2 + [1 / 1.5] * 4 + [1.0] * 2 + [1.5] * 4)
    assert all(critic == pytest.approx(2.0 * rate) for rate, critic in gradient.rates)  # it keeps its distance
    assert (metrics["learning_rate"], metrics["epochs"]) == (pytest.approx(3e-4), 3.0)
    assert learner.get_state()["rate_share"] == pytest.approx(1.0)


def test_the_kl_of_a_fresh_policy_does_not_raise_the_learning_rate():
    settings = {"target_kl": 0.01, "learning_rate_schedule": "adaptive", "num_minibatches": 1, "num_epochs": 2}
    assert scripted(0.0, 0.01, **settings)[2]["learning_rate"] == 7e-4


def test_other_schedules_have_no_state():
    assert set(scripted(*[0.0] * 10, target_kl=0.02)[0].get_state()) == {"optimizer", "updates"}


# ---- the scope of advantages ----------------------------------------------------------------------------


def test_advantages_are_standardised_over_the_whole_rollout():
    settings = {"normalize_advantage": True, "num_epochs": 2}
    _, seen, _, rollout = scripted(*[0.0] * 4, **settings, advantage_scope="rollout")
    advantage = rollout.advantage[rollout.valid].double()
    for rows, inverse_count, shift, scale in seen.weights:
        assert inverse_count == 1.0 / rows
        assert shift == pytest.approx(advantage.mean().item())
        assert scale == pytest.approx(1.0 / (advantage.std(unbiased=False).item() + 1e-8))
    by_batch = scripted(*[0.0] * 4, **settings)[1].weights
    assert [row[:2] for row in by_batch] == [row[:2] for row in seen.weights]
    assert len({row[2] for row in by_batch}) == 4


# ---- clipped values ---------------------------------------------------------------------------------------


def test_the_loss_of_clipped_values_by_hand():
    value = torch.tensor([1.25, 2.0, 0.0], requires_grad=True)  # within the range; far enough; the wrong way
    zero, return_, weight = torch.zeros(3), torch.full((3,), 3.0), torch.full((3,), 1 / 3)
    rows = zero, zero, value, zero, zero, return_, weight
    terms = clipped_surrogate(*rows, 1.0, 0.0, 0.2, torch.ones(3), 0.5)
    terms.total.backward()
    assert terms.value_loss.item() == pytest.approx((1.75**2 + 1.5**2 + 3.0**2) / 3)
    assert value.grad.tolist() == pytest.approx([-3.5 / 3, 0.0, -6.0 / 3])


@pytest.mark.parametrize("kind", [FlatMinibatches, SequenceMinibatches])
@pytest.mark.parametrize("num", [1, 2])
def test_minibatches_have_the_values_seen_while_acting(kind, num):
    rollout = collect(make_model(), rollouts=2)
    places = {(a, v): r for a, v, r in zip(*(x.flatten().tolist() for x in _columns(rollout)), strict=True)}
    for batch in kind(num, torch.Generator().manual_seed(4), keeps_value=True).split(rollout):
        flat = batch.flat()
        rows = (part.tolist() for part in (flat.advantage, flat.log_prob, flat.value))
        assert all(places[advantage, log_prob] == value for advantage, log_prob, value in zip(*rows, strict=True))
        assert flat.rows(1, 4).value.tolist() == flat.value[1:4].tolist()
    assert all(batch.value is None for batch in kind(num, torch.Generator()).split(rollout))


def _columns(rollout):
    rollout.advantage.copy_(torch.arange(rollout.advantage.numel()).view(rollout.advantage.shape))
    return rollout.advantage, rollout.log_prob, rollout.value[:-1]


def test_clipping_values_changes_the_critic_and_a_wide_range_does_not():
    settings = {"num_envs": 8, "num_steps": 32, "learning_rate": 0.01, **PPO}
    found = {}
    for clip in (None, 1e9, 1e-3):
        training = make_training(**settings, clip_value_coef=clip)
        run_iterations(training, 2)
        found[clip] = weights(training)["value_head.weight"]
    torch.testing.assert_close(found[1e9], found[None], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(found[1e-3], found[None], rtol=1e-2)


# ---- the critic's learning rate ------------------------------------------------------------------------------


def test_the_critics_parameters_are_spans_of_the_flat_vector():
    model = make_model(shared=False)  # each parameter is padded to 16 elements
    assert find_spans(model, ()) == [Span(0, 128, 0)]
    # The actor's trunk, the critic's, the action head of 6 * 2 + 2 and the value head of 6 + 1.
    spans = [Span(0, 32, 0), Span(32, 64, 1), Span(64, 96, 0), Span(96, 128, 1)]
    assert find_spans(model, model.critic_parameters()) == spans


def test_each_has_its_step_and_the_norm_is_common():
    model = make_model(shared=False)
    critic = model.critic_parameters()
    optimizer = LocalOptimizer(model, PlainDescent(), 1.0, critic=critic)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad.fill_(1.0)
    size = sum(p.numel() for p in model.parameters())
    _, norm = take_step(optimizer, (0.5, 0.25))
    assert norm == pytest.approx(math.sqrt(size))
    own = {id(p) for p in critic}
    for name, p in model.named_parameters():
        expected = (0.25 if id(p) in own else 0.5) / math.sqrt(size)
        torch.testing.assert_close(before[name] - p.detach(), torch.full_like(p, expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_the_same_rate_given_twice_gives_the_same_bits_and_another_moves_the_critic_alone(optimizer):
    ends = []
    for rate in (None, 1e-3, 1e-4):
        training = make_training(
            shared_trunk=False, learning_rate=1e-3, critic_learning_rate=rate, optimizer=optimizer, max_grad_norm=None
        )
        run_iterations(training, 1)
        ends.append(weights(training))
    same, slower = ({name for name in ends[0] if torch.equal(ends[0][name], end[name])} for end in ends[1:])
    assert same == set(ends[0])
    critics = {name for name in ends[0] if name.startswith(("trunks.1", "value_head"))}
    assert same - slower == critics and critics


@pytest.mark.parametrize("rule", [Adam(1e-8), RMSprop(1e-5, tensorflow=False)])
def test_parts_of_the_vector_end_with_the_bits_of_the_whole(rule):
    spans, results = [Span(0, 1500, 0), Span(1500, 2900, 1), Span(2900, 4000, 0)], []
    draw = torch.Generator().manual_seed(0)
    start, grad = torch.randn(4000, generator=draw), torch.randn(4000, generator=draw)
    for ends in ([0, 4000], [0, 1024, 3072, 4000], [0, 4000, 4000]):
        param, slots = start.clone(), {name: torch.full((4000,), value) for name, value in rule.slots.items()}
        step = Step(*(torch.tensor(numbers, dtype=torch.float64) for numbers in ([0.5], [1e-2, 3e-2], [1.0])))
        for begin, end in pairwise(ends):
            part = param[begin:end], grad[begin:end], {name: slot[begin:end] for name, slot in slots.items()}
            for op in prepare_update(rule, spans, begin, *part, step):
                op()
        results.append([param, *slots.values()])
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))
    moved = (results[0][0] - start) / grad.sign()
    assert (moved[1500:2900].mean() / moved[:1500].mean()).item() == pytest.approx(3.0, rel=0.02)
