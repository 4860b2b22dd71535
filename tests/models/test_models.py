"""Heads against brute force and torch.distributions, the LSTM against itself unrolled, and the normalisers."""

import itertools
import math
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from core_support import evaluate_rows, make_training
from gymnasium.spaces import Box, Discrete
from torch import nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
)
from torch.nn.utils import parameters_to_vector

from fastac.build import build_model, name_encoder
from fastac.config import ModelConfig
from fastac.contract import Alone
from fastac.models import (
    ActorCritic,
    CategoricalHead,
    DependentGaussianHead,
    GaussianHead,
    IdentityCore,
    ImageNormalizer,
    LSTMCore,
    MLPEncoder,
    MultiCategoricalHead,
    NoObsNormalizer,
    NoRewardNormalizer,
    ObsNormalizer,
    RewardNormalizer,
    Trunk,
)

SPACES = SimpleNamespace(single_observation_space=Box(-1.0, 1.0, (3,)), single_action_space=Discrete(2))
LARGEST_UNIFORM = 1.0 - 2.0**-24


def sharpen(model):
    """Make the policy depend on what it sees: the heads begin with tiny weights."""
    with torch.no_grad():
        model.head.layer.weight.mul_(200.0)
    return model


def make_model(shared, core="lstm", normalizer=None, hidden=8):
    def trunk():
        return Trunk(MLPEncoder(3, (6,), "tanh"), LSTMCore(6, hidden) if core == "lstm" else IdentityCore(6))

    trunks = [trunk() for _ in range(1 if shared else 2)]
    head = CategoricalHead(trunks[0].core.output_size, 4)
    return sharpen(ActorCritic(trunks, head, normalizer or NoObsNormalizer()))


# --- heads ---------------------------------------------------------------------------------------


def test_categorical_log_prob_and_entropy():
    logits = 3.0 * torch.randn(7, 2, 5)
    action = torch.randint(5, (7, 2))
    log_prob, entropy = CategoricalHead(3, 5).log_prob_entropy(logits, action)
    torch.testing.assert_close(log_prob, Categorical(logits=logits).log_prob(action))
    torch.testing.assert_close(entropy, Categorical(logits=logits).entropy())


def test_categorical_survives_a_certain_policy():
    logits = torch.tensor([[0.0, 500.0, -500.0]], requires_grad=True)
    log_prob, entropy = CategoricalHead(3, 3).log_prob_entropy(logits, torch.tensor([0]))
    assert log_prob.item() == -500.0 and entropy.item() == 0.0
    (log_prob + entropy).sum().backward()
    assert logits.grad.isfinite().all()


def test_multi_categorical_is_the_brute_force_joint():
    nvec = (2, 3, 4)
    head = MultiCategoricalHead(5, nvec)
    params = 2.0 * torch.randn(1, sum(nvec), dtype=torch.float64)
    training = [np.exp(part) / np.exp(part).sum() for part in np.split(params[0].numpy(), np.cumsum(nvec)[:-1])]
    joint = {a: math.prod(p[i] for p, i in zip(training, a, strict=True)) for a in itertools.product(*map(range, nvec))}
    assert sum(joint.values()) == pytest.approx(1.0)
    for action, probability in joint.items():
        log_prob, entropy = head.log_prob_entropy(params, torch.tensor([action]))
        assert log_prob.shape == entropy.shape == (1,)
        assert log_prob.item() == pytest.approx(math.log(probability), rel=1e-10)
        assert entropy.item() == pytest.approx(-sum(p * math.log(p) for p in joint.values()), rel=1e-10)
    assert tuple(head.mode(params)[0].tolist()) == max(joint, key=joint.get)


def test_gaussian_log_prob_and_entropy():
    head = GaussianHead(3, 4, log_std_init=-0.7)
    with torch.no_grad():
        head.log_std += torch.tensor([0.0, 0.5, 1.0, -1.0])
    mean, action = torch.randn(6, 2, 4), 2.0 * torch.randn(6, 2, 4)
    log_prob, entropy = head.log_prob_entropy(mean, action)
    expected = Independent(Normal(mean, head.log_std.exp().expand_as(mean)), 1)
    torch.testing.assert_close(log_prob, expected.log_prob(action))
    torch.testing.assert_close(entropy, expected.entropy())


def test_gaussian_samples_have_the_mean_and_deviation_of_the_head():
    head = GaussianHead(3, 2, log_std_init=math.log(0.3))
    mean = torch.tensor([1.0, -2.0]).expand(40_000, 2)
    sample = head.sample(mean, head.draw_noise((40_000,), torch.Generator().manual_seed(1)))
    torch.testing.assert_close(sample.mean(dim=0), mean[0], atol=0.01, rtol=0.0)
    torch.testing.assert_close(sample.std(dim=0), torch.full((2,), 0.3), atol=0.01, rtol=0.0)
    assert torch.equal(head.mode(mean), mean)


def test_dependent_gaussian_log_prob_and_entropy():
    head = DependentGaussianHead(3, 4, log_std_init=0.0)
    params, action = 2.0 * torch.randn(6, 2, 8, requires_grad=True), 2.0 * torch.randn(6, 2, 4)
    mean, log_std = head.split(params)
    assert mean.shape == log_std.shape == (6, 2, 4)
    log_prob, entropy = head.log_prob_entropy(params, action)
    expected = Independent(Normal(mean, log_std.exp()), 1)
    torch.testing.assert_close(log_prob, expected.log_prob(action))
    torch.testing.assert_close(entropy, expected.entropy())
    assert entropy.std() > 0.1  # one for each observation
    torch.testing.assert_close(head.mode(params), mean)


def test_dependent_gaussian_by_hand():
    head = DependentGaussianHead(3, 1, log_std_init=0.0)
    half = math.atanh(0.5) * 3.5  # half-way from -1.5 to 2 is 0.25
    log_prob, entropy = head.log_prob_entropy(torch.tensor([[1.0, half - 1.5]]), torch.tensor([[1.0 + math.exp(0.25)]]))
    assert log_prob.item() == pytest.approx(-0.5 - 0.25 - 0.5 * math.log(2.0 * math.pi), rel=1e-5)
    assert entropy.item() == pytest.approx(0.5 + 0.5 * math.log(2.0 * math.pi) + 0.25, rel=1e-5)


def test_dependent_gaussian_samples_have_the_mean_and_deviation_of_their_params():
    head = DependentGaussianHead(3, 1, log_std_init=0.0)
    params = torch.tensor([[1.0, -1.5], [-2.0, -3.0]])
    mean, log_std = head.split(params)
    noise = head.draw_noise((40_000, 2), torch.Generator().manual_seed(1))
    assert noise.shape == (40_000, 2, 1)
    sample = head.sample(params.expand(40_000, 2, 2), noise)
    torch.testing.assert_close(sample.mean(dim=0), mean, atol=0.01, rtol=0.0)
    torch.testing.assert_close(sample.std(dim=0), log_std.exp(), atol=0.01, rtol=0.0)


@pytest.mark.parametrize("log_std_init", [-4.9, -1.5, 0.0, 1.9])
def test_dependent_gaussian_begins_with_the_deviation_that_is_asked_for(log_std_init):
    head = DependentGaussianHead(16, 3, log_std_init)
    mean, log_std = head.split(head(torch.zeros(2, 16)))
    assert not mean.any()
    torch.testing.assert_close(log_std, torch.full((2, 3), log_std_init))
    assert head.split(head(torch.randn(50, 16)))[1].std() > 1e-4  # and depends on what is seen


def test_dependent_gaussian_comes_back_from_its_bounds():
    head = DependentGaussianHead(3, 1, log_std_init=0.0)
    free = torch.tensor([-1e4, -12.0, -6.0, -1.5, 3.0, 9.0, 1e4], requires_grad=True)
    log_std = head.split(torch.stack([torch.zeros(7), free], dim=-1))[1].squeeze(-1)
    assert log_std[0] == -5.0 and log_std[-1] == 2.0 and (log_std.diff() > 0).all()
    log_std.sum().backward()
    assert (free.grad[1:-1] > 1e-3).all() and free.grad[3] == 1.0


def test_squashing_leaves_gradients_and_ratios_as_they_are():
    """What `envs.SquashedActions` promises, against torch's transformed distribution, which has the whole density."""
    u = torch.randn(50, 3, dtype=torch.float64)
    to_box = [TanhTransform(), AffineTransform(1.0, 3.0)]  # into [-2, 4]
    found = []
    for transforms in ([], to_box):
        leaves = [torch.full((3,), 0.2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        old, new = Normal(-0.1, 0.8), Normal(leaves[0], leaves[1].exp())
        action = u
        for transform in transforms:
            action = transform(action)
        log_probs = [
            (TransformedDistribution(one, transforms) if transforms else one).log_prob(action).sum(dim=-1)
            for one in (old, new)
        ]
        ratio = (log_probs[1] - log_probs[0]).exp()
        ratio.mean().backward()
        found.append((ratio.detach(), *(leaf.grad for leaf in leaves), log_probs[1].detach()))
    for plain, squashed in zip(*(each[:-1] for each in found), strict=True):
        torch.testing.assert_close(squashed, plain, rtol=1e-6, atol=1e-9)
    assert (found[0][-1] - found[1][-1]).abs().min() > 1e-3  # the densities themselves differ


def chi_square(counts, probabilities):
    expected = counts.sum() * probabilities
    return float(((counts - expected) ** 2 / expected).sum())


def test_categorical_samples_occur_as_often_as_they_should():
    probabilities = torch.tensor([0.02, 0.5, 0.08, 0.3, 0.1])
    head, num = CategoricalHead(3, 5), 50_000
    noise = head.draw_noise((num,), torch.Generator().manual_seed(2))
    counts = head.sample(probabilities.log().expand(num, 5), noise).bincount(minlength=5)
    assert chi_square(counts, probabilities) < 18.5  # 4 degrees of freedom: one in a thousand
    assert chi_square(counts, probabilities.flip(0)) > 1000.0


def test_multi_categorical_samples_are_independent():
    training = (torch.tensor([0.25, 0.75]), torch.tensor([0.2, 0.5, 0.3]))
    head, num = MultiCategoricalHead(3, (2, 3)), 50_000
    noise = head.draw_noise((num,), torch.Generator().manual_seed(3))
    sample = head.sample(torch.cat(training).log().expand(num, 5), noise)
    counts = (sample[:, 0] * 3 + sample[:, 1]).bincount(minlength=6)
    assert chi_square(counts, torch.outer(*training).flatten()) < 20.5  # 5 degrees of freedom


@pytest.mark.parametrize("uniform", [0.0, 2.0**-24, 0.5, LARGEST_UNIFORM])
@pytest.mark.parametrize("num_actions", [1, 2, 17, 1000])
def test_categorical_samples_are_in_range_for_every_uniform(uniform, num_actions):
    logits = 5.0 * torch.randn(200, num_actions)
    sample = CategoricalHead(3, num_actions).sample(logits, torch.full((200,), uniform))
    assert sample.dtype == torch.int64
    assert sample.min() >= 0 and sample.max() < num_actions


def test_categorical_never_samples_what_has_no_probability():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0]]).expand(4, 4)
    sample = CategoricalHead(3, 4).sample(logits, torch.tensor([0.0, 0.49, 0.5, LARGEST_UNIFORM]))
    assert sample.tolist() == [1, 1, 3, 3]


# --- network -------------------------------------------------------------------------------------


def test_separate_trunks_share_nothing_and_a_shared_trunk_everything():
    obs, none, start = torch.randn(5, 3), torch.zeros(5, 0), torch.zeros(5, dtype=torch.bool)
    for shared in (True, False):
        model = make_model(shared, core="identity")
        _, _, value = evaluate_rows(model, obs, torch.zeros(5, dtype=torch.int64), none, start)
        value.sum().backward()
        reached = [p.grad is not None and bool(p.grad.any()) for p in model.trunks[0].parameters()]
        assert all(reached) if shared else not any(reached)


def test_act_says_what_evaluate_says_of_its_action():
    model = make_model(shared=True)
    obs, state, start = torch.randn(5, 3), model.initial_state(5), torch.ones(5, dtype=torch.bool)
    act = model.act(obs, state, start, model.draw_noise((5,), torch.Generator().manual_seed(0)))
    log_prob, _, value = evaluate_rows(model, obs, act.action, state, start)
    torch.testing.assert_close(act.log_prob, log_prob)
    torch.testing.assert_close(act.value, value)
    torch.testing.assert_close(act.value, model.value(obs, state, start))
    assert not act.log_prob.requires_grad and log_prob.requires_grad


def test_first_policy_is_nearly_uniform():
    head = CategoricalHead(64, 6)
    _, entropy = head.log_prob_entropy(head(torch.randn(50, 64)), torch.zeros(50, dtype=torch.int64))
    assert entropy.min() > 0.99 * math.log(6)


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_lstm_stepped_equals_the_sequence_with_starts_anywhere(shared):
    model = make_model(shared)
    assert model.state_size == (16 if shared else 32)
    obs, action = torch.randn(9, 5, 3), torch.randint(4, (9, 5))
    start = torch.rand(9, 5) < 0.3
    first = torch.randn(5, model.state_size)
    whole = evaluate_rows(model, obs, action, first, start)
    state, steps = first, []
    for t in range(9):
        params, value, after = model(obs[t], state, start[t])
        steps.append((*model.head.log_prob_entropy(params, action[t]), value))
        state = after
    for got, want in zip(whole, zip(*steps, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(want))
    torch.testing.assert_close(model(obs, first, start)[2], state)


def test_lstm_forgets_at_a_start_and_only_there():
    core = LSTMCore(3, 4)
    features, state = torch.randn(2, 3), torch.randn(2, 8)
    out, after = core(features, state, torch.tensor([True, False]))
    h, c = core.cell(features, (torch.zeros(2, 4), torch.zeros(2, 4)))
    kept_h, kept_c = core.cell(features, (state[:, :4], state[:, 4:]))
    torch.testing.assert_close(after[0], torch.cat((h[0], c[0])))
    torch.testing.assert_close(after[1], torch.cat((kept_h[1], kept_c[1])))
    torch.testing.assert_close(out, after[:, :4])


def test_no_gradient_flows_over_a_start():
    model = make_model(shared=True)
    obs = torch.randn(4, 1, 3, requires_grad=True)
    start = torch.tensor([[True], [False], [True], [False]])
    _, value, _ = model(obs, model.initial_state(1), start)
    value[3].sum().backward()
    assert [bool(row.any()) for row in obs.grad] == [False, False, True, True]


# --- normalisers ---------------------------------------------------------------------------------


def test_obs_moments_are_those_of_all_valid_rows_so_far():
    normalizer, rows = ObsNormalizer((3,)), []
    rng = np.random.default_rng(0)
    for num_steps in (1, 5, 8, 2):
        obs = (100.0 + rng.normal(size=(num_steps, 4, 3)) * [1.0, 10.0, 0.01]).astype(np.float32)
        valid = rng.random((num_steps, 4)) < 0.7
        obs[~valid] = 1e6
        normalizer.update([(torch.from_numpy(obs), torch.from_numpy(valid))], Alone())
        rows.append(obs[valid].astype(np.float64))
    together = np.concatenate(rows)
    np.testing.assert_allclose(normalizer.moments.mean.numpy(), together.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(normalizer.moments.var.numpy(), together.var(axis=0), rtol=1e-9)
    assert normalizer.moments.count.item() == len(together)
    expected = (together - together.mean(axis=0)) / np.sqrt(together.var(axis=0) + 1e-8)
    got = normalizer(torch.from_numpy(together).float())
    np.testing.assert_allclose(got.numpy(), expected.clip(-10.0, 10.0), atol=2e-3)


def test_obs_normalizer_begins_as_the_identity_and_takes_in_no_rows():
    normalizer, obs = ObsNormalizer((2,)), torch.randn(6, 2)
    normalizer.update([(obs.unsqueeze(0), torch.zeros(1, 6, dtype=torch.bool))], Alone())
    torch.testing.assert_close(normalizer(obs), obs)
    assert normalizer(torch.tensor([[99.0, -99.0]])).tolist() == [[10.0, -10.0]]


def standardize_slowly(images, seen, scale):
    """By the moments of `seen` `[M, ...]`, whose pixels have statistics of their own."""
    seen = seen.astype(np.float64)
    return ((images - seen.mean(axis=0)) / np.sqrt(seen.var(axis=0) + (0.01 / scale) ** 2)).clip(-10.0, 10.0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("stored", ["frames", "whole", "rows with a mask"])
@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 5, 6), (5, 6, 2)])
def test_pixels_are_standardised_by_their_own_statistics(shape, stored, dtype):
    rng, is_last = np.random.default_rng(0), shape[2] == 2
    scale = 1.0 if dtype == torch.float32 else 1.0 / 255.0
    normalizer = ImageNormalizer(shape, not is_last, scale)
    obs = rng.integers(0, 256, (7, 3, *(shape[1:] if stored == "frames" and not is_last else shape))).astype(np.uint8)
    obs[..., 0] = 87  # never changes
    rows = torch.from_numpy(obs).to(dtype)
    if stored == "rows with a mask":
        rows = torch.cat([rows.flatten(2), torch.ones(7, 3, 4, dtype=dtype)], dim=2)
    valid = torch.from_numpy(rng.random((7, 3)) < 0.7)
    normalizer.update([(rows[:4], valid[:4])], Alone())
    normalizer.update([(rows[4:], valid[4:])], Alone())
    chosen = obs[valid.numpy()]
    images = rng.integers(0, 256, (4, *shape))
    expected = standardize_slowly(images, chosen if is_last else chosen.reshape(-1, 5, 6), scale)
    np.testing.assert_allclose(normalizer(torch.from_numpy(images)).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert (np.abs(expected) == 10.0).any() and (np.abs(expected) < 10.0).any()


def test_image_normalizer_begins_as_the_scale():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 3, 1).expand(1, 3, 3, 5)
    torch.testing.assert_close(ImageNormalizer((3, 3, 5), True, 1 / 255)(images), images / 255, rtol=1e-3, atol=0.0)


def test_acting_and_learning_leave_the_statistics_alone():
    model = make_model(shared=True, normalizer=ObsNormalizer((3,)))
    model.obs_normalizer.update([(torch.randn(8, 4, 3), torch.ones(8, 4, dtype=torch.bool))], Alone())
    before = {name: value.clone() for name, value in model.obs_normalizer.state_dict().items()}
    obs, state, start = 50.0 * torch.randn(4, 3), model.initial_state(4), torch.ones(4, dtype=torch.bool)
    act = model.act(obs, state, start, torch.rand(4))
    model.greedy(obs, state, start)
    model.value(obs, state, start)
    evaluate_rows(model, obs, act.action, state, start)
    assert all(torch.equal(value, before[name]) for name, value in model.obs_normalizer.state_dict().items())


def draw_rewards(rng, num_steps, num_envs, before):
    """Return reward, valid and done of NEXT_STEP rows; `before` says which envs were done."""
    reward = rng.normal(2.0, 3.0, (num_steps, num_envs)).astype(np.float32)
    valid, done = np.ones((num_steps, num_envs), bool), np.zeros((num_steps, num_envs), bool)
    for t in range(num_steps):
        valid[t] = ~before
        reward[t, before] = 0.0
        before = done[t] = (rng.random(num_envs) < 0.3) & valid[t]
    return reward, valid, done


def scale_rewards(normalizer, reward, valid, done):
    normalizer.moments.merge("reward", normalizer.measure(reward, valid, done)[None], Alone())
    return normalizer(reward)


def test_reward_normalizer_equals_a_slow_one_across_rollouts():
    normalizer, rng = RewardNormalizer(3, 0.9), np.random.default_rng(1)
    returns, running, before = [], np.zeros(3), np.zeros(3, bool)
    for num_steps in (4, 1, 7):
        reward, valid, done = draw_rewards(rng, num_steps, 3, before)
        before = done[-1]
        got = scale_rewards(normalizer, *(torch.from_numpy(part) for part in (reward, valid, done)))
        for t, n in itertools.product(range(num_steps), range(3)):
            if valid[t, n]:
                running[n] = running[n] * 0.9 + float(reward[t, n])
                returns.append(running[n])
            if done[t, n]:
                running[n] = 0.0
        expected = (reward / np.sqrt(np.var(returns) + 1e-8)).clip(-10.0, 10.0)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5)
        assert normalizer.moments.count.item() == len(returns)


@pytest.mark.parametrize("make", [lambda: ObsNormalizer((3,)), lambda: RewardNormalizer(4, 0.99)])
def test_normalizers_come_back_from_their_state_dict(make):
    def feed(normalizer, seed):
        rng = torch.Generator().manual_seed(seed)
        valid, done = torch.rand(6, 4, generator=rng) < 0.8, torch.rand(6, 4, generator=rng) < 0.2
        if isinstance(normalizer, ObsNormalizer):
            normalizer.update([(torch.randn(6, 4, 3, generator=rng), valid)], Alone())
        else:
            scale_rewards(normalizer, torch.randn(6, 4, generator=rng) * valid, valid, done)

    one, two = make(), make()
    feed(one, 0)
    two.load_state_dict(one.state_dict())
    feed(one, 1)
    feed(two, 1)
    assert one.state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


def test_null_normalizers_hand_back_what_they_are_given():
    obs = torch.randn(2, 3)
    assert NoObsNormalizer()(obs) is obs
    assert NoRewardNormalizer()(obs) is obs
    assert NoObsNormalizer().state_dict() == NoRewardNormalizer().state_dict() == {}


def test_the_config_defaults_build_the_network_of_the_lecture():
    config = ModelConfig()
    assert (config.hidden_sizes, config.activation, config.shared_trunk) == ((128, 128), "relu", True)


@pytest.mark.parametrize(
    ("env_id", "settings", "words"),
    [
        (
            "CartPole-v1",
            {"dependent_std": True},
            "dependent_std is True, expected False: .* Discrete",
        ),
        (
            "Pendulum-v1",
            {"dependent_std": True, "log_std_init": -5.0},
            "log_std_init is -5.0, expected .* above -5",
        ),
        ("Pendulum-v1", {"dependent_std": True, "log_std_init": 2.0}, "log_std_init is 2.0, .* below 2 with dependent"),
    ],
)
def test_a_deviation_that_does_not_go_is_refused_in_a_sentence(env_id, settings, words):
    with pytest.raises(ValueError, match=words):
        make_training(env_id=env_id, vectorization="sync", num_envs=2, **settings)


def test_the_kind_of_deviation_is_a_setting():
    for dependent, kind, size in ((False, GaussianHead, 1), (True, DependentGaussianHead, 2)):
        training = make_training(env_id="Pendulum-v1", num_envs=2, dependent_std=dependent, log_std_init=-0.5)
        assert isinstance(training.model.head, kind) and training.model.head.layer.out_features == size


# --- encoders of the user's own, and threads -----------------------------------------------------


class Sized(nn.Module):
    """Takes a number where it is given a space."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, 8)


class Pair(nn.Module):
    """Returns two tensors, as a network with two heads does."""

    def forward(self, obs):
        return obs, obs


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        (lambda _: 5, "TypeError: it returned 5"),
        (lambda _: nn.Linear(7, 8), "RuntimeError: mat1 and mat2 shapes cannot be multiplied .*"),
        (lambda _: Pair(), "TypeError: its module returned a tuple"),
        (Sized, "TypeError: .*"),
        (lambda: nn.Linear(3, 8), "TypeError: .* takes 0 positional arguments but 1 was given"),
    ],
)
def test_an_encoder_that_fails_is_one_sentence(encoder, words):
    says = (
        rf"^encoder <?test_models:\w+>? failed for observations of shape \(3,\): {words}; expected a function from an "
        r"observation space to a module that maps \[\.\.\., 3\] to \[\.\.\., D\]\.$"
    )
    with pytest.raises(ValueError, match=says):
        build_model(ModelConfig(), SPACES, encoder=encoder)


BUILT = nn.Linear(3, 8)


def test_an_encoder_that_was_built_already_is_refused():
    says = "^encoder is a Linear that was built already, expected a function from an observation space to a module"
    with pytest.raises(ValueError, match=says):
        name_encoder(BUILT)
    with pytest.raises(ValueError, match=says):
        build_model(ModelConfig(encoder="test_models:BUILT"), SPACES)


def test_models_that_are_built_at_the_same_time_have_the_weights_of_their_seeds():
    def make_slow(space):
        first = nn.Linear(space.shape[0], 8)
        time.sleep(0.02)  # in which another thread would draw
        return nn.Sequential(first, nn.Linear(8, 8))

    def build(seed):
        return parameters_to_vector(build_model(ModelConfig(), SPACES, seed, make_slow).parameters())

    seeds = [0, 1, 0, 1]
    expected = [build(seed) for seed in seeds]
    with ThreadPoolExecutor(len(seeds)) as pool:
        for weights, right in zip(pool.map(build, seeds), expected, strict=True):
            assert torch.equal(weights, right)
    assert not torch.equal(*expected[:2])
