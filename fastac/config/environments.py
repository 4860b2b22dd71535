"""The configuration of the environments."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fastac.config.atari_protocols import PROTOCOLS
from fastac.config.values import EnvArguments, check, check_choice
from fastac.config.wrappers import is_wrapper

Vectorization = Literal["auto", "compiled", "native", "sync", "process", "envpool"]
AtariProtocol = Literal["dqn", "machado", "a3c"]


def is_atari(env_id: str) -> bool:
    """Return whether an id, also as `module:id`, is an Atari game."""
    return env_id.rpartition(":")[2].startswith("ALE/")


@dataclass(frozen=True)
class EnvConfig:
    """The environments: which, how many, and how they are batched."""

    env_id: str = "CartPole-v1"
    """Gymnasium id; module:id if importing a module registers it; or module:name of a class or function."""
    num_envs: int = 16
    """Environments stepped side by side, by all workers together."""
    vectorization: Vectorization = "auto"
    """Batching: auto; compiled; native (the id's own batched env); sync (one process); process (several); envpool."""
    envs_per_worker: int | None = None
    """Environments of each worker; num_envs is then this number times workers."""
    env_kwargs: EnvArguments = field(default_factory=dict, hash=False)
    """Keyword arguments of the environment, as JSON '{"level": 3}' or as level=3,size=9."""
    wrappers: tuple[str, ...] = ()
    """Wrapper of each environment: module:name, with arguments as level=3; repeatable, the first is the innermost."""
    mask_actions: bool = True
    """Never choose actions that the environment's action mask rules out, if it has one."""
    drop_keys: tuple[str, ...] = ()
    """Keys of a Dict observation that nothing is learned from, such as a text."""
    critic_keys: tuple[str, ...] = ()
    """Keys of a Dict observation that only the critic reads; needs trunks that are not shared."""
    start_timeout_s: float = 120.0
    """Time limit in seconds for another process to start and build its environments."""
    env_timeout_s: float | None = None
    """Time limit in seconds for another process to step its envs; None: 120 (a3c: 10, or 20 iterations)."""
    squash_actions: bool = False
    """Box actions: squash by tanh into the bounds, instead of clipping to them."""
    env_threads: int | None = None
    """Atari and EnvPool: threads per process; None: a worker's share of the cores (EnvPool's fast envs: one)."""
    atari_protocol: AtariProtocol | None = None
    """Set of defaults for the Atari settings of an ALE/ id: dqn (the default), machado or a3c."""
    sticky_actions: float | None = None
    """Atari: probability that the emulator repeats the previous action instead, drawn frame by frame."""
    noop_max: int | None = None
    """Atari: upper limit for the random number of no-op frames that begin a game; always fewer than this."""
    fire_reset: bool | None = None
    """Atari: press FIRE at the start of a game that has this action."""
    frame_skip: int | None = None
    """Atari: frames per step; the action is held in all of them."""
    max_pool: bool | None = None
    """Atari: observe the maximum of a step's last two frames, since sprites flicker."""
    screen_size: int | None = None
    """Atari: height and width of the grayscale frames."""
    frame_stack: int | None = None
    """Atari: number of latest frames in an observation."""
    episodic_life: bool | None = None
    """Atari: in training, a lost life terminates the episode for learning; the game goes on."""
    full_action_space: bool | None = None
    """Atari: use all 18 actions, instead of only those that have an effect in the game."""
    max_frames: int | None = None
    """Atari: number of frames after which a game is cut (truncated)."""
    clip_rewards: bool | None = None
    """Atari: learn from rewards clipped to [-1, 1]; logged and evaluated returns are raw."""

    def __post_init__(self) -> None:
        """Validate the section."""
        check(bool(self.env_id), "env_id", self.env_id, "a Gymnasium environment id")
        check(1 <= self.num_envs <= 1_000_000, "num_envs", self.num_envs, "a whole number from 1 to 1,000,000")
        if self.envs_per_worker is not None:
            check(self.envs_per_worker >= 1, "envs_per_worker", self.envs_per_worker, "at least 1, or None")
        check_choice("vectorization", self.vectorization, Vectorization)
        check(0.0 < self.start_timeout_s < math.inf, "start_timeout_s", self.start_timeout_s, "a number above 0")
        if self.env_timeout_s is not None:
            check(0.0 < self.env_timeout_s < math.inf, "env_timeout_s", self.env_timeout_s, "above 0, or None")
        for name in ("num_envs", "render_mode", "vectorization_mode"):
            check(name not in self.env_kwargs, "env_kwargs", self.env_kwargs, f"none of {name}, which fastac gives")
        self._check_wrappers()
        if is_atari(self.env_id):
            check(not self.env_kwargs, "env_kwargs", self.env_kwargs, "{}: a game of ALE/ has settings of its own")
            for name in ("drop_keys", "critic_keys"):
                check(not getattr(self, name), name, getattr(self, name), "none: a game of ALE/ shows images alone")
            self._resolve_protocol()
            return
        self._check_threads(has_threads=self.vectorization == "envpool")
        for name in ("atari_protocol", *PROTOCOLS["dqn"]):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, expected None: {self.env_id} is no Atari game of ALE/."
                )

    def _check_wrappers(self) -> None:
        wrappers = self.wrappers
        check(all(map(is_wrapper, wrappers)), "wrappers", wrappers, "module:name of each, with arguments as level=3")
        if wrappers and is_atari(self.env_id):
            raise ValueError(
                f"wrappers is {wrappers}, expected none: games of ALE/ run in a batch, and have settings of their own."
            )
        if wrappers and self.vectorization in ("compiled", "native", "envpool"):
            raise ValueError(
                f"vectorization is {self.vectorization!r} with wrappers, expected auto, sync or process: a wrapper "
                "goes around one environment, and these come in batches."
            )

    def _check_threads(self, has_threads: bool) -> None:
        if self.env_threads is None:
            return
        check(1 <= self.env_threads <= 1024, "env_threads", self.env_threads, "from 1 to 1024, or None")
        if not has_threads:
            raise ValueError(
                f"env_threads is {self.env_threads}, expected None: {self.env_id} is no Atari game of ALE/, and "
                f"vectorization is {self.vectorization!r}, not 'envpool'."
            )

    def _resolve_protocol(self) -> None:
        """Fill fields that are None from the protocol, and validate them."""
        check(not self.squash_actions, "squash_actions", self.squash_actions, "False: a game's actions are discrete")
        protocol = self.atari_protocol or "dqn"
        check_choice("atari_protocol", protocol, AtariProtocol)
        for name, value in {"atari_protocol": protocol, **PROTOCOLS[protocol]}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name, least, most in (
            ("noop_max", 0, 10_000),
            ("frame_skip", 1, 1_000),
            ("screen_size", 36, 1_000),
            ("frame_stack", 1, 255),
            ("max_frames", 1, 2**31 - 1),
        ):
            number = getattr(self, name)
            check(least <= number <= most, name, number, f"a whole number from {least:,} to {most:,}")
        stack, size = self.frame_stack, self.screen_size
        assert stack is not None and size is not None
        check(stack < size, "frame_stack", stack, f"less than screen_size, which is {size}")
        sticky = self.sticky_actions
        check(sticky is not None and 0.0 <= sticky < 1.0, "sticky_actions", sticky, "a number from 0, below 1")
        self._check_threads(has_threads=True)
        if self.vectorization not in ("auto", "native"):
            game = self.env_id.rpartition("/")[2]
            pool = f"; EnvPool's games have other ids, and other settings, such as {game}"
            raise ValueError(
                f"vectorization is {self.vectorization!r}, expected 'auto' or 'native': Atari games are batched by "
                f"ALE itself, in threads of its own{pool if self.vectorization == 'envpool' else ''}."
            )
