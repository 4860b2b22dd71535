"""Records one episode of a policy as a GIF or an MP4."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

import gymnasium as gym
import numpy as np
from gymnasium.error import DependencyNotInstalled
from numpy.typing import NDArray

from fastac.config import EnvConfig, is_atari
from fastac.contract import EnvFailure, Episode, ObsArray
from fastac.envs import film_game, make_single
from fastac.envs.failure import describe
from fastac.envs.masks import MaskSource, ask_mask
from fastac.envs.state import SingleEnv
from fastac.install import INSTALL
from fastac.runs.files import replace_file
from fastac.tools.policy import Action, TrainedPolicy

if TYPE_CHECKING:
    from PIL.Image import Image

Frame: TypeAlias = NDArray[np.uint8]  # [H, W, 3]
RenderedEnv: TypeAlias = gym.Env[ObsArray, Action]  # built with render_mode="rgb_array"
RenderedEnvFactory: TypeAlias = Callable[[], RenderedEnv]

_GIF_WIDTH = 400
_GIF_FPS = 25.0
_GIF_COLORS = 128
_GIF_PAUSE_MS = 1000  # on the last frame, to mark the end of the loop
_DEFAULT_FPS = 30.0

# Maximum length in env steps: 10,000 of an Atari game at frame skip 4 are 11 minutes (a game of Pong has a few
# thousand); a GIF of these takes 340 MB of memory.
_MAX_STEPS = 1_000
_MAX_GAME_STEPS = 10_000


class Film(Protocol):
    """Collects frames and writes a file of them."""

    def add(self, frame: Frame) -> None:
        """Add the next frame."""

    def close(self) -> None:
        """Finish the file."""


class Gif:
    """A GIF that loops forever, small enough to show on a web page."""

    def __init__(self, path: Path, fps: float) -> None:
        """Start a film at `path`; `fps` is the rate of the added frames."""
        import PIL.Image

        self._pillow = PIL.Image
        self._path = path
        self._stride = math.ceil(fps / _GIF_FPS)
        self._fps = fps
        self._count = 0
        self._kept: list[Image] = []
        self._last: Frame | None = None  # the newest frame, if it was not kept

    def add(self, frame: Frame) -> None:
        """Keep one of every `stride` frames."""
        if self._count % self._stride == 0:
            self._kept.append(self._shrink(frame))
            self._last = None
        else:
            self._last = frame
        self._count += 1

    def close(self) -> None:
        """Write the file; it always includes the episode's last frame."""
        if not self._count:
            return  # the environment failed before its first frame
        if self._last is not None:
            self._kept.append(self._shrink(self._last))
        # GIF durations are in 1/100 s; rounding the times, not the durations, preserves the speed.
        times = np.rint(np.arange(len(self._kept)) * (100.0 * self._stride / self._fps))
        durations = [*(10 * np.diff(times)).astype(int).tolist(), _GIF_PAUSE_MS]
        first, rest = self._kept[0], self._kept[1:]
        first.save(self._path, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)

    def _shrink(self, frame: Frame) -> Image:
        image = self._pillow.fromarray(frame)
        if image.width > _GIF_WIDTH:
            # Box filter: the ringing of sharper filters makes flat areas noisy, which doubles the file size.
            size = (_GIF_WIDTH, round(image.height * _GIF_WIDTH / image.width))
            image = image.resize(size, self._pillow.Resampling.BOX)
        return image.quantize(_GIF_COLORS, dither=self._pillow.Dither.NONE)


class Mp4:
    """An H.264 film in full size and at the environment's own frame rate."""

    def __init__(self, path: Path, fps: float) -> None:
        """Start a film at `path`; `fps` is the rate of the added frames."""
        import imageio.v2 as imageio

        self._writer = imageio.get_writer(path, format="FFMPEG", fps=fps, codec="libx264", macro_block_size=1)

    def add(self, frame: Frame) -> None:
        """Encode a frame, cropped to even sides as the codec requires."""
        height, width = (side - side % 2 for side in frame.shape[:2])
        self._writer.append_data(frame[:height, :width])

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


# Film class and required modules by format.
_FORMATS: dict[str, tuple[type[Gif] | type[Mp4], tuple[str, ...]]] = {
    ".gif": (Gif, ("PIL",)),
    ".mp4": (Mp4, ("imageio", "imageio_ffmpeg")),
}


def record(
    policy: TrainedPolicy,
    env: str | EnvConfig | RenderedEnvFactory,
    path: Path,
    seed: int = 0,
    max_steps: int | None = None,
    greedy: bool = True,
) -> Episode:
    """Film one episode; reset the policy's recurrent state before and after.

    Args:
        policy: the policy to film.
        env: a run's environment, an id as in `EnvConfig(id)`, or a function that builds one environment with
            render_mode="rgb_array". An Atari game is played in full and filmed in its original colours, regardless of
            the policy's observations.
        path: the output, a .gif or .mp4 file; an older one is replaced only by a complete new one.
        seed: for the environment's reset.
        max_steps: maximum number of environment steps; None: 1,000, or 10,000 for an Atari game.
        greedy: take the most likely actions; otherwise sample.

    Returns:
        The episode, or the part that was filmed.

    Raises:
        ValueError: the file type is not supported, a package is missing, or the environment cannot be rendered.
        EnvFailure: the environment raised, or rendered something that is not an image.
        RecordError: the file cannot be written.
    """
    if isinstance(env, str):
        env = EnvConfig(env)
    if max_steps is None:
        max_steps = _MAX_GAME_STEPS if isinstance(env, EnvConfig) and is_atari(env.env_id) else _MAX_STEPS
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}, expected at least 1.")
    kind = _choose_format(path)
    played = _make_env(env)
    try:
        _check_env(played, policy)
        fps = float(played.metadata.get("render_fps") or _DEFAULT_FPS)
        with replace_file(path) as temporary:
            film = kind(temporary, fps)
            try:
                episode = _play(policy, played, film, seed, max_steps, greedy)
            finally:
                film.close()
    finally:
        policy.reset()
        played.close()
    return episode


def _choose_format(path: Path) -> type[Gif] | type[Mp4]:
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(f"the film is to be {str(path)!r}, expected a file that ends with {' or '.join(_FORMATS)}.")
    kind, modules = _FORMATS[suffix]
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ValueError(f"a {suffix} film needs what is not installed ({', '.join(missing)}): {INSTALL['video']}.")
    return kind


def _make_env(env: EnvConfig | RenderedEnvFactory) -> RenderedEnv:
    if not isinstance(env, EnvConfig):
        return env()
    if is_atari(env.env_id):
        return film_game(env)
    try:
        return cast(RenderedEnv, make_single(env, "rgb_array"))
    except EnvFailure as error:  # it may not accept render_mode
        why = describe(error.__cause__ or error)
        raise ValueError(f"{env.env_id} cannot be built to be filmed ({why}).") from error


def _check_env(env: RenderedEnv, policy: TrainedPolicy) -> None:
    if env.render_mode != "rgb_array":
        raise ValueError(
            f"the environment's render_mode is {env.render_mode!r}, expected 'rgb_array': its class has to take a "
            "render_mode, keep it as self.render_mode, and return pictures from render()."
        )
    if env.action_space != policy.action_space:
        raise ValueError(f"the environment's action space is {env.action_space}, expected {policy.action_space}.")


def _play(policy: TrainedPolicy, env: RenderedEnv, film: Film, seed: int, max_steps: int, greedy: bool) -> Episode:
    return_, length, is_over = 0.0, 0, False
    policy.reset()
    with _blaming("reset"):
        obs, info = env.reset(seed=seed)
    film.add(_render(env))
    while not is_over and length < max_steps:
        action = policy.act(obs, greedy, _find_mask(env, info, policy.mask_source))
        with _blaming("step"):
            obs, reward, terminated, truncated, info = env.step(action)
            return_, length, is_over = return_ + float(reward), length + 1, bool(terminated or truncated)
        film.add(_render(env))
    return Episode(return_, length)


def _find_mask(env: RenderedEnv, info: dict[str, object], source: MaskSource | None) -> object:
    """Return the action mask, unless it is in the observation."""
    return ask_mask(cast(SingleEnv, env), info, source) if source in ("method", "info") else None


def _render(env: RenderedEnv) -> Frame:
    with _blaming("render"):
        frame = np.asarray(env.render())
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise EnvFailure(
            f"the environment rendered an array of {frame.dtype} of shape {frame.shape}, expected uint8 of [H, W, 3]."
        )
    return frame


@contextmanager
def _blaming(method: str) -> Iterator[None]:
    """Convert the environment's exceptions into one-sentence errors."""
    try:
        yield
    except DependencyNotInstalled as error:
        raise ValueError(
            f"filming needs a package that is not installed ({describe(error)}): {INSTALL['video']}."
        ) from error
    except Exception as error:
        raise EnvFailure(f"the environment raised {describe(error)} in {method}.") from error
