"""Frames that are stored once, and the stacks made of them: against a history kept by hand, and across rollouts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastac.contract import Phases
from fastac.envs.infos import NOTHING
from fastac.models import RewardClipper
from fastac.rollout import Collector, EpisodeCounter, FlatMinibatches, Rollout, SequenceMinibatches

FRAME = (3, 2)


def allocate(num_steps, num_envs, frame_stack):
    return Rollout.allocate(
        num_steps, num_envs, FRAME, (), torch.int64, 0, obs_dtype=torch.uint8, frame_stack=frame_stack
    )


class FrameEnvs:
    """Random frames whose episodes end at random, in NEXT_STEP order; keeps every env's true stacks."""

    extras = NOTHING
    frame_skip, description, max_episode_steps = 4, "frames", None

    def __init__(self, num_envs, frame_stack, seed, ends=0.3):
        self.num_envs, self.frame_stack = num_envs, frame_stack
        self._rng, self._ends = np.random.default_rng(seed), ends
        self._done = np.zeros(num_envs, bool)
        self.stack = np.zeros((num_envs, frame_stack, *FRAME), np.uint8)
        self.seen = []  # the stacks of every row, in order

    def _push(self, obs, start):
        obs[...] = self._rng.integers(1, 256, obs.shape, np.uint8)
        self.stack[start] = 0
        self.stack = np.concatenate([self.stack[:, 1:], obs[:, None]], axis=1)
        self.seen.append(self.stack.copy())

    def reset(self, obs, start):
        start.fill(True)
        self._done.fill(False)
        self._push(obs, start)

    def step(self, action, row):
        row.start[:], row.valid[:] = self._done, ~self._done
        row.reward[:] = row.valid
        row.terminated[:] = (self._rng.random(self.num_envs) < self._ends) & row.valid
        row.truncated.fill(False)
        row.life_lost[:] = row.terminated & (self._rng.random(self.num_envs) < 0.5)
        self._done = row.terminated & ~row.life_lost
        self._push(row.obs, row.start)

    def get_state(self):
        return None


class Watcher:
    """An actor that copies what it is shown."""

    def __init__(self, rollout):
        self._rollout, self.seen = rollout, []

    def begin(self):
        pass

    def forget(self):
        pass

    def act(self, t):
        self.seen.append(self._rollout.observation(t).numpy().copy())

    def value(self, t):
        self.last = self._rollout.observation(t).numpy().copy()

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def make(num_steps, num_envs, frame_stack, seed, ends=0.3):
    envs, rollout = FrameEnvs(num_envs, frame_stack, seed, ends), allocate(num_steps, num_envs, frame_stack)
    actor = Watcher(rollout)
    return envs, rollout, actor, Collector(envs, actor, rollout)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(2, 5), st.sampled_from([0.0, 0.2, 0.9]), st.integers(0, 99))
def test_every_observation_is_the_true_stack(num_steps, num_envs, frame_stack, ends, seed):
    envs, _, actor, collector = make(num_steps, num_envs, frame_stack, seed, ends)
    for iteration in range(1, 4):
        collector.collect(Phases())
        assert np.array_equal(actor.seen, envs.seen[: iteration * num_steps])  # rows carry over
        assert np.array_equal(actor.last, envs.seen[iteration * num_steps])


@pytest.mark.parametrize("num_minibatches", [1, 3])
def test_minibatches_hold_the_true_stacks(num_minibatches):
    envs, rollout, _, collector = make(6, 3, 4, seed=1)
    flat = FlatMinibatches(num_minibatches, torch.Generator().manual_seed(0))
    sequences = SequenceMinibatches(num_minibatches, torch.Generator().manual_seed(0))
    for iteration in range(2):
        collector.collect(Phases())
        rollout.log_prob.copy_(torch.arange(18.0).view(6, 3))  # a row's name
        true = torch.from_numpy(np.array(envs.seen[iteration * 6 :][:6])).flatten(0, 1)
        names = []
        for batch in flat.split(rollout):
            assert torch.equal(batch.obs, true[batch.log_prob.long()])
            names += batch.log_prob.tolist()
        assert sorted(names) == list(range(18))
        for batch in sequences.split(rollout):
            assert batch.obs.shape == (6, 3 // num_minibatches, 4, *FRAME)
            assert torch.equal(batch.obs, true[batch.log_prob.long()])
        assert flat.nbytes(rollout) >= batch.obs.nbytes


def test_a_part_of_a_rollout_shares_its_memory():
    _, rollout, _, collector = make(6, 3, 4, seed=1)
    collector.collect(Phases())
    whole = next(FlatMinibatches(1, torch.Generator()).split(rollout)).obs
    expected = whole[:12].clone()
    parts = [next(FlatMinibatches(1, torch.Generator()).split(rollout.first(4))).obs for _ in range(2)]
    assert all(torch.equal(part, expected) and part.data_ptr() == whole.data_ptr() for part in parts)


def test_frames_are_stored_once():
    plain, stacked = (allocate(128, 8, frame_stack).observations.rows for frame_stack in (1, 4))
    assert plain.dtype == stacked.dtype == torch.uint8 and plain.shape == stacked.shape == (129, 8, *FRAME)
    frames, stacks = allocate(1024, 8, 4).observations, 1024 * 8 * 4 * 6
    assert frames.nbytes - frames._age.nbytes - frames._index.nbytes < stacks / 3.8


def test_a_saved_rollout_goes_on_with_the_same_stacks():
    envs, _, _, collector = make(3, 2, 4, seed=5)
    collector.collect(Phases())
    state = collector.get_state()
    other = allocate(3, 2, 4)
    there = Watcher(other)
    resumed = Collector(envs, there, other)
    resumed.set_state(state)
    resumed.collect(Phases())
    assert np.array_equal(there.seen, envs.seen[3:6])


def test_restarted_episodes_forget_the_frames_before():
    _, _, actor, collector = make(3, 2, 4, seed=5, ends=0.0)
    collector.collect(Phases())
    collector.restart_episodes()
    collector.collect(Phases())
    assert (actor.seen[3][:, :3] == 0).all() and (actor.seen[3][:, 3] > 0).all()


def test_whole_episodes_go_on_over_lost_lives():
    envs, _, actor, collector = make(200, 3, 4, seed=2)
    rollout = collector.collect_episodes(Phases())
    ended = (rollout.terminated & ~rollout.life_lost).sum(dim=0)
    assert ended.tolist() == [1, 1, 1] and rollout.life_lost.any()
    assert np.array_equal(actor.seen, envs.seen[: len(actor.seen)])
    assert np.array_equal(next(FlatMinibatches(1, torch.Generator()).split(rollout)).obs, np.concatenate(actor.seen))
    episodes = EpisodeCounter(200, 3).count(rollout)
    assert len(episodes) == 3 and episodes.length.sum() == rollout.valid.sum()


def test_rewards_are_clipped_in_a_copy():
    reward = torch.tensor([[-7.0, 0.5, 1.0, 200.0, 0.0]])
    assert RewardClipper()(reward).tolist() == [[-1.0, 0.5, 1.0, 1.0, 0.0]]
    assert reward[0, 3] == 200.0
