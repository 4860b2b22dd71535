"""Films: GIF frames, speed and size, and what is said when one cannot be made."""

from __future__ import annotations

import importlib.util
import math
import re
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import DependencyNotInstalled
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import SyncVectorEnv
from PIL import Image
from probes import ContinuousReward

from fastac.build import Streams, build_envs, build_model
from fastac.config import EnvConfig, ModelConfig
from fastac.contract import EnvFailure, Episode
from fastac.envs import adapt
from fastac.runs.files import RecordError
from fastac.tools import record as record_module
from fastac.tools.policy import TrainedPolicy
from fastac.tools.record import record


class Counter(gym.Env):
    """Shows a grey that grows with each step; lasts `length` steps of reward 2; may fail."""

    observation_space = Box(-1.0, 1.0, (2,), np.float32)
    action_space = Discrete(2)
    render_mode = "rgb_array"

    def __init__(self, length=9, fps=50, size=(8, 10), fails_at=None, error=None, frame=None):
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}
        self.length, self.size, self.fails_at, self.error, self.frame = (
            length,
            size,
            fails_at,
            error or RuntimeError("boom"),
            frame,
        )
        self.closed = False

    def reset(self, *, seed=None, options=None):
        self.seed, self.t = seed, 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), 2.0, self.t == self.length, False, {}

    def render(self):
        if self.t == self.fails_at:
            raise self.error
        return np.full((*self.size, 3), 10 * self.t, np.uint8) if self.frame is None else self.frame

    def close(self):
        self.closed = True


SMALL = ModelConfig(hidden_sizes=(8,))


def make_policy(env_id="CartPole-v1", config=SMALL) -> TrainedPolicy:
    envs = build_envs(EnvConfig(env_id, 1, "sync"), Streams.spawn(0).env)
    try:
        return TrainedPolicy(build_model(config, envs), envs.single_observation_space, envs.single_action_space)
    finally:
        envs.close()


@pytest.fixture
def policy():
    class Envs:
        single_observation_space, single_action_space = Counter.observation_space, Counter.action_space

    model = build_model(ModelConfig(hidden_sizes=()), Envs())
    return TrainedPolicy(model, Envs.single_observation_space, Envs.single_action_space)


def read_gif(path) -> tuple[list[int], list[int], tuple[int, int], int]:
    """Return the frames' greys, their durations in ms, the size and the loop count (0: forever)."""
    greys, durations = [], []
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            greys.append(image.convert("RGB").getpixel((0, 0))[0])
            durations.append(image.info["duration"])
        return greys, durations, image.size, image.info["loop"]


def test_a_flattened_dict_and_squashed_actions_are_filmed_as_they_are_trained(tmp_path):
    class Shows(ContinuousReward):
        """The probe with a dict around its observation; it is told what it should do."""

        observation_space = Dict(seen=ContinuousReward.observation_space)
        render_mode = "rgb_array"
        metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 25}

        def _show(self, number):
            return {"seen": super()._show(number)}

        def render(self):
            return np.zeros((8, 10, 3), np.uint8)

    envs = adapt(SyncVectorEnv([Shows]), np.random.SeedSequence(0), squashes=True)
    model = build_model(ModelConfig(hidden_sizes=()), envs)
    with torch.no_grad():
        model.head.layer.bias.fill_(math.atanh(0.5))
        model.head.layer.weight.zero_()
    policy = TrainedPolicy(model, envs.single_observation_space, envs.single_action_space)
    episode = record(policy, Shows, tmp_path / "film.gif")
    assert episode.length == 1 and episode.return_ == pytest.approx(0.0, abs=1e-6)


def test_a_fast_environment_is_thinned_to_25_fps_and_keeps_its_speed_and_end(policy, tmp_path):
    env = Counter(length=9, fps=50)
    assert record(policy, lambda: env, tmp_path / "film.gif", seed=7) == Episode(18.0, 9)
    greys, durations, size, loop = read_gif(tmp_path / "film.gif")
    assert greys == [0, 20, 40, 60, 80, 90]  # every second of steps 0 to 9, and the last
    assert durations == [40] * 5 + [1000]
    assert size == (10, 8)
    assert loop == 0
    assert env.seed == 7
    assert env.closed
    assert list(tmp_path.iterdir()) == [tmp_path / "film.gif"]


def test_a_slow_environment_keeps_every_frame(policy, tmp_path):
    record(policy, lambda: Counter(length=3, fps=4), tmp_path / "film.gif")
    assert read_gif(tmp_path / "film.gif")[:2] == ([0, 10, 20, 30], [250] * 3 + [1000])


def test_a_rate_that_gif_cannot_tell_is_right_on_average(policy, tmp_path):
    record(policy, lambda: Counter(length=24, fps=30), tmp_path / "film.gif")
    durations = read_gif(tmp_path / "film.gif")[1]
    assert set(durations[:-1]) == {60, 70}
    assert sum(durations[:-1]) == 800  # 24 steps of 1/30 s


def test_a_large_picture_is_scaled_down(policy, tmp_path):
    record(policy, lambda: Counter(length=1, size=(300, 1000)), tmp_path / "film.gif")
    assert read_gif(tmp_path / "film.gif")[2] == (400, 120)


def test_max_steps_ends_the_film(policy, tmp_path):
    assert record(policy, lambda: Counter(fps=10), tmp_path / "film.gif", max_steps=4) == Episode(8.0, 4)
    assert read_gif(tmp_path / "film.gif")[0] == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("env", [EnvConfig("CartPole-v1"), EnvConfig("Pendulum-v1"), "CartPole-v1"])
def test_a_film_by_id_shows_the_episode_that_is_played_without_a_camera(env, tmp_path):
    env_id = env if isinstance(env, str) else env.env_id
    policy = make_policy(env_id, ModelConfig(hidden_sizes=(8,), core="lstm", lstm_size=4))
    policy.act(np.ones(policy.observation_space.shape))  # a memory that must not reach the film
    episode = record(policy, env, tmp_path / "new" / "film.gif", seed=3, max_steps=60)
    played = gym.make(env_id)
    obs, _ = played.reset(seed=3)
    return_, length, is_over = 0.0, 0, False
    while not is_over and length < 60:
        obs, reward, terminated, truncated, _ = played.step(policy.act(obs))
        return_, length, is_over = return_ + float(reward), length + 1, terminated or truncated
    played.close()
    assert episode == Episode(return_, length)
    with Image.open(tmp_path / "new" / "film.gif") as image:
        assert image.width == 400
        assert image.n_frames > 3
        pixels = np.asarray(image.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 3  # something is drawn


def test_a_film_of_500_cartpole_steps_is_small(tmp_path):
    class Balancing(TrainedPolicy):
        def act(self, obs, greedy=True, action_mask=None):
            return np.int64(3.0 * obs[2] + obs[3] + 0.1 * obs[0] + 0.3 * obs[1] > 0.0)

    trained = make_policy()
    policy = Balancing(trained.model, trained.observation_space, trained.action_space)
    assert record(policy, EnvConfig("CartPole-v1"), tmp_path / "film.gif").length == 500
    assert (tmp_path / "film.gif").stat().st_size < 1_500_000


class Pressing(TrainedPolicy):
    """Presses FIRE at whatever it sees, and keeps that and how it was asked."""

    mask_source = None

    def __init__(self):
        self.action_space, self.seen, self.asked = Discrete(4), [], set()

    def reset(self):
        pass

    def act(self, obs, greedy=True, action_mask=None):
        self.seen.append(obs)
        self.asked.add(greedy)
        return np.int64(1)


@pytest.mark.parametrize("greedy", [True, False])
def test_an_atari_game_is_played_in_full_and_filmed_in_colours_at_its_speed(tmp_path, greedy):
    policy, path = Pressing(), tmp_path / "film.gif"
    episode = record(policy, EnvConfig("ALE/Breakout-v5", 16), path, greedy=greedy)
    assert policy.asked == {greedy}
    assert {(obs.shape, obs.dtype) for obs in policy.seen} == {((4, 84, 84), np.dtype(np.uint8))}
    assert len(policy.seen) == episode.length > 100  # all five lives
    _, durations, size, _ = read_gif(path)
    assert size == (160, 210)
    assert sum(durations) - 1000 == pytest.approx(episode.length * 1000 / 15, abs=10)  # equal frames are one
    with Image.open(path) as image:
        image.seek(episode.length // 2)
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels[..., 0] > pixels[..., 2] + 50).any()  # red bricks


@pytest.mark.parametrize("env", [EnvConfig("ALE/Breakout-v5"), "ALE/Breakout-v5"])
def test_an_atari_film_ends_after_its_own_number_of_steps(tmp_path, monkeypatch, env):
    monkeypatch.setattr(record_module, "_MAX_GAME_STEPS", 5)
    assert record(Pressing(), env, tmp_path / "film.gif").length == 5
    assert record(Pressing(), env, tmp_path / "film.gif", max_steps=4).length == 4


def test_an_unknown_game_cannot_be_filmed(tmp_path):
    with pytest.raises(ValueError, match="'ALE/Pung-v5', which Gymnasium does not know: did you mean ALE/Pong-v5"):
        record(Pressing(), EnvConfig("ALE/Pung-v5"), tmp_path / "film.gif")


def test_the_environment_fails_and_the_older_film_stays(policy, tmp_path):
    path = tmp_path / "film.gif"
    path.write_bytes(b"older")
    for fails_at in (0, 3):
        env = Counter(fails_at=fails_at)
        with pytest.raises(EnvFailure, match=r"^the environment raised RuntimeError: boom in render\.$"):
            record(policy, lambda env=env: env, path)
        assert env.closed
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("frame", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), "abc"])
def test_what_is_no_picture_is_refused(policy, tmp_path, frame):
    with pytest.raises(EnvFailure, match=r"rendered an array of .* expected uint8 of \[H, W, 3\]\.$"):
        record(policy, lambda: Counter(frame=frame), tmp_path / "film.gif")


def test_a_missing_renderer_is_told_with_the_extra(policy, tmp_path):
    env = Counter(fails_at=0, error=DependencyNotInstalled("pygame is not installed"))
    with pytest.raises(
        ValueError, match=r"pygame is not installed.*pip install 'gymnasium\[classic-control\]' 'imageio.*'\.$"
    ):
        record(policy, lambda: env, tmp_path / "film.gif")


@pytest.mark.parametrize(("suffix", "module"), [(".gif", "PIL"), (".mp4", "imageio_ffmpeg"), (".MP4", "imageio")])
def test_a_missing_package_is_told_with_the_extra(policy, tmp_path, monkeypatch, suffix, module):
    monkeypatch.setattr(record_module, "find_spec", lambda name: None if name == module else object())
    with pytest.raises(
        ValueError, match=rf"not installed \({module}\): pip install 'gymnasium\[classic-control\]' 'imageio.*'\.$"
    ):
        record(policy, Counter, tmp_path / f"film{suffix}")


@pytest.mark.parametrize("name", ["film.avi", "film"])
def test_another_kind_of_file_is_refused(policy, tmp_path, name):
    with pytest.raises(ValueError, match=r"expected a file that ends with \.gif or \.mp4\.$"):
        record(policy, Counter, tmp_path / name)


def test_what_does_not_fit_is_refused(policy, tmp_path):
    path = tmp_path / "film.gif"
    with pytest.raises(ValueError, match="max_steps is 0, expected at least 1"):
        record(policy, Counter, path, max_steps=0)
    for env in (EnvConfig("NoSuchEnv-v0"), "NoSuchEnv-v0"):
        with pytest.raises(ValueError, match="env_id is 'NoSuchEnv-v0', which Gymnasium does not know"):
            record(policy, env, path)
    with pytest.raises(ValueError, match="render_mode is None, expected 'rgb_array'"):
        record(policy, lambda: gym.make("CartPole-v1"), path)
    with pytest.raises(ValueError, match=r"action space is Box.* expected Discrete\(2\)"):
        record(policy, EnvConfig("Pendulum-v1"), path)
    with pytest.raises(ValueError, match=r"shape \[4\], expected \[2\]"):
        record(policy, EnvConfig("CartPole-v1"), path)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*not in the possible render_modes")
@pytest.mark.parametrize(
    ("env_id", "says"),
    [
        ("fastac/RandomWalk-v0", "cannot be filmed: it is a compiled environment, which renders nothing."),
        ("probes:fastac/ToyChain-v0", "cannot be built to be filmed (TypeError: "),
    ],
)
def test_an_id_that_renders_nothing_is_one_sentence(policy, tmp_path, env_id, says):
    with pytest.raises(ValueError, match=f"^{re.escape(f'{env_id} {says}')}") as refused:
        record(policy, EnvConfig(env_id), tmp_path / "film.gif")
    assert "could not be built" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_told(policy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"^cannot write .*film\.gif: "):
        record(policy, Counter, tmp_path / "file" / "film.gif")


@pytest.mark.skipif(importlib.util.find_spec("imageio_ffmpeg") is None, reason="imageio-ffmpeg is not installed")
def test_an_mp4_has_every_frame(policy, tmp_path):
    import imageio.v2 as imageio

    record(policy, lambda: Counter(length=9, fps=50, size=(65, 97)), tmp_path / "film.mp4")
    with imageio.get_reader(tmp_path / "film.mp4") as reader:
        meta = reader.get_meta_data()
        assert (meta["fps"], meta["size"]) == (50.0, (96, 64))
        assert reader.count_frames() == 10
    with pytest.raises(EnvFailure, match="boom"):
        record(policy, lambda: Counter(fails_at=0), tmp_path / "other.mp4")
    assert list(tmp_path.iterdir()) == [tmp_path / "film.mp4"]
