"""The settings of a run as typed keyword arguments, for completion in editors and for type checkers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from fastac.config.config import (
    ActionChoice,
    AdvantageScope,
    CollectMode,
    ExchangeName,
    LogName,
    OptimizerName,
    RateSchedule,
    Schedule,
)
from fastac.config.environments import AtariProtocol, Vectorization
from fastac.config.network import ActivationName, CoreName
from fastac.config.values import EnvArguments
from fastac.config.wrappers import WrapperFactory


class ResumeSettings(TypedDict, total=False):
    """The settings that may change when a run is resumed: what is saved keeps its meaning with them."""

    start_timeout_s: float
    env_timeout_s: float | None
    env_threads: int | None

    gamma: float
    gae_lambda: float
    normalize_advantage: bool
    advantage_scope: AdvantageScope
    vf_coef: float
    ent_coef: float
    num_epochs: int
    num_minibatches: int
    clip_coef: float
    clip_value_coef: float | None
    target_kl: float | None

    learning_rate: float
    critic_learning_rate: float | None
    optimizer_eps: float
    max_grad_norm: float | None
    learning_rate_schedule: RateSchedule
    ent_coef_schedule: Schedule
    clip_coef_schedule: Schedule

    workers: int | Literal["auto"]
    torch_threads: int
    lock: bool
    max_restarts: int
    reuse_forward: bool
    total_env_steps: float
    budget_minutes: float | None
    until_return: float | None
    eval: bool
    eval_every: float | None
    eval_from_return: float | None
    eval_episodes: int | None
    eval_max_steps: int | None
    eval_actions: ActionChoice
    checkpoint_every: float
    checkpoint_minutes: float
    host_timeout_s: float
    keep_checkpoints: int
    tensorboard: bool
    log: Sequence[LogName]


class TrainSettings(ResumeSettings, total=False):
    """Every field of the configuration by its flat name, except those that are arguments of `fastac.train`.

    `fastac.config` documents each field. Numbers of steps may be written as 1e6.
    """

    num_envs: int
    vectorization: Vectorization
    envs_per_worker: int | None
    env_kwargs: EnvArguments
    wrappers: Sequence[str | WrapperFactory]
    mask_actions: bool
    drop_keys: Sequence[str]
    critic_keys: Sequence[str]
    squash_actions: bool
    atari_protocol: AtariProtocol | None
    sticky_actions: float | None
    noop_max: int | None
    fire_reset: bool | None
    frame_skip: int | None
    max_pool: bool | None
    screen_size: int | None
    frame_stack: int | None
    episodic_life: bool | None
    full_action_space: bool | None
    max_frames: int | None
    clip_rewards: bool | None

    hidden_sizes: Sequence[int]
    actor_sizes: Sequence[int] | None
    critic_sizes: Sequence[int] | None
    activation: ActivationName
    shared_trunk: bool
    core: CoreName
    lstm_size: int
    log_std_init: float
    dependent_std: bool
    normalize_obs: bool
    normalize_reward: bool
    pixel_scale: float | None

    collect: CollectMode
    num_steps: int
    baseline: bool

    optimizer: OptimizerName

    seed: int
    device: str
    shards: int | Literal["auto"]
    exchange: ExchangeName
    sync_every: int
    init_from: str | None
