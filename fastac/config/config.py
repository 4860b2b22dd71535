"""Frozen nested dataclasses, validated once. Derived sizes are properties; unknown keys are errors.

Field names are unique across the sections, so a run can be configured with flat names: command
line flags (`--num-envs 64`), `fastac.train(..., num_envs=64)` and `Config.replace(num_envs=64)`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, cast, get_args, get_type_hints

from fastac.config.atari_protocols import PROTOCOLS
from fastac.config.environments import EnvConfig
from fastac.config.network import ModelConfig
from fastac.config.values import ConfigValue, JsonValue, check, check_choice, coerce, unknown

AlgoName = Literal["a2c", "a3c", "ppo", "reinforce"]
CollectMode = Literal["steps", "episodes"]
OptimizerName = Literal["adam", "rmsprop", "rmsprop_tf"]
Schedule = Literal["constant", "linear"]
RateSchedule = Literal["constant", "linear", "adaptive"]
AdvantageScope = Literal["minibatch", "rollout"]
ExchangeName = Literal["exact", "allreduce"]
ActionChoice = Literal["greedy", "sampled"]
LogName = Literal["tensorboard", "csv", "wandb", "mlflow"]


@dataclass(frozen=True)
class AlgoConfig:
    """What is collected and what is minimised; an algorithm is a combination of these settings."""

    algo: AlgoName = "a2c"
    """Algorithm: a2c, ppo (clipped) and reinforce have in-step workers; a3c is a2c with asynchronous workers."""
    collect: CollectMode = "steps"
    """Content of a rollout: steps (num_steps per env) or episodes (one whole episode per env)."""
    num_steps: int = 16
    """Steps per env and rollout; with collect episodes, the largest possible episode length."""
    gamma: float = 0.99
    """Discount factor."""
    gae_lambda: float = 0.95
    """GAE's lambda: 0 is the one-step TD error, 1 the Monte Carlo advantage."""
    baseline: bool = True
    """Subtract the critic's value from the return; without it, plain REINFORCE returns."""
    normalize_advantage: bool = False
    """Standardise advantages over valid rows, see advantage_scope."""
    advantage_scope: AdvantageScope = "minibatch"
    """Rows over which normalize_advantage standardises: those of a minibatch, or of the whole rollout."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    num_epochs: int = 1
    """Passes over each rollout."""
    num_minibatches: int = 1
    """Minibatches per pass."""
    clip_coef: float = 0.2
    """PPO's clipping range of the probability ratio."""
    clip_value_coef: float | None = None
    """PPO: how far a value may move from the one seen while acting before its loss is clipped; None: no limit."""
    target_kl: float | None = None
    """PPO: KL beyond which a rollout's other epochs are left out; with an adaptive learning rate, what it aims at."""

    @property
    def has_async_workers(self) -> bool:
        """Whether workers do not wait for each other, as in A3C."""
        return self.algo == "a3c"

    def __post_init__(self) -> None:
        """Validate the section."""
        check_choice("algo", self.algo, AlgoName)
        check_choice("collect", self.collect, CollectMode)
        check(1 <= self.num_steps <= 1_000_000, "num_steps", self.num_steps, "a whole number from 1 to 1,000,000")
        check(0.0 <= self.gamma <= 1.0, "gamma", self.gamma, "a number from 0 to 1")
        check(0.0 <= self.gae_lambda <= 1.0, "gae_lambda", self.gae_lambda, "a number from 0 to 1")
        check(0.0 <= self.vf_coef < math.inf, "vf_coef", self.vf_coef, "a finite number of at least 0")
        check(0.0 <= self.ent_coef < math.inf, "ent_coef", self.ent_coef, "a finite number of at least 0")
        check(self.num_epochs >= 1, "num_epochs", self.num_epochs, "at least 1")
        check(self.num_minibatches >= 1, "num_minibatches", self.num_minibatches, "at least 1")
        check(0.0 < self.clip_coef < math.inf, "clip_coef", self.clip_coef, "a finite number above 0")
        check_choice("advantage_scope", self.advantage_scope, AdvantageScope)
        is_whole = self.advantage_scope == "rollout"
        expected = "minibatch without normalize_advantage: give --normalize-advantage"
        check(self.normalize_advantage or not is_whole, "advantage_scope", self.advantage_scope, expected)
        for name in ("clip_value_coef", "target_kl"):
            number = getattr(self, name)
            check(number is None or 0.0 < number < math.inf, name, number, "a finite number above 0, or None")
            check(number is None or self.algo == "ppo", name, number, f"None with algo {self.algo}: only ppo has it")
        if self.algo == "reinforce" and self.num_epochs * self.num_minibatches != 1:
            raise ValueError(
                f"reinforce is on-policy: num_epochs is {self.num_epochs} and num_minibatches is "
                f"{self.num_minibatches}, expected 1 and 1."
            )
        if self.algo == "ppo" and not self.baseline:
            raise ValueError("baseline is False with algo ppo, expected True: only reinforce and a2c can go without.")
        if (self.algo == "reinforce" or not self.baseline) and (self.collect, self.gae_lambda) != ("episodes", 1.0):
            raise ValueError(
                f"collect is {self.collect!r} and gae_lambda is {self.gae_lambda}, expected 'episodes' and 1.0 with "
                "algo reinforce or without a baseline: both learn from whole returns."
            )


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser, and the schedules over the run."""

    optimizer: OptimizerName = "adam"
    """Optimiser: adam, rmsprop (eps outside the root) or rmsprop_tf (eps inside, average starts at 1)."""
    learning_rate: float = 7e-4
    """Learning rate at the start of the run."""
    critic_learning_rate: float | None = None
    """Learning rate of the critic's own network at the start, if trunks are not shared; None: learning_rate."""
    optimizer_eps: float = 1e-5
    """The optimiser's epsilon."""
    max_grad_norm: float | None = 0.5
    """Limit to which the global gradient norm is clipped; None does not clip."""
    learning_rate_schedule: RateSchedule = "constant"
    """Schedule of the learning rate: constant, linear to 0 at total_env_steps, or adaptive (ppo: follows target_kl)."""
    ent_coef_schedule: Schedule = "constant"
    """Schedule of ent_coef: constant, or linear to 0 at total_env_steps."""
    clip_coef_schedule: Schedule = "constant"
    """Schedule of clip_coef: constant, or linear to 0 at total_env_steps."""

    def __post_init__(self) -> None:
        """Validate the section."""
        check_choice("optimizer", self.optimizer, OptimizerName)
        check(0.0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "a finite number above 0")
        if self.critic_learning_rate is not None:
            rate = self.critic_learning_rate
            check(0.0 < rate < math.inf, "critic_learning_rate", rate, "a finite number above 0, or None")
        check(0.0 < self.optimizer_eps < math.inf, "optimizer_eps", self.optimizer_eps, "a finite number above 0")
        if self.max_grad_norm is not None:
            check(0.0 < self.max_grad_norm < math.inf, "max_grad_norm", self.max_grad_norm, "above 0, or None")
        check_choice("learning_rate_schedule", self.learning_rate_schedule, RateSchedule)
        if self.learning_rate_schedule == "adaptive":
            expected = "a number from 1e-5 to 1e-2 with learning_rate_schedule adaptive"
            check(1e-5 <= self.learning_rate <= 1e-2, "learning_rate", self.learning_rate, expected)
        for name in ("ent_coef_schedule", "clip_coef_schedule"):
            check_choice(name, getattr(self, name), Schedule)


@dataclass(frozen=True)
class RunConfig:
    """Seed, device, workers, budgets, evaluations and checkpoints."""

    seed: int = 0
    """Seed of every random stream; two seeds, such as 0 and 1, share no stream."""
    device: str = "cpu"
    """Device: cpu, cuda or cuda:K."""
    workers: int | Literal["auto"] = "auto"
    """Processes that divide the shards; with the same shards, the same results. auto: as many as pay here."""
    shards: int | Literal["auto"] = "auto"
    """Parts of num_envs with random streams of their own; results depend on it. auto: by the envs, at least workers."""
    exchange: ExchangeName = "exact"
    """Sum of gradients over hosts: exact (the bits of one host), or allreduce (fewer bytes from three hosts on)."""
    sync_every: int = 1
    """Over slow links: updates that each host takes alone until parameters are averaged; 1: gradients are summed."""
    torch_threads: int = 1
    """Threads of torch in each worker; more pay only for large networks. Results depend on them by rounding alone."""
    lock: bool = False
    """a3c: lock the shared parameters during each update, so that no update is lost."""
    max_restarts: int = 10
    """a3c: restarts in total of workers that died, failed or hung."""
    reuse_forward: bool = True
    """Learn from activations saved while acting, as long as the parameters are unchanged."""
    total_env_steps: int = 500_000
    """Budget in environment steps; the last rollout is completed."""
    budget_minutes: float | None = None
    """Budget in minutes of wall-clock time; the run stops earlier if its steps are spent. Schedules follow steps."""
    until_return: float | None = None
    """Target mean return; the run stops at the first evaluation that reaches it."""
    eval: bool = True
    """Evaluate the policy; without evaluations, the last policy is reported and kept."""
    eval_every: int | None = None
    """Env steps between evaluations; None: under a tenth of the run; 0: once, at the end, in the training envs."""
    eval_from_return: float | None = None
    """Mean return of the last 100 training episodes at which evaluations begin; the last one is always played."""
    eval_episodes: int | None = None
    """Episodes per evaluation; None: few during training, up to 100 at the end and to confirm until_return."""
    eval_max_steps: int | None = None
    """Steps after which evaluation cuts an episode; None: env's limit, else twice the longest training episode."""
    eval_actions: ActionChoice = "greedy"
    """Actions in evaluations: the most likely ones (greedy), or sampled as in training (sampled)."""
    checkpoint_every: int = 250_000
    """Environment steps between checkpoints; 0 saves only at the end."""
    checkpoint_minutes: float = 5.0
    """On several hosts: minutes between checkpoints at most, and what a failure may cost."""
    host_timeout_s: float = 3.0
    """On several hosts: seconds without a sign of life after which a host is lost."""
    keep_checkpoints: int = 3
    """Number of latest checkpoints to keep, besides the best."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    log: tuple[str, ...] = ()
    """Write to other loggers, too: csv (progress.csv), wandb (Weights & Biases), mlflow; also tensorboard."""
    init_from: str | None = None
    """Directory of a run whose best policy this run begins with; its network is the default. None: new weights."""

    def __post_init__(self) -> None:
        """Validate the section."""
        check(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0 to 2**63 - 1")
        is_number = not isinstance(self.workers, str) and 1 <= self.workers <= 1024
        check(self.workers == "auto" or is_number, "workers", self.workers, "a whole number from 1 to 1024, or auto")
        is_number = not isinstance(self.shards, str) and 1 <= self.shards <= 1024
        check(self.shards == "auto" or is_number, "shards", self.shards, "a whole number from 1 to 1024, or auto")
        check_choice("exchange", self.exchange, ExchangeName)
        check(1 <= self.sync_every <= 1_000_000, "sync_every", self.sync_every, "a whole number from 1 to 1,000,000")
        if self.sync_every > 1 and self.exchange != "exact":
            raise ValueError(
                f"sync_every is {self.sync_every} with exchange {self.exchange!r}, expected one of them: with "
                "sync_every gradients are not exchanged."
            )
        check(1 <= self.torch_threads <= 1024, "torch_threads", self.torch_threads, "a whole number from 1 to 1024")
        check(self.max_restarts >= 0, "max_restarts", self.max_restarts, "at least 0")
        check(self.total_env_steps >= 1, "total_env_steps", self.total_env_steps, "at least 1")
        if self.budget_minutes is not None:
            check(0.0 < self.budget_minutes < math.inf, "budget_minutes", self.budget_minutes, "above 0, or None")
        check_choice("eval_actions", self.eval_actions, ActionChoice)
        for name in ("until_return", "eval_from_return"):
            value = getattr(self, name)
            check(value is None or math.isfinite(value), name, value, "a finite number, or None")
        for name, least in (("eval_every", 0), ("eval_episodes", 1), ("eval_max_steps", 1)):
            number = getattr(self, name)
            check(number is None or number >= least, name, number, f"at least {least}, or None")
        if self.until_return is not None and not self.eval:
            raise ValueError(f"until_return is {self.until_return:g} without evaluations, which it needs: drop one.")
        check(self.checkpoint_every >= 0, "checkpoint_every", self.checkpoint_every, "at least 0")
        check(self.host_timeout_s >= 1.0, "host_timeout_s", self.host_timeout_s, "at least 1")
        check(self.checkpoint_minutes > 0.0, "checkpoint_minutes", self.checkpoint_minutes, "above 0")
        names = get_args(LogName)[0 if self.tensorboard else 1 :]
        expected = f"some of {', '.join(names)}{'' if self.tensorboard else ' with tensorboard False'}, each once"
        check(set(self.log) <= set(names) and len(set(self.log)) == len(self.log), "log", self.log, expected)
        check(self.init_from != "", "init_from", self.init_from, "a run's directory, or None")
        check(self.keep_checkpoints >= 1, "keep_checkpoints", self.keep_checkpoints, "at least 1")


@dataclass(frozen=True)
class Config:
    """The complete configuration of a training run."""

    env: EnvConfig = field(default_factory=EnvConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Validate settings that depend on several sections."""
        workers = self.num_workers
        if self.env.envs_per_worker is not None:
            env = dataclasses.replace(self.env, num_envs=self.env.envs_per_worker * workers)
            object.__setattr__(self, "env", env)
        self._check_shards(workers)
        self._check_processes(workers)
        parts, whose = self.num_shards, "shard" if self.run.shards != "auto" else "worker"
        sliced, what = (
            (self.env.num_envs, "num_envs (a recurrent core's minibatches are whole sequences)")
            if self.model.is_recurrent
            else (self.batch_size, "num_envs * num_steps")
        )
        if sliced // parts % self.algo.num_minibatches:
            raise ValueError(
                f"num_minibatches is {self.algo.num_minibatches}, expected a divisor of {sliced // parts}, "
                f"which is {what}{f' of one {whose}' if parts > 1 else ''}."
            )
        if self.env.critic_keys and self.model.shared_trunk:
            raise ValueError(
                f"critic_keys is {self.env.critic_keys}, expected () with shared_trunk True: a trunk that is shared "
                "shows the actor what the critic reads; give --no-shared-trunk."
            )
        rate, is_shared = self.optim.critic_learning_rate, self.model.shared_trunk
        expected = "None with shared_trunk True: the critic has no trunk of its own; give --no-shared-trunk"
        check(rate is None or not is_shared, "critic_learning_rate", rate, expected)
        self._check_kl()
        if self.env.clip_rewards and self.model.normalize_reward:
            raise ValueError(
                "clip_rewards and normalize_reward are both True, expected one of them: give --clip-rewards False or "
                "--normalize-reward False."
            )
        if self.algo.collect == "episodes" and self.algo.num_minibatches != 1:
            raise ValueError(
                f"num_minibatches is {self.algo.num_minibatches}, expected 1 with collect episodes: "
                "episodes have no fixed number of rows to divide."
            )

    def _check_kl(self) -> None:
        """Check that what follows the KL divergence can: it is 0 before a rollout's first update."""
        algo, target, schedule = self.algo, self.algo.target_kl, self.optim.learning_rate_schedule
        is_adaptive, sync_every = schedule == "adaptive", self.run.sync_every
        expected = "constant or linear without a target_kl, which it follows: give --algo ppo --target-kl 0.01"
        check(not is_adaptive or target is not None, "learning_rate_schedule", schedule, expected)
        if target is None:
            return
        expected = "more num_epochs or num_minibatches: the KL is 0 before a rollout's first update"
        has_kl = algo.num_epochs * algo.num_minibatches > 1
        check(not is_adaptive or has_kl, "learning_rate_schedule", schedule, expected)
        check(is_adaptive or algo.num_epochs > 1, "target_kl", target, "None with num_epochs 1: it ends later epochs")
        check(sync_every == 1, "sync_every", sync_every, "1 with target_kl: hosts that update alone see different KLs")

    def _check_shards(self, workers: int) -> None:
        """Check that the shards are equal and that every worker has one."""
        num_envs, shards = self.env.num_envs, self.run.shards
        if shards == "auto":
            expected = f"a multiple of workers, which is {workers} (or give --shards, a divisor of num_envs)"
            check(num_envs % workers == 0, "num_envs", num_envs, expected)
            return
        check(num_envs % shards == 0, "num_envs", num_envs, f"a multiple of shards, which is {shards}")
        if workers > shards:
            raise ValueError(
                f"workers is {workers}, expected at most {shards}, the number of shards: a run keeps it for its life, "
                "and a new run gets more by --shards."
            )
        if shards > 1 and self.env.vectorization == "process":
            raise ValueError(
                f"shards is {shards} with vectorization process, expected 1: its processes step all environments at "
                "once."
            )
        if self.algo.has_async_workers and self.run.workers not in ("auto", shards):
            raise ValueError(
                f"shards is {shards} with algo a3c and workers {workers}, expected auto: each of its workers has one "
                "shard."
            )

    @property
    def num_workers(self) -> int:
        """K, the number of workers; the least that it can become if `workers` is 'auto'."""
        return 1 if self.run.workers == "auto" else self.run.workers

    @property
    def num_shards(self) -> int:
        """S, the number of shards; the least that it can become if `shards` is 'auto'."""
        return self.num_workers if self.run.shards == "auto" else self.run.shards

    @property
    def is_one_shard_per_worker(self) -> bool:
        """Whether the number of workers is part of the algorithm."""
        return self.algo.has_async_workers or self.env.envs_per_worker is not None

    def _check_processes(self, workers: int) -> None:
        is_a3c, device = self.algo.has_async_workers, self.run.device
        if is_a3c and device != "cpu":
            raise ValueError(
                f"device is {device!r} with algo a3c, expected 'cpu': its workers share parameters in the memory of "
                "the machine; train with a2c or ppo on a GPU."
            )
        if workers > 1 and device != "cpu":
            raise ValueError(f"workers is {workers} with device {device}, expected 1: they share CPU cores.")
        if (workers > 1 or is_a3c) and self.env.vectorization == "process":
            raise ValueError(
                f"workers is {workers} with vectorization process, expected one or the other: "
                "a worker steps its environments itself."
            )
        if self.run.lock and not is_a3c:
            raise ValueError(f"lock is True with algo {self.algo.algo}, expected False: only a3c's workers interleave.")

    @property
    def batch_size(self) -> int:
        """Rows of a rollout, B = T * N."""
        return self.algo.num_steps * self.env.num_envs

    @property
    def keeps_forward(self) -> bool:
        """Whether the first update reuses the forward pass from acting; its batch must be the whole rollout."""
        return self.run.reuse_forward and self.algo.num_minibatches == 1

    def replace(self, **changes: ConfigValue | Sequence[int] | Sequence[str]) -> Config:
        """Return a copy with fields changed by their flat names; 1e6 is accepted as an integer.

        Raises:
            ValueError: an unknown name, or a value of the wrong type or out of range.
        """
        sections: dict[str, dict[str, ConfigValue]] = {}
        for name, value in changes.items():
            section = sections.setdefault(_section_of(name), {})
            section[name] = coerce(name, _KIND_OF[name], value)
        env = sections.get("env", {})
        if "atari_protocol" in env:  # the protocol then sets all its fields that are not given
            sections["env"] = env = dict.fromkeys(PROTOCOLS["dqn"]) | env
        if "num_envs" in env:  # a given num_envs overrides envs_per_worker
            env.setdefault("envs_per_worker", None)
        changed = dataclasses.replace(
            self,
            **{section: dataclasses.replace(getattr(self, section), **new) for section, new in sections.items()},
        )
        if env.get("num_envs", changed.env.num_envs) != changed.env.num_envs:
            raise ValueError(
                f"num_envs is {env['num_envs']}, but envs_per_worker times workers is {changed.env.num_envs}: give "
                "one of them."
            )
        return changed

    def to_dict(self) -> dict[str, JsonValue]:
        """Return nested plain data, for JSON."""
        plain: dict[str, JsonValue] = dataclasses.asdict(self)
        return plain

    def to_flat(self) -> dict[str, ConfigValue]:
        """Return every setting by its flat name."""
        return {name: getattr(getattr(self, section), name) for name, section in _SECTION_OF.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Config:
        """Rebuild a configuration from `to_dict`; missing fields keep their defaults.

        Raises:
            ValueError: an unknown section or key, or a value of the wrong type or out of range.
        """
        for section, values in data.items():
            if section not in _SECTIONS or not isinstance(values, Mapping):
                raise ValueError(f"{section!r} is not a section of a fastac config, expected " + ", ".join(_SECTIONS))
        flat = _open_sections(data)
        if "shards" not in flat and isinstance(flat.get("workers"), int):
            flat["shards"] = flat["workers"]  # saved before there were shards: every worker was one
        if "env_id" in flat:
            flat.setdefault("mask_actions", False)  # saved before there were masks
        return cls().replace(**flat)


_SECTIONS: dict[str, type] = {
    "env": EnvConfig,
    "model": ModelConfig,
    "algo": AlgoConfig,
    "optim": OptimConfig,
    "run": RunConfig,
}
_SECTION_OF: dict[str, str] = {f.name: section for section, kind in _SECTIONS.items() for f in fields(kind)}
_KIND_OF: dict[str, object] = {n: k for kind in _SECTIONS.values() for n, k in get_type_hints(kind).items()}
assert len(_SECTION_OF) == sum(len(fields(kind)) for kind in _SECTIONS.values()), "field names must be unique"


def read_settings(data: Mapping[str, object]) -> dict[str, ConfigValue]:
    """Return settings by flat names from plain data, in which they are flat or in sections; "None" means None.

    Raises:
        ValueError: an unknown key, or a value of the wrong type.
    """
    settings = {}
    for name, value in _open_sections(data).items():
        kind = _KIND_OF[name]
        settings[name] = coerce(name, kind, None if value == "None" and type(None) in get_args(kind) else value)
    return settings


def _open_sections(data: Mapping[str, object]) -> dict[str, ConfigValue]:
    """Return the values by flat names; values are not checked."""
    flat: dict[str, ConfigValue] = {}
    for key, value in data.items():
        is_section = key in _SECTIONS and isinstance(value, Mapping)
        for name, item in cast(Mapping[str, ConfigValue], value if is_section else {key: value}).items():
            section = _section_of(name)
            if is_section and section != key:
                raise ValueError(f"config key {name!r} stands in {key!r}, expected in {section!r}.")
            if name in flat:
                raise ValueError(f"config key {name!r} stands there twice, expected once.")
            flat[name] = item
    return flat


def setting_names() -> list[str]:
    """Return the flat names of all fields."""
    return list(_SECTION_OF)


def _section_of(name: str) -> str:
    if name not in _SECTION_OF:
        raise unknown(name, _SECTION_OF)
    return _SECTION_OF[name]
