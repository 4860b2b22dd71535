"""Atari games: adapts ALE's batched emulators to the step contract; and a single game in colour for films."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, Space
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from fastac.config import EnvConfig
from fastac.contract import ActionArray, BoolArray, EnvFailure, ObsArray, StateTree, StepRow
from fastac.envs.failure import describe
from fastac.envs.infos import NOTHING
from fastac.envs.seeds import draw_seeds

if TYPE_CHECKING:
    from ale_py.vector_env import AtariVectorEnv

Picture: TypeAlias = NDArray[np.uint8]
Action: TypeAlias = ActionArray | np.generic

_FRAMES_PER_SECOND = 60  # frame rate of the console, NTSC


class AtariEnvs:
    """A `VecEnv` over ALE's AtariVectorEnv, whose emulators run in ALE's own threads.

    ALE plays full games with raw rewards, in NEXT_STEP mode. This class marks lost lives, since ALE's `episodic_life`
    would begin another game. As in ALE, a loss counts only while a life is left.
    """

    def __init__(
        self, config: EnvConfig, game: str, seeds: Sequence[int], num_threads: int, whole_stacks: bool
    ) -> None:
        """Load the game once per seed, which costs 50 to 100 ms each.

        Args:
            config: with resolved protocol.
            game: ALE's name of the game, such as space_invaders.
            seeds: one per emulator, 31 bits.
            num_threads: threads of the emulators; ALE uses no more than the machine has cores.
            whole_stacks: write all `frame_stack` frames of an observation and not only the newest.
        """
        assert config.frame_skip is not None and config.frame_stack is not None
        assert config.screen_size is not None and config.max_frames is not None
        self.num_envs = len(seeds)
        self.extras = NOTHING  # ALE reports nothing about a game besides its rewards
        self.cautions: tuple[str, ...] = ()
        self.frame_skip = config.frame_skip
        self.frame_stack = 1 if whole_stacks else config.frame_stack
        self.max_episode_steps: int | None = ceil(config.max_frames / config.frame_skip)
        shape = (config.frame_stack, config.screen_size, config.screen_size)
        self.single_observation_space: Space[NDArray[np.generic]] = Box(0, 255, shape, np.uint8)
        self._env: AtariVectorEnv | None = _load(config, game, self.num_envs, num_threads)
        self.single_action_space: Space[NDArray[np.generic]] = self._env.single_action_space
        self.description = _describe(config, self._env, num_threads)
        self._seeds: NDArray[np.int64] | None = np.array(seeds, dtype=np.int64)
        # Index of a row in ALE's stacks [N, S, H, W]: the newest frame, or the whole stack.
        self._shown = (slice(None), -1) if self.frame_stack > 1 else (slice(None),)
        self._marks_lives = bool(config.episodic_life)
        self._lives: NDArray[np.int32] = np.zeros(self.num_envs, dtype=np.int32)
        self._over: BoolArray = np.zeros(self.num_envs, dtype=np.bool_)  # [N], game over in the previous step

    def reset(self, obs: ObsArray, start: BoolArray) -> None:
        """Begin a game in every emulator."""
        assert self._env is not None, "closed"
        try:
            stacks, infos = self._env.reset(seed=self._seeds)
        except Exception as error:
            raise EnvFailure(f"ALE raised {describe(error)} in reset.") from error
        self._seeds = None
        obs[...] = stacks[self._shown]
        start.fill(True)
        self._lives = infos["lives"]
        self._over.fill(False)

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Seed the next reset."""
        self._seeds = np.array(draw_seeds(seed, self.num_envs), dtype=np.int64)

    def rest(self, mask: BoolArray) -> None:
        """Do nothing: ALE steps all its emulators."""

    def step(self, action: ActionArray, row: StepRow) -> None:
        """Step the running games, and begin a new one where a game was over in the previous step.

        The actions must belong to `single_action_space`: ALE waits forever for a game that it cannot step.
        """
        assert self._env is not None, "closed"
        row.start[...] = self._over
        np.logical_not(self._over, out=row.valid)
        try:
            stacks, reward, terminated, truncated, infos = self._env.step(action)
        except Exception as error:
            raise EnvFailure(f"ALE raised {describe(error)} in step.") from error
        row.obs[...] = stacks[self._shown]
        row.reward[...] = reward
        row.terminated[...] = terminated
        row.truncated[...] = truncated
        np.logical_or(terminated, truncated, out=self._over)
        if self._marks_lives:
            self._mark_lives(infos["lives"], row)

    def get_state(self) -> None:
        """Return None: ALE's batch can neither save nor restore its emulators."""

    def set_state(self, state: StateTree) -> None:
        """Raise an error: there is no state to continue from.

        Raises:
            ValueError: always; `get_state` never returns a state.
        """
        raise ValueError("an Atari game cannot continue from a saved state: it begins anew.")

    def close(self) -> None:
        """End the emulators and their threads, which only ALE's destructor can do."""
        self._env = None

    def _mark_lives(self, lives: NDArray[np.int32], row: StepRow) -> None:
        np.less(lives, self._lives, out=row.life_lost)
        self._lives = lives  # ALE allocates a new array in each step
        if row.life_lost.any():
            np.logical_and(row.life_lost, row.valid & ~self._over & (lives > 0), out=row.life_lost)
            np.logical_or(row.terminated, row.life_lost, out=row.terminated)


class FilmedGame(gym.Env[ObsArray, Action]):
    """One game with the policy's observations `[S, H, W]` in gray, which renders the screen in colour `[H, W, 3]`.

    ALE's batch returns only one kind of image, so a second emulator plays the same game in colour: the same seed and
    actions lead to the same frames.
    """

    render_mode = "rgb_array"

    def __init__(self, config: EnvConfig, game: str) -> None:
        """Load the game twice."""
        assert config.frame_skip is not None
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": _FRAMES_PER_SECOND / config.frame_skip}
        height, width = _screen_size(game)
        self._gray = _load(config, game, 1, 1)
        self._colour = _load(config, game, 1, 1, grayscale=False, stack_num=1, img_height=height, img_width=width)
        self.observation_space = self._gray.single_observation_space
        self.action_space = self._gray.single_action_space
        self._picture: Picture = np.zeros((height, width, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[ObsArray, dict[str, object]]:
        """Begin the game that the first of `AtariEnvs` plays with seeds drawn from `SeedSequence(seed)`."""
        seeds = np.array(draw_seeds(np.random.SeedSequence(seed), 1))
        stacks, infos = self._gray.reset(seed=seeds)
        pictures, others = self._colour.reset(seed=seeds)
        _compare(_tell_where(infos), _tell_where(others))
        self._picture = pictures[0, 0]
        return stacks[0], {}

    def step(self, action: Action) -> tuple[ObsArray, float, bool, bool, dict[str, object]]:
        """Step both emulators."""
        actions = np.array([action], dtype=np.int64)
        stacks, reward, terminated, truncated, infos = self._gray.step(actions)
        pictures, paid, _, _, others = self._colour.step(actions)
        _compare((*_tell_where(infos), int(reward[0])), (*_tell_where(others), int(paid[0])))
        self._picture = pictures[0, 0]
        return stacks[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> Picture:
        """Return the screen `[H, W, 3]`."""
        return self._picture


def _tell_where(infos: dict[str, NDArray[np.int32]]) -> tuple[int, int]:
    """Return the frame number within the game, and the lives."""
    return int(infos["episode_frame_number"][0]), int(infos["lives"][0])


def _compare(seen: tuple[int, ...], shown: tuple[int, ...]) -> None:
    if seen != shown:
        raise RuntimeError(f"the emulator in colours is elsewhere: frame, lives, reward {shown}, expected {seen}")


def _load(config: EnvConfig, game: str, num_envs: int, num_threads: int, **screen: bool | int) -> AtariVectorEnv:
    """Load `num_envs` copies of a game with the protocol; `screen` overrides image settings."""
    from ale_py.vector_env import AtariVectorEnv

    # Every argument is set, since some of ALE's defaults belong to no protocol (it clips rewards).
    settings: dict[str, Any] = {
        "batch_size": num_envs,
        "num_threads": num_threads,
        "thread_affinity_offset": -1,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
        "repeat_action_probability": config.sticky_actions,
        "noop_max": config.noop_max,
        "use_fire_reset": config.fire_reset,
        "frameskip": config.frame_skip,
        "maxpool": config.max_pool,
        "img_height": config.screen_size,
        "img_width": config.screen_size,
        "grayscale": True,
        "stack_num": config.frame_stack,
        "full_action_space": config.full_action_space,
        "continuous": False,
        "continuous_action_threshold": 0.5,
        "max_num_frames_per_episode": config.max_frames,
        "episodic_life": False,
        "life_loss_info": False,
        "reward_clipping": False,
    }
    return AtariVectorEnv(game, num_envs, **{**settings, **screen})


def _screen_size(game: str) -> tuple[int, int]:
    """Return the height and width of a game's screen; most are 210 by 160."""
    from ale_py import ALEInterface, LoggerMode, roms

    ALEInterface.setLoggerMode(LoggerMode.Error)  # otherwise it prints a greeting
    emulator = ALEInterface()
    path = roms.get_rom_path(game)
    assert path is not None  # the game has been loaded before
    emulator.loadROM(path)
    height, width = emulator.getScreenDims()
    return height, width


def _describe(config: EnvConfig, env: AtariVectorEnv, num_threads: int) -> str:
    """Describe every field of the protocol with its value."""
    actions = env.single_action_space
    assert isinstance(actions, Discrete)
    fields = (
        f"sticky {config.sticky_actions:g}",
        f"no-ops < {config.noop_max}" if config.noop_max else "no no-ops",
        "FIRE reset" if config.fire_reset else "no FIRE reset",
        f"skip {config.frame_skip}{' max-pooled' if config.max_pool else ''}",
        f"{config.screen_size}x{config.screen_size} gray",
        f"stack {config.frame_stack}",
        "life loss ends" if config.episodic_life else "full games",
        f"{actions.n} actions",
        f"cap {config.max_frames} frames",
        "rewards clipped" if config.clip_rewards else "rewards raw",
    )
    threads = "1 thread" if num_threads == 1 else f"{num_threads} threads"
    return f"ALE ({config.atari_protocol}: {', '.join(fields)}; {threads})"
