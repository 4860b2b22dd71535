"""The collector and the learner on a chain whose every advantage is known, in every autoreset mode; mutants fail."""

import numpy as np
import pytest
import torch
from core_support import (
    CHAINS,
    GAMMA,
    LAMBDA,
    MODES,
    EarlyStart,
    KnownPolicy,
    Truth,
    estimate,
    make_chains,
    make_collector,
    weigh,
)

from fastac.contract import Phases
from fastac.rollout import EpisodeCounter, FlatMinibatches


def valid_rows(rollout):
    """Return what the rollout says, in the layout of `Truth.next`."""
    rows = {"obs": rollout.obs[:-1, :, 0], "value": rollout.value[:-1]}
    rows |= {name: getattr(rollout, name) for name in ("reward", "advantage", "return_")}
    return {name: np.where(rollout.valid, row.double().numpy(), np.nan) for name, row in rows.items()}


@pytest.mark.parametrize("lam", [0.0, LAMBDA, 1.0])
@pytest.mark.parametrize("num_steps", [1, 4, 7])
@pytest.mark.parametrize("mode", MODES)
def test_valid_rows_hold_the_truth_across_rollouts(mode, num_steps, lam):
    envs = make_chains(mode)
    collector, truth = make_collector(envs, num_steps), Truth()
    for _ in range(24 // num_steps):
        rollout = collector.collect(Phases())
        estimate(rollout, gae_lambda=lam)
        expected = truth.next(rollout.valid.numpy(), lam=lam)
        for name, row in valid_rows(rollout).items():
            np.testing.assert_allclose(row, expected[name], rtol=1e-5, atol=2e-4, err_msg=name)
    envs.close()


def test_every_mode_gives_the_same_advantages_for_the_same_transitions():
    # Episodes that end within the rollout do not depend on where it is cut, so all modes must agree on them.
    tables = {}
    for mode in MODES:
        rollout = make_collector(make_chains(mode), 60).collect(Phases())
        estimate(rollout)
        table = {}
        for n in range(len(CHAINS)):
            ends = np.flatnonzero(rollout.done[:, n].numpy())
            for t in np.flatnonzero(rollout.valid[: ends[-1] + 1, n].numpy()):
                numbers = (rollout.reward[t, n], rollout.value[t, n], rollout.advantage[t, n], rollout.return_[t, n])
                table[n, float(rollout.obs[t, n, 0])] = [float(number) for number in numbers]
        tables[mode] = table
    common = set.intersection(*(set(table) for table in tables.values()))
    assert len(common) > 100
    for mode, table in tables.items():
        for key in common:
            assert table[key] == pytest.approx(tables["next_step"][key], rel=1e-5, abs=2e-4), (mode, key)


@pytest.mark.parametrize("mode", MODES)
def test_modes_that_reset_at_once_lose_no_row_and_next_step_loses_one_per_episode(mode):
    rollout = make_collector(make_chains(mode), 30).collect(Phases())
    lost = int((~rollout.valid).sum())
    if mode in ("same_step", "disabled"):
        assert lost == 0
        assert torch.equal(rollout.start[1:], rollout.done)
        assert torch.equal(rollout.out_of_band, rollout.truncated & ~rollout.terminated)
    else:
        assert lost == int(rollout.done[:-1].sum())
        assert torch.equal(rollout.start[1:], ~rollout.valid)
        assert not rollout.out_of_band.any()
    assert rollout.start[0].all()


def test_first_advantages_by_hand():
    # Chain 0: rewards 1, 2.1, 3 and the end, then 11 and a time limit.
    rollout = make_collector(make_chains("next_step"), 6).collect(Phases())
    estimate(rollout)
    value = [3 * np.sin(p) + 7 + 2 * p for p in range(3)]
    deltas = [1 + 0.9 * value[1] - value[0], 2.1 + 0.9 * value[2] - value[1], 3 - value[2]]
    expected = [
        deltas[0] + 0.72 * deltas[1] + 0.72**2 * deltas[2],
        deltas[1] + 0.72 * deltas[2],
        deltas[2],
        None,  # the reset
        11 + 0.9 * (3 * np.sin(101) + 9) - (3 * np.sin(100) + 7),
        None,
    ]
    assert rollout.valid[:, 0].tolist() == [number is not None for number in expected]
    for t, number in enumerate(expected):
        if number is not None:
            assert float(rollout.advantage[t, 0]) == pytest.approx(number, abs=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_episodes_are_counted_over_valid_rows_in_every_mode(mode):
    collector, counter = make_collector(make_chains(mode), 5), EpisodeCounter(5, len(CHAINS))
    finished = [episode for _ in range(20) for episode in counter.count(collector.collect(Phases()))]
    # Env 1's k-th episode is one step that pays 10 k + 1 (100 k is even).
    singles = [episode.return_ for episode in finished if episode.length == 1]
    assert {10.0 * k + 1 for k in range(30)} <= set(singles)
    # Chain 0's first: 1 + 2.1 + 3; chain 2's first two: 1 + 2.1 and 11 + 12.1 + 13 + 14.1 + 15.
    for return_, length in ((6.1, 3), (3.1, 2), (65.2, 5)):
        assert any(e.length == length and e.return_ == pytest.approx(return_, abs=1e-4) for e in finished)


# --- mutants -------------------------------------------------------------------------------------


@pytest.fixture
def rollout():
    collector = make_collector(make_chains("next_step"), 20)
    rollout = collector.collect(Phases())
    estimate(rollout)
    return rollout


def expected_of(rollout):
    return Truth().next(rollout.valid.numpy())


def error(rollout, advantage):
    """Return the largest deviation from the truth over valid rows."""
    return float(np.nanmax(np.abs(np.asarray(advantage, np.float64) - expected_of(rollout)["advantage"])))


def mutant_gae(rollout, *, alive=None, carry=None, bonus=None):
    """Generalised advantage estimation with a factor replaced."""
    reward, value = rollout.reward.numpy().copy(), rollout.value.numpy()
    terminated, done = rollout.terminated.numpy(), rollout.done.numpy()
    alive = ~terminated if alive is None else alive
    carry = ~done if carry is None else carry
    reward += 0.0 if bonus is None else bonus
    advantage, following = np.zeros_like(reward), 0.0
    for t in reversed(range(len(reward))):
        delta = reward[t] + GAMMA * alive[t] * value[t + 1] - value[t]
        following = delta + GAMMA * LAMBDA * carry[t] * following
        advantage[t] = following
    return advantage


def test_fastac_and_the_unmutated_formula_equal_the_truth(rollout):
    assert error(rollout, rollout.advantage) < 1e-3
    assert error(rollout, mutant_gae(rollout)) < 1e-3


def test_mutant_bootstrap_through_termination(rollout):
    assert error(rollout, mutant_gae(rollout, alive=np.ones((20, 4)))) > 1.0


def test_mutant_truncation_taken_for_termination(rollout):
    assert error(rollout, mutant_gae(rollout, alive=~rollout.done.numpy())) > 1.0


def test_mutant_truncation_wins_over_termination(rollout):
    both = (rollout.terminated & rollout.truncated).numpy()
    assert both.any()
    assert error(rollout, mutant_gae(rollout, alive=~rollout.terminated.numpy() | both)) > 1.0


def test_mutant_bootstrap_from_the_observation_before_the_step(rollout):
    cut = (rollout.truncated & ~rollout.terminated).numpy()
    bonus = GAMMA * rollout.value[:-1].numpy() * cut
    assert error(rollout, mutant_gae(rollout, alive=~rollout.done.numpy(), bonus=bonus)) > 1.0


def test_mutant_lambda_leaks_over_a_done(rollout):
    assert error(rollout, mutant_gae(rollout, carry=np.ones((20, 4)))) > 1.0


def test_mutant_lambda_leaks_over_a_truncation(rollout):
    assert error(rollout, mutant_gae(rollout, carry=~rollout.terminated.numpy())) > 1.0


def test_mutant_memory_reset_on_the_final_observation():
    collector = make_collector(EarlyStart(make_chains("next_step")), 20)
    rollout = collector.collect(Phases())
    estimate(rollout)
    assert error(rollout, rollout.advantage) > 1.0


def test_mutant_memory_never_reset():
    class Forgetless(KnownPolicy):
        def act(self, obs, state, start, noise):
            return super().act(obs, state, torch.zeros_like(start), noise)

    rollout = make_collector(make_chains("next_step"), 20, Forgetless()).collect(Phases())
    estimate(rollout)
    assert error(rollout, rollout.advantage) > 1.0


def test_mutant_no_mask_on_rows_that_are_not_transitions(rollout):
    advantage = expected_of(rollout)["advantage"]
    batch = next(FlatMinibatches(1, torch.Generator()).split(rollout))
    weighted = float((batch.advantage * weigh(batch.valid)).sum())
    assert weighted == pytest.approx(np.nanmean(advantage), rel=1e-5)
    assert abs(float(rollout.advantage.mean()) - np.nanmean(advantage)) > 0.5


def test_mutant_valid_taken_from_the_same_row(rollout):
    # Masking the row that is done, in place of the one after it, throws the ends away and keeps the resets.
    batch = next(FlatMinibatches(1, torch.Generator()).split(rollout))
    wrong = (~rollout.done).float().flatten()
    second_moments = [float((batch.advantage.square() * w).sum()) for w in (weigh(batch.valid), wrong / wrong.sum())]
    truth = np.nanmean(np.square(expected_of(rollout)["advantage"]))
    assert second_moments[0] == pytest.approx(truth, rel=1e-5)
    assert second_moments[1] != pytest.approx(truth, rel=0.02)
