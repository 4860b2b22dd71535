"""Evaluation counts the episodes it was assigned, all of them, in raw reward, by greedy or sampled actions."""

import json
import math
from contextlib import closing

import gymnasium
import numpy as np
import pytest
import torch
from core_support import CHAINS, CPU, PROBES, EarlyStart, KnownPolicy, make_chains, make_training, transitions
from evaluation_support import SHORT_LONG, SMALL, Idle, evaluate, make_slow, play

import fastac
from fastac.build import build_envs, build_model, evaluation_seed, evaluation_width
from fastac.cli import main
from fastac.config import Config, EnvConfig, ModelConfig
from fastac.contract import EnvFailure
from fastac.envs import adapt, make_vec
from fastac.envs.infos import NOTHING
from fastac.runs.evaluate import MOST_STEPS, action_noise
from fastac.runs.evaluator import Request, Stage


class Lengths:
    """Stands in for environments whose every episode's length is known beforehand; reward 1 a step."""

    extras = NOTHING
    frame_skip, max_episode_steps = 1, None

    def __init__(self, lengths):
        envs = make_vec(EnvConfig(SHORT_LONG, 1, "sync"), np.random.SeedSequence(0))
        self.single_observation_space, self.single_action_space = (
            envs.single_observation_space,
            envs.single_action_space,
        )
        self.lengths, self.num_envs = lengths, len(lengths)

    def reset(self, obs, start):
        self._episode, self._left = np.zeros(self.num_envs, int), np.array([row[0] for row in self.lengths])
        self._done = np.zeros(self.num_envs, bool)
        start.fill(True)

    def rest(self, mask):
        pass  # as where all are stepped at once

    def step(self, action, row):
        row.valid[...], row.start[...] = ~self._done, self._done
        self._left -= row.valid
        row.reward[...] = row.valid
        row.terminated[...] = row.valid & (self._left == 0)
        row.truncated.fill(False)
        self._done = row.terminated.copy()
        for n in np.flatnonzero(self._done):
            self._episode[n] += 1
            self._left[n] = self.lengths[n][self._episode[n]]


def draw_lengths(num_envs, episodes):
    rng = np.random.default_rng(7)
    return rng.choice([1, 50], size=(num_envs, episodes + 60))


def assigned(lengths, episodes):
    """Return the lengths of each env's share of the episodes."""
    num = len(lengths)
    return [length for n, row in enumerate(lengths) for length in row[: episodes // num + (n < episodes % num)]]


def first_to_finish(lengths, episodes):
    """Return the lengths of the first episodes that end: the biased way."""
    ends = [(end, n, k) for n, row in enumerate(lengths) for k, end in enumerate(np.cumsum(row))]
    return [lengths[n][k] for _, n, k in sorted(ends)[:episodes]]


@pytest.mark.parametrize("num_envs", [1, 3, 8, 64])
def test_the_mean_is_of_the_episodes_assigned_beforehand(num_envs):
    lengths = draw_lengths(num_envs, 100)
    result = evaluate(Idle(), Lengths(lengths), 100, CPU)
    assert sorted(result.lengths.tolist()) == sorted(assigned(lengths, 100))
    assert result.mean_return == np.mean(assigned(lengths, 100)) == result.mean_length
    assert result.std_return == pytest.approx(np.std(assigned(lengths, 100)))


def test_counting_the_first_to_finish_would_be_biased():
    lengths = draw_lengths(64, 100)
    assert np.mean(first_to_finish(lengths, 100)) < 20.0
    assert np.mean(assigned(lengths, 100)) > 23.0


@pytest.mark.parametrize("num_envs", [1, 8, 64])
def test_the_mean_of_short_and_long_episodes_is_unbiased(num_envs):
    envs = make_vec(EnvConfig(SHORT_LONG, num_envs, "sync"), np.random.SeedSequence(5))
    result = evaluate(Idle(), envs, 320, CPU)
    # The mean of 320 fair choices of 1 or 50 deviates by 24.5 / sqrt(320) = 1.4; first-to-finish gives less.
    assert result.mean_return == pytest.approx(25.5, abs=3.5 * 1.4)
    assert set(result.lengths.tolist()) == {1, 50}
    assert result.returns.tolist() == result.lengths.tolist()
    assert len(result.returns) == 320


@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled", "own"])
def test_returns_and_lengths_of_the_chains_are_exact_in_every_mode(mode):
    result = evaluate(KnownPolicy(), make_chains(mode), 12, CPU)
    expected = []
    for chain in CHAINS:
        episodes = {}
        for step in transitions(**chain):
            if step.episode == 3:
                break
            total, length = episodes.get(step.episode, (0.0, 0))
            episodes[step.episode] = (total + step.reward, length + 1)
        expected += episodes.values()
    got = sorted(zip(result.returns, result.lengths.tolist(), strict=True))
    for (got_return, got_length), (return_, length) in zip(got, sorted(expected), strict=True):
        assert got_return == pytest.approx(return_, abs=1e-4)
        assert got_length == length


@pytest.mark.parametrize("episodes", [1, 2, 5])
def test_fewer_episodes_than_envs_are_possible(episodes):
    assert len(evaluate(KnownPolicy(), make_chains("next_step"), episodes, CPU).returns) == episodes


@pytest.mark.parametrize("actions", ["greedy", "sampled"])
def test_memory_is_carried_through_an_episode_and_dropped_after_it(actions):
    class Witness(KnownPolicy):
        """Sees that its memory is the position, whatever the episode."""

        def greedy(self, obs, state, start):
            age = torch.where(start, 0.0, state[:, 0])
            ages.extend(zip((obs[:, 0] % 100).tolist(), age.tolist(), strict=True))
            return super().greedy(obs, state, start)

    ages = []
    noise = action_noise(actions, evaluation_seed(0, 0))
    evaluate(Witness(), make_chains("next_step"), 20, CPU, noise)
    assert ages and all(position == age for position, age in ages)
    ages.clear()
    evaluate(Witness(), EarlyStart(make_chains("next_step")), 20, CPU, noise)
    assert not all(position == age for position, age in ages)


def test_evaluation_changes_neither_weights_nor_statistics_nor_the_run():
    runs = []
    for watched in (False, True):
        training = make_training(
            num_envs=4, num_steps=8, normalize_obs=True, normalize_reward=True, core="lstm", lstm_size=8
        )
        for report in training.trainer.run():
            if watched:
                before = {name: value.clone() for name, value in training.model.state_dict().items()}
                evaluate(training.model, make_vec(EnvConfig("CartPole-v1", 3), np.random.SeedSequence(1)), 4, CPU)
                assert all(torch.equal(value, before[name]) for name, value in training.model.state_dict().items())
            if report.iteration == 4:
                break
        runs.append(training.model.state_dict())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


def test_rewards_are_raw_even_where_learning_scales_them():
    training = make_training(env_id=SHORT_LONG, vectorization="sync", num_envs=2, num_steps=8, normalize_reward=True)
    finished = []
    for report in training.trainer.run():
        finished += report.finished
        if report.iteration == 10:
            break
    assert finished and all(episode.return_ == episode.length for episode in finished)


class Endless(gymnasium.Env):
    """Never ends; `broken` makes its third reward NaN."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, broken=False):
        self.broken = broken

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), float("nan") if self.broken and self.steps == 3 else 1.0, False, False, {}


def test_an_evaluation_that_cannot_be_trusted_stops():
    vector = gymnasium.vector.SyncVectorEnv([lambda: Endless(broken=True)])
    envs = adapt(vector, np.random.SeedSequence(0))
    model = build_model(ModelConfig(hidden_sizes=(4,)), envs)
    with pytest.raises(EnvFailure, match=r"env 0 .* not finite in step 3"):
        evaluate(model, envs, 1)


@pytest.mark.parametrize(("num_envs", "episodes"), [(1, 1), (3, 3), (2, 5)])
def test_an_episode_without_an_end_is_cut_and_counted(num_envs, episodes):
    envs = adapt(gymnasium.vector.SyncVectorEnv([Endless] * num_envs), np.random.SeedSequence(0))
    result = evaluate(Idle(), envs, episodes, max_steps=50)
    assert result.returns.tolist() == [50.0] * episodes == result.lengths.tolist()
    assert result.cut == result.episodes == episodes


def test_an_episode_that_ends_at_the_limit_is_not_cut():
    result = evaluate(Idle(), Lengths(np.full((2, 9), 5)), 4, max_steps=5)
    assert (result.lengths.tolist(), result.cut) == ([5] * 4, 0)
    result = evaluate(Idle(), Lengths(np.array([[5] * 9, [6] * 9])), 4, max_steps=5)
    assert (sorted(result.lengths.tolist()), result.cut) == ([5] * 4, 2)


@pytest.mark.parametrize("protocol", ["dqn", "machado", "a3c"])
def test_a_game_stepped_frame_by_frame_ends_before_it_is_called_endless(protocol):
    assert EnvConfig("ALE/Pong-v5", atari_protocol=protocol, frame_skip=1).max_frames < MOST_STEPS


def test_evaluating_leaves_a_model_with_batch_statistics_as_it_is():
    config = Config().replace(num_envs=2)
    envs = build_envs(config.env, np.random.SeedSequence(0))

    def encoder(space):
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout())

    model = build_model(config.model, envs, encoder=encoder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, envs, 2, torch.device("cpu"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# --- how many environments -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "vectorization", "episodes", "num_envs"),
    [
        *(
            ("ALE/Pong-v5", "auto", *numbers)
            for numbers in [(1, 1), (25, 25), (26, 13), (30, 15), (100, 25), (101, 21)]
        ),
        *(("CartPole-v1", "native", *numbers) for numbers in [(100, 100), (128, 128), (130, 65), (1000, 125)]),
        *(("CartPole-v1", "sync", *numbers) for numbers in [(2, 2), (8, 8), (10, 5), (100, 8)]),
    ],
)
def test_no_environment_waits_while_others_play_a_round_more(env_id, vectorization, episodes, num_envs):
    assert evaluation_width(EnvConfig(env_id, 8, vectorization), episodes) == num_envs


@pytest.mark.parametrize(("episodes", "num_envs"), [(3, 3), (8, 8), (10, 5), (100, 8)])
def test_a_function_is_asked_for_no_more_environments_than_the_run_has(episodes, num_envs):
    assert evaluation_width(EnvConfig("mine", 8), episodes, make_slow) == num_envs


# --- up to a goal --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "episodes"),
    [(None, 10), (100.0, 10), (1.0, 100), (25.0, 100)],  # all episodes have 1 or 50 steps, the mean is 25.5
)
def test_a_mean_that_reaches_the_goal_is_confirmed_over_more_episodes(goal, episodes):
    lengths = np.tile([1, 50], (10, 100))
    result = evaluate(Idle(), Lengths(lengths), 10 if goal != 25.0 else 20, goal=goal, most=100)
    assert result.episodes == (20 if goal is None and episodes == 20 else episodes)


def test_a_batch_of_all_confirms_at_once():
    lengths = np.full((100, 3), 50)
    result = evaluate(Idle(), Lengths(lengths), 10, goal=40.0, most=100)
    assert (result.episodes, result.calls) == (100, 50 + 50)


def test_a_run_plays_what_may_confirm_its_target_side_by_side():
    with closing(Stage(Config(env=EnvConfig("CartPole-v1", 4)), Idle(), None)) as stage:
        result = stage.play(Request(1, 10, 100, 1.0, 500))
        few = stage.play(Request(1, 10, 100, 500.0, 500))
    assert result.episodes == 100 and result.calls <= 2 * result.lengths.max()
    assert few.episodes == 10 and sorted(few.returns) == sorted(result.returns[:10])


@pytest.mark.parametrize(
    ("length", "budget", "episodes"), [(10, 1000, 100), (10, 400, 40), (100, 400, 5), (10, 0, 5), (10, 10**15, 100)]
)
def test_steps_that_are_left_are_played(length, budget, episodes):
    result = evaluate(Idle(), Lengths(np.full((5, 40), length)), 5, most=100, budget=budget)
    assert result.episodes == episodes and set(result.lengths) == {length}


def test_a_lucky_mean_is_not_confirmed():
    lengths = np.concatenate([np.full((10, 1), 50), np.full((10, 99), 1)], axis=1)  # the first of each is long

    class Streams(Lengths):
        """Goes on with its streams where it is reset again, as environments do."""

        def reset(self, obs, start):
            again = getattr(self, "_episode", None)
            super().reset(obs, start)
            if again is not None:
                self._episode = again + 1
                self._left = np.array([row[k] for row, k in zip(self.lengths, self._episode, strict=True)])

    result = evaluate(Idle(), Streams(lengths), 10, goal=40.0, most=100)
    assert result.episodes == 30 and result.mean_return == pytest.approx((10 * 50 + 20) / 30)


# --- sampled actions -----------------------------------------------------------------------------


def make_biased(envs, probability):
    """Build a policy of two actions that takes action 1 with a probability, whatever it sees."""
    model = build_model(ModelConfig(hidden_sizes=()), envs)
    with torch.no_grad():
        model.head.layer.weight.zero_()
        model.head.layer.bias.copy_(torch.tensor([0.0, math.log(probability / (1.0 - probability))]))
    return model


def play_probe(actions, seed=0, episodes=2000):
    envs = make_vec(EnvConfig(PROBES + "ActionReward-v0", 16, "sync"), np.random.SeedSequence(0))
    return evaluate(make_biased(envs, 0.8), envs, episodes, CPU, action_noise(actions, evaluation_seed(seed, 0)))


def test_sampled_actions_come_as_often_as_the_policy_says():
    assert set(play_probe("greedy", episodes=20).returns) == {1.0}
    result = play_probe("sampled")  # 1 with probability 0.8, else -1: a deviation of 0.8 for each episode
    assert result.mean_return == pytest.approx(0.6, abs=4 * 0.8 / math.sqrt(2000))
    assert len(result.returns) == 2000


def test_samples_follow_the_evaluations_seed_and_touch_no_other_stream():
    before = torch.get_rng_state()
    first = play_probe("sampled").returns.tolist()
    assert first == play_probe("sampled").returns.tolist() != play_probe("sampled", seed=1).returns.tolist()
    assert torch.equal(before, torch.get_rng_state())


def test_what_is_sampled_from_is_no_environments_stream():
    stream = evaluation_seed(3, 500)
    noise = action_noise("sampled", stream)
    assert stream.n_children_spawned == 0  # environments are the same as with greedy actions
    others = [child.generate_state(1, np.uint64)[0] >> np.uint64(1) for child in (stream, *stream.spawn(4))]
    assert noise.initial_seed() not in others


@pytest.mark.parametrize(("algo", "workers"), [("a2c", 1), ("a3c", 2)])
def test_a_run_samples_alike_wherever_it_is_evaluated(tmp_path, algo, workers):
    settings = {**SMALL, "eval_every": 10_000, "workers": workers, "eval_actions": "sampled", "total_env_steps": 320}
    summary = fastac.train("CartPole-v1", algo, run_dir=tmp_path / "run", **settings).summary
    run = fastac.load(tmp_path / "run")
    again = play(run.config, run.policy.model, summary["env_steps"])
    assert (again.mean_return, again.std_return) == (summary["eval_mean_return"], summary["eval_std_return"])
    assert summary["eval_actions"] == "sampled"
    later = play(run.config, run.policy.model, summary["env_steps"] + 1)
    assert later.returns.tolist() != again.returns.tolist()
    greedy = play(run.config.replace(eval_actions="greedy"), run.policy.model, summary["env_steps"])
    assert greedy.returns.tolist() != again.returns.tolist()


def test_training_does_not_notice_how_it_is_evaluated(tmp_path):
    models = []
    for actions in ("greedy", "sampled"):
        settings = {**SMALL, "eval_every": 64, "eval_actions": actions, "total_env_steps": 320}
        run = fastac.train("CartPole-v1", run_dir=tmp_path / actions, checkpoint="last", **settings)
        models.append(run.policy.model.state_dict())
    assert all(map(torch.equal, *(model.values() for model in models)))


def test_eval_plays_as_the_run_was_evaluated_or_as_asked(tmp_path, capsys):
    words = ["train", "CartPole-v1", "--num-envs", "4", "--num-steps", "8", "--eval-episodes", "2", "--no-tensorboard"]
    run_dir = str(tmp_path / "run")
    assert main([*words, "--total-env-steps", "64", "--eval-actions", "sampled", "--run-dir", run_dir]) == 0
    assert "Trained on CartPole-v1: sampled mean return " in capsys.readouterr().err

    run = fastac.load(run_dir)
    results = {name: fastac.evaluate(run, 20, 1, actions=name) for name in ("greedy", "sampled")}
    assert results["greedy"].returns.tolist() != results["sampled"].returns.tolist()
    for flags, name in (((), "sampled"), (("--actions", "greedy"), "greedy"), (("--actions", "sampled"), "sampled")):
        assert main(["eval", run_dir, "--episodes", "20", "--seed", "1", *flags]) == 0
        assert f"20 {name} episodes" in capsys.readouterr().out
        assert main(["eval", run_dir, "--episodes", "20", "--seed", "1", "--json", *flags]) == 0
        assert json.loads(capsys.readouterr().out)["mean_return"] == results[name].mean_return
    assert main(["eval", run_dir, "--actions", "best"]) == 2
    with pytest.raises(ValueError, match="actions is 'best', expected greedy or sampled"):
        fastac.evaluate(run, actions="best")


def test_a_second_ctrl_c_in_an_evaluation_keeps_what_was_trained(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastac.runs.evaluator.evaluate", interrupt)
    session = fastac.start("CartPole-v1", run_dir=tmp_path / "run", **{**SMALL, "eval_every": 64})
    with pytest.raises(KeyboardInterrupt):
        for _ in session:
            pass
    monkeypatch.undo()
    assert session.is_saved
    resumed = fastac.resume(tmp_path / "run", total_env_steps=160)
    assert resumed.report.env_steps == session.report.env_steps >= 64
    assert next(iter(resumed)).iteration == session.report.iteration + 1
    resumed.finish()


# --- images --------------------------------------------------------------------------------------


class Picture(gymnasium.Env):
    """Shows in every pixel how many steps were taken, and ends after three; `dtype` is the space's."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, dtype, breaks=False):
        self.observation_space = gymnasium.spaces.Box(0, 255 if dtype == np.uint8 else 1, (2, 5, 4), dtype)
        self._breaks = breaks

    def reset(self, *, seed=None, options=None):
        self._steps = 0
        return self._show(), {}

    def step(self, action):
        self._steps += 1
        return self._show(), float("nan") if self._breaks else 1.0, self._steps == 3, False, {}

    def _show(self):
        return np.full((2, 5, 4), self._steps, self.observation_space.dtype)


@pytest.mark.parametrize(("dtype", "stored"), [(np.uint8, torch.uint8), (np.float32, torch.float32)])
def test_a_policy_sees_images_as_they_are_stored(dtype, stored):
    class Looks(Idle):
        def greedy(self, obs, state, start):
            assert obs.shape == (2, 2, 5, 4) and obs.dtype == stored
            seen.append(obs.flatten(1).unique(dim=1).flatten().tolist())
            return super().greedy(obs, state, start)

    seen = []
    envs = adapt(gymnasium.vector.SyncVectorEnv([lambda: Picture(dtype)] * 2), np.random.SeedSequence(0))
    result = evaluate(Looks(), envs, 4, CPU)
    assert result.returns.tolist() == [3.0] * 4
    assert seen == [[steps, steps] for steps in (0, 1, 2, 3, 0, 1, 2)]


def test_a_reward_that_is_not_finite_is_seen_beside_images():
    envs = adapt(gymnasium.vector.SyncVectorEnv([lambda: Picture(np.uint8, breaks=True)]), np.random.SeedSequence(0))
    with pytest.raises(EnvFailure, match=r"env 0 .* not finite in step 1"):
        evaluate(Idle(), envs, 1, CPU)
