"""Atari games: ALE's batched emulators behind the one step contract, and one game in its real colours."""

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

_FRAMES_PER_SECOND = 60  # of the console, NTSC


class AtariEnvs:
    """A `VecEnv` over ALE's AtariVectorEnv, whose emulators run in threads of its own.

    ALE plays full games with raw rewards, in NEXT_STEP order. Losing a life is marked here, since ALE's own
    `episodic_life` would begin another game; as there, a loss counts only while a life is left.
    """

    def __init__(
        self, config: EnvConfig, game: str, seeds: Sequence[int], num_threads: int, whole_stacks: bool
    ) -> None:
        """Load the game once per seed, which costs 50 to 100 ms each.

        Args:
            config: the protocol, resolved.
            game: ALE's name of it, such as space_invaders.
            seeds: one per emulator, 31 bits.
            num_threads: of the emulators; ALE takes no more than the machine has cores.
            whole_stacks: write all `frame_stack` frames of an observation and not only the newest.
        """
        assert config.frame_skip is not None and config.frame_stack is not None
        assert config.screen_size is not None and config.max_frames is not None
        self.num_envs = len(seeds)
        self.extras = NOTHING  # ALE says nothing about a game that its rewards do not
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
        # What of ALE's stacks [N, S, H, W] a row holds; stacks of one frame are rows as they are.
        self._shown = (slice(None), -1) if self.frame_stack > 1 else (slice(None),)
        self._marks_lives = bool(config.episodic_life)
        self._lives: NDArray[np.int32] = np.zeros(self.num_envs, dtype=np.int32)
        self._over: BoolArray = np.zeros(self.num_envs, dtype=np.bool_)  # [N], the game, by the step before

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
        """Change nothing: ALE steps all its emulators."""

    def step(self, action: ActionArray, row: StepRow) -> None:
        """Step the games that go on, and begin another where one was over by the step before.

        The actions must be those of `single_action_space`: ALE waits for ever for a game that it cannot step.
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
        """Return None: ALE's batch can neither save its emulators nor restore them."""

    def set_state(self, state: StateTree) -> None:
        """Refuse.

        Raises:
            ValueError: always; `get_state` never gave a state.
        """
        raise ValueError("an Atari game cannot continue from a saved state: it begins anew.")

    def close(self) -> None:
        """End the emulators and their threads, which only ALE's destructor does."""
        self._env = None

    def _mark_lives(self, lives: NDArray[np.int32], row: StepRow) -> None:
        np.less(lives, self._lives, out=row.life_lost)
        self._lives = lives  # ALE allocates anew each step
        if row.life_lost.any():
            np.logical_and(row.life_lost, row.valid & ~self._over & (lives > 0), out=row.life_lost)
            np.logical_or(row.terminated, row.life_lost, out=row.terminated)


class FilmedGame(gym.Env[ObsArray, Action]):
    """One game as a policy sees it, `[S, H, W]` gray, that renders what a player saw, `[H, W, 3]`.

    ALE's batch shows one kind of picture, so another emulator plays the same game in colours: the same seed and
    the same actions lead to the same frames.
    """

    render_mode = "rgb_array"

    def __init__(self, config: EnvConfig, game: str) -> None:
        """Load the game, twice."""
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
        """Begin a game: that of the first of `AtariEnvs` whose seeds are drawn from `SeedSequence(seed)`."""
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
    """Return the frame in the game, and the lives."""
    return int(infos["episode_frame_number"][0]), int(infos["lives"][0])


def _compare(seen: tuple[int, ...], shown: tuple[int, ...]) -> None:
    if seen != shown:
        raise RuntimeError(f"the emulator in colours is elsewhere: frame, lives, reward {shown}, expected {seen}")


def _load(config: EnvConfig, game: str, num_envs: int, num_threads: int, **screen: bool | int) -> AtariVectorEnv:
    """Load a game so many times, under the protocol; `screen` overrides how it is shown."""
    from ale_py.vector_env import AtariVectorEnv

    # Every argument is set, since some of ALE's defaults are of no protocol (it clips rewards).
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

    ALEInterface.setLoggerMode(LoggerMode.Error)  # else it greets
    emulator = ALEInterface()
    path = roms.get_rom_path(game)
    assert path is not None  # the game was loaded before
    emulator.loadROM(path)
    height, width = emulator.getScreenDims()
    return height, width


def _describe(config: EnvConfig, env: AtariVectorEnv, num_threads: int) -> str:
    """Name every field of the protocol, and what it is here."""
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
