"""What a run cannot do without, timed bare: arithmetic on a clock that ticks when it is read, and no side effects."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from itertools import count, islice

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper

import fastac
from fastac.build import assemble
from fastac.cli import main
from fastac.config import Config
from fastac.kernels import Op
from fastac.learning.fused.network import BackwardPass, ForwardPass
from fastac.runs.efficiency import BareTimes, count_rows, efficiency, measure, time_call
from fastac.workers import Training

PROBES = "probes:fastac/"
BARE = BareTimes(1.0, 2.0, 0.5, 0.25, 3, 4)
FLAGS = ("--num-envs", "4", "--num-steps", "8", "--eval-every", "1e9", "--eval-episodes", "2", "--no-tensorboard")


class Clock:
    """A second per look, and what the work adds."""

    def __init__(self, tick_s: float = 1.0) -> None:
        self.now_s, self.tick_s = 0.0, tick_s

    def __call__(self) -> float:
        self.now_s += self.tick_s
        return self.now_s


def make_training(config: Config, env_factory=None) -> Training:
    return assemble(config, np.random.SeedSequence(0), env_factory)


def make_config(**settings) -> Config:
    return Config().replace(**({"num_envs": 4, "num_steps": 8, "hidden_sizes": (8,)} | settings))


# --- the clock ---------------------------------------------------------------------------------------


def test_the_median_of_the_blocks_counts():
    clock, calls = Clock(0.0), count()

    def work() -> None:  # one call that warms up, two disturbed blocks, and quiet ones
        number = next(calls)
        clock.now_s += 0.05 if number == 0 else 0.005 if number <= 4 else 0.001

    assert time_call(work, clock) == pytest.approx(0.001)


def test_what_takes_long_is_done_once_after_warming_up():
    clock = Clock(0.0)
    calls = count()

    def work() -> None:
        next(calls)
        clock.now_s += 100.0

    assert time_call(work, clock) == 100.0
    assert next(calls) == 2


# --- the arithmetic ----------------------------------------------------------------------------------


def test_a_row_needs_each_part_as_often_as_the_algorithm_does():
    assert BARE.row_s == 1.0 + 2.0 + 3 * 0.5 + 4 * 0.25


def test_efficiency_is_achieved_over_bound():
    rows, num_envs, train_wall_s, valid_share = 100, 64, 1000.0, 0.97
    achieved = rows * num_envs * valid_share / train_wall_s
    bound = num_envs * valid_share / BARE.row_s
    assert efficiency(BARE, rows, train_wall_s) == pytest.approx(achieved / bound)


def test_rows_that_wait_for_the_longest_episode_were_not_needed():
    assert count_rows(make_config(), iterations=5, env_steps=150) == 40
    assert count_rows(make_config(collect="episodes"), iterations=5, env_steps=60) == 15


@pytest.mark.parametrize(
    ("settings", "learn_forwards", "backwards", "batch_rows"),
    [
        ({}, 0, 1, 32),
        ({"reuse_forward": False}, 1, 1, 32),
        ({"algo": "ppo", "num_epochs": 3}, 2, 3, 32),
        ({"algo": "ppo", "num_epochs": 3, "num_minibatches": 2}, 3, 3, 16),
        ({"core": "lstm", "lstm_size": 4, "num_minibatches": 2}, 1, 1, 16),
        ({"env_id": PROBES + "ContinuousReward-v0"}, 0, 1, 32),
        ({"env_id": PROBES + "MultiDiscreteReward-v0", "shared_trunk": False}, 0, 1, 32),
        ({"normalize_obs": True, "hidden_sizes": ()}, 0, 1, 32),
    ],
)
def test_times_are_per_row_of_all_envs(settings, learn_forwards, backwards, batch_rows):
    config = make_config(**settings)
    bare = measure(config, make_training(config), config.algo.num_steps, clock=Clock())
    per_row = 4 / batch_rows  # of a whole update, which takes one tick
    assert bare == BareTimes(1.0, 1.0, per_row * (learn_forwards > 0), per_row, learn_forwards, backwards)


def test_a_custom_encoder_goes_through_autograd():
    config = make_config()
    training = assemble(config, np.random.SeedSequence(0), None, lambda space: torch.nn.Linear(space.shape[0], 3))
    assert measure(config, training, 8, clock=Clock()) == BareTimes(1.0, 1.0, 0.0, 0.125, 0, 1)


class Noise(gym.Env):
    """Episodes of two random images of bytes, `[H, W, C]`."""

    observation_space = gym.spaces.Box(0, 255, (10, 10, 3), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._is_last = False
        return self._draw(), {}

    def step(self, action):
        is_over, self._is_last = self._is_last, True
        return self._draw(), 0.0, is_over, False, {}

    def _draw(self):
        return self.np_random.integers(0, 256, (10, 10, 3), dtype=np.uint8)


def make_noise(num: int) -> SyncVectorEnv:
    return SyncVectorEnv([Noise] * num)


class Pixels(torch.nn.Module):
    """A linear layer over images of bytes; notes their leading shapes."""

    def __init__(self, seen: list[tuple[int, ...]]) -> None:
        super().__init__()
        self._seen, self.layer = seen, torch.nn.Linear(300, 3)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        assert obs.dtype == torch.uint8 and (len(obs) == 2 or len(obs.flatten(0, -4).unique(dim=0)) > 1)
        self._seen.append(tuple(obs.shape[:-3]))
        return self.layer(obs.flatten(-3) / 255.0)

    def __deepcopy__(self, memo):
        return Pixels(self._seen)


@pytest.mark.parametrize("core", ["identity", "lstm"])
def test_images_are_drawn_as_they_are_stored(core):
    seen, config = [], make_config(core=core, lstm_size=4)
    training = assemble(config, np.random.SeedSequence(0), make_noise, lambda space: Pixels(seen))
    seen.clear()
    bare = measure(config, training, 8, make_noise, clock=Clock())
    assert bare == BareTimes(1.0, 1.0, 0.0, 0.125, 0, 1)
    assert set(seen) == {(4,), (8, 4) if core == "lstm" else (32,)}


@pytest.mark.parametrize(("reuse_forward", "rows"), [(True, 32), (False, 32), (True, 400), (False, 400)])
def test_images_go_through_the_fused_network_in_chunks(monkeypatch, reuse_forward, rows):
    monkeypatch.setattr("fastac.learning.fused.gradient.CHUNK", 100)
    config = make_config(num_steps=rows // 4, reuse_forward=reuse_forward)
    seen, backward = [], BackwardPass.backward

    def see(step: BackwardPass, obs: torch.Tensor) -> None:
        assert obs.dtype == torch.uint8 and len(obs.unique()) == 256
        seen.append(len(obs))
        backward(step, obs)

    training = make_training(config, make_noise)
    monkeypatch.setattr(BackwardPass, "backward", see)
    bare = measure(config, training, config.algo.num_steps, make_noise, clock=Clock())
    assert (bare.env_s, bare.forward_s, bare.backward_s) == (1.0, 1.0, 4 / rows)
    assert seen == ([32] if rows == 32 else [100] * 4) * 2


def test_games_are_stepped_under_their_protocol(monkeypatch):
    pytest.importorskip("ale_py")
    config = make_config(env_id="ALE/Pong-v5", num_envs=2, num_steps=4, encoder="a3c")
    training = make_training(config)
    monkeypatch.setattr("gymnasium.make_vec", lambda *_, **__: pytest.fail("with ALE's defaults"))
    bare = measure(config, training, 4, clock=Clock())
    training.envs.close()
    assert bare == BareTimes(1.0, 1.0, 0.0, 0.25, 0, 1)


@pytest.mark.parametrize("reuse_forward", [True, False])
def test_every_row_of_an_update_is_gone_back_through(monkeypatch, reuse_forward):
    config = make_config(num_envs=500, num_steps=5, reuse_forward=reuse_forward)
    seen, backward = [], BackwardPass.backward

    def see(step: BackwardPass, obs: torch.Tensor) -> None:
        seen.append(len(obs))
        backward(step, obs)

    training = make_training(config)
    monkeypatch.setattr(BackwardPass, "backward", see)
    measure(config, training, 5, clock=Clock())
    assert seen == [834, 834, 832] * 2  # once to warm up


@pytest.mark.parametrize("reuse_forward", [True, False])
def test_many_environments_act_in_chunks_as_in_a_run(monkeypatch, reuse_forward):
    monkeypatch.setattr("fastac.learning.fused.gradient.CHUNK", 3)
    config = make_config(num_envs=8, num_steps=2, reuse_forward=reuse_forward)
    seen, prepare = [], ForwardPass.prepare

    def see(step: ForwardPass, obs: torch.Tensor) -> list[Op]:
        if type(step) is ForwardPass:  # of acting
            seen.append(len(obs))
        return prepare(step, obs)

    training = make_training(config)
    monkeypatch.setattr(ForwardPass, "prepare", see)
    measure(config, training, 2, clock=Clock())
    assert seen == [3, 3, 2] * (2 if reuse_forward else 1)


# --- what is stepped ---------------------------------------------------------------------------------


class Watched(VectorWrapper):
    """Notes that it is closed, and every action."""

    def __init__(self, env) -> None:
        super().__init__(env)
        self.is_closed, self.actions = False, []

    def step(self, actions):
        self.actions.append(actions)
        return super().step(actions)

    def close(self, **kwargs) -> None:
        self.is_closed = True
        super().close(**kwargs)


class Made:
    """An environment function that remembers what it made."""

    def __init__(self, mode: AutoresetMode) -> None:
        self.mode, self.envs = mode, []

    def __call__(self, num: int) -> Watched:
        self.envs.append(Watched(SyncVectorEnv([lambda: gym.make("CartPole-v1")] * num, autoreset_mode=self.mode)))
        return self.envs[-1]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_new_environments_are_stepped_and_closed(mode):
    made, config = Made(mode), make_config()
    training = make_training(config, made)
    measure(config, training, 8, made, clock=Clock(0.001))
    ours, *others = made.envs
    assert not ours.actions and not ours.is_closed
    assert others and all(env.is_closed for env in others)
    assert len(others[-1].actions) > 50  # past the end of episodes, in every mode
    assert {0, 1} == set(np.concatenate(others[-1].actions).tolist())


def test_with_workers_it_is_the_share_of_one():
    made, config = Made(AutoresetMode.NEXT_STEP), make_config(num_envs=6)
    bare = measure(config.replace(workers=2), make_training(config, made), 8, made, clock=Clock())
    assert made.envs[-1].num_envs == 3
    assert bare.backward_s == 3 / 24


def test_the_run_goes_on_as_if_nothing_had_been_measured():
    config = make_config(env_id="Acrobot-v1", normalize_obs=True)
    quiet, measured = make_training(config), make_training(config)
    streams = quiet.trainer.run(), measured.trainer.run()
    for stream in streams:
        next(stream)
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    measure(config, measured, 8, clock=Clock())
    after = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])
    for left, right in zip(*(islice(stream, 3) for stream in streams), strict=True):
        assert left.losses == right.losses
    assert all(map(torch.equal, quiet.model.state_dict().values(), measured.model.state_dict().values()))


# --- the command line --------------------------------------------------------------------------------


def train(tmp_path, *flags: str) -> int:
    return main(
        ["train", "CartPole-v1", *FLAGS, "--total-env-steps", "200", "--run-dir", str(tmp_path / "run"), *flags]
    )


def read_summary(tmp_path) -> dict:
    return json.loads((tmp_path / "run" / "summary.json").read_text())


@pytest.mark.parametrize("collect", ["steps", "episodes"])
def test_train_ends_with_the_efficiency(tmp_path, capsys, monkeypatch, collect):
    monkeypatch.setattr("fastac.runs.session._LEAST_TRAIN_S", 0.0)
    monkeypatch.setattr("fastac.runs.session.measure", lambda *_: replace(BARE, env_s=1e-9))
    assert train(tmp_path, "--collect", collect, "--num-minibatches", "1") == 0
    summary = read_summary(tmp_path)
    *_, names, spent, says, ended = capsys.readouterr().err.splitlines()
    bound = summary["sps"] / summary["efficiency"]
    percent = f"{summary['efficiency']:.0%}"
    assert says == f"Efficiency {percent}: environments and network, timed bare, make {bound:,.0f} steps/s."
    assert summary["bare_times"] == {
        **{"env_s": 1e-9, "forward_s": 2.0, "learn_forward_s": 0.5, "backward_s": 0.25},
        **{"learn_forwards": 3, "backwards": 4},
    }
    assert ended.startswith("Trained on CartPole-v1")
    assert names.startswith("Time") and spent.endswith("%")


def test_where_the_time_went_adds_up(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastac.runs.session._LEAST_TRAIN_S", math.inf)  # no line about efficiency
    assert train(tmp_path) == 0
    *_, names, spent, _ = capsys.readouterr().err.splitlines()
    summary = read_summary(tmp_path)
    clocks = {name: summary["phases"][name + "_s"] for name in ("env", "act", "advantage", "update", "other")}
    clocks["evaluation"] = summary["eval_wall_s"]
    for name, clock in clocks.items():
        end = names.index(f" {name}") + 1 + len(name)
        seconds, _, percent = spent[:end].split()[-3:]  # each right below its name's last letter
        assert seconds == f"{clock:.2f}"
        assert percent == f"{clock / (summary['train_wall_s'] + summary['eval_wall_s']):.0%}"


def test_a_short_run_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("fastac.runs.session._LEAST_TRAIN_S", 1e9)
    assert train(tmp_path) == 0
    assert (read_summary(tmp_path)["efficiency"], read_summary(tmp_path)["bare_times"]) == (None, None)


def test_only_who_asks_pays_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr("fastac.runs.session._LEAST_TRAIN_S", 0.0)
    monkeypatch.setattr("fastac.runs.session.measure", lambda *_: pytest.fail("nobody asked"))
    settings = {"num_envs": 4, "num_steps": 8, "eval_every": 0, "eval_episodes": 2, "tensorboard": False}
    run = fastac.train("CartPole-v1", run_dir=tmp_path / "run", total_env_steps=100, **settings)
    assert run.summary["efficiency"] is None


def test_a_run_is_not_lost_where_it_cannot_be_measured(tmp_path, capsys, monkeypatch, caplog):
    def fail(*_):
        raise OSError("the simulator's licence is for one process")

    monkeypatch.setattr("fastac.runs.session._LEAST_TRAIN_S", 0.0)
    monkeypatch.setattr("fastac.runs.session.measure", fail)
    assert train(tmp_path) == 0
    assert "Everything is in" in capsys.readouterr().err
    assert "efficiency was not measured: the simulator's licence is for one process" in caplog.text
    assert read_summary(tmp_path)["efficiency"] is None
