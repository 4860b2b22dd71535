"""Beginning with the policy of another run: what is taken, what is new, in one process and in several."""

from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from run_envs import Opaque
from run_support import SMALL
from torch import nn

import fastac
from fastac.contract import read_branch
from fastac.runs.run_dir import RunDirectory

NORMALIZED = {"normalize_obs": True, "normalize_reward": True}


class ThreeActions(Opaque):
    action_space = gym.spaces.Discrete(3)


class TwoByTwo(Opaque):
    action_space = gym.spaces.MultiDiscrete([1, 1])

    def step(self, action):
        return super().step(action.sum())


class WideObs(Opaque):
    observation_space = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)

    def _show(self, number: float) -> np.ndarray:
        return np.full(3, number, np.float32)


def make_encoder(space: gym.spaces.Box) -> nn.Module:
    return nn.Linear(space.shape[0], 8)


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("origin") / "run"
    return fastac.train(Opaque, run_dir=folder, **{**SMALL, **NORMALIZED}, total_env_steps=320, shared_trunk=True)


def begin(env, origin, tmp_path, caplog, **settings):
    """Begin a run; return its session, and what its log says about the transfer."""
    caplog.set_level("INFO", "fastac")
    small = {name: value for name, value in SMALL.items() if name != "hidden_sizes"}
    path = origin.directory
    session = fastac.start(
        env, run_dir=tmp_path / "run", init_from=str(path), **{**small, "total_env_steps": 320, **settings}
    )
    (told,) = [text for text in caplog.messages if text.startswith("beginning with the policy of")]
    return session, told.partition("; ")[2]


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_parts(session, origin) -> set[str]:
    """Return the first names of those tensors that are the origin's."""
    own, other = weights(session.training.model), origin.policy.model.state_dict()
    same = {n for n, v in own.items() if n in other and v.shape == other[n].shape and bool((v == other[n]).all())}
    return {re.sub(r"\.(layers?|cell|moments)\..*|\.(weight|bias)$", "", name) for name in same}


ALL = {"obs_normalizer", "trunks.0.encoder", "head", "value_head"}


def test_the_same_spaces_take_everything(origin, tmp_path, caplog):
    session, told = begin(Opaque, origin, tmp_path, caplog, normalize_obs=True)
    with session:
        assert told == "taken: observation statistics, encoder, policy head, value head, reward statistics"
        assert same_parts(session, origin) == ALL
        assert session.config.model == origin.config.model  # though the defaults are others
        shard = read_branch(read_branch(session.training.get_state(), "shards"), "0")
        saved = RunDirectory.open(origin.directory).load_checkpoint("best").state
        known = read_branch(read_branch(read_branch(saved, "training"), "shards"), "0")
        count, kept = (read_branch(each, "reward_normalizer")["moments.count"] for each in (shard, known))
        assert float(count) == float(kept) > 0.0
        report = next(iter(session))
        assert (report.iteration, report.updates) == (1, 1)
    assert fastac.load(tmp_path / "run").config.run.init_from == str(origin.directory.absolute())


@pytest.mark.parametrize("env", [ThreeActions, TwoByTwo], ids=["more", "another kind with the same shapes"])
def test_other_actions_get_a_new_head(origin, tmp_path, caplog, env):
    session, told = begin(env, origin, tmp_path, caplog)
    with session:
        assert told == "taken: observation statistics, encoder, value head, reward statistics; new: policy head"
        assert same_parts(session, origin) - {"head"} == ALL - {"head"}
        assert session.training.model.head.layer.weight.detach().norm() < 0.1  # as it is built


def test_other_observations_get_a_new_encoder(origin, tmp_path, caplog):
    session, told = begin(WideObs, origin, tmp_path, caplog)
    with session:
        assert told == "taken: policy head, value head; new: observation statistics, encoder"
        assert {"head", "value_head"} <= same_parts(session, origin)
        assert not {"trunks.0.encoder"} & same_parts(session, origin)


def test_given_settings_of_the_network_win(origin, tmp_path, caplog):
    session, told = begin(Opaque, origin, tmp_path, caplog, activation="relu", normalize_obs=False)
    with session:
        assert told.endswith("new: encoder; not used: observation statistics")


def test_nothing_that_fits_is_refused_and_nothing_is_written(origin, tmp_path):
    settings = {**SMALL, "hidden_sizes": (4,), "normalize_obs": False}
    with pytest.raises(ValueError, match=r"init_from is .*, but no part of its network fits this run"):
        fastac.start(ThreeActions, run_dir=tmp_path / "run", init_from=str(origin.directory), **settings)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="holds no fastac run"):
        fastac.start(Opaque, run_dir=tmp_path / "run", init_from=str(tmp_path))


def test_workers_in_step_begin_with_the_same_policy(origin, tmp_path, caplog):
    ends = []
    for workers in (1, 2):
        caplog.clear()
        session, _ = begin(Opaque, origin, tmp_path / str(workers), caplog, shards=2, workers=workers)
        fastac.complete(session)
        ends.append(weights(fastac.load(tmp_path / str(workers) / "run", checkpoint="last").policy.model))
    assert all(bool((value == ends[1][name]).all()) for name, value in ends[0].items())


def test_a3c_begins_with_the_policy_of_workers_in_step(origin, tmp_path, caplog):
    session, told = begin(Opaque, origin, tmp_path, caplog, algo="a3c", workers=1, num_envs=2)
    with session:
        assert "reward statistics" in told
        state = session.training.get_state()
        session.training.model.load_state_dict(state["model"])
        assert same_parts(session, origin) == ALL
        for report in session:
            assert report.env_steps > 0
    session, told = begin(Opaque, fastac.load(tmp_path / "run"), tmp_path / "back", caplog.clear() or caplog)
    with session:
        assert told.startswith("taken: observation statistics, encoder")


def test_an_encoder_of_ones_own_is_taken_from_a_function(tmp_path, caplog):
    def local(space):
        return make_encoder(space)

    settings = {**SMALL, "total_env_steps": 64}
    first = fastac.train(Opaque, run_dir=tmp_path / "first", encoder=local, **settings)
    with pytest.raises(ValueError, match="cannot be imported"):
        fastac.start(Opaque, run_dir=tmp_path / "run", init_from=str(first.directory), **settings)
    session, told = begin(Opaque, first, tmp_path, caplog, encoder=local)
    with session:
        assert told.startswith("taken: observation statistics, actor's encoder, critic's encoder, policy head")
