"""The Python interface: from settings to sessions and runs."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal, TypeAlias, Unpack, cast, get_args

import gymnasium as gym
import numpy as np

from fastac.build import (
    EncoderFactory,
    EnvFactory,
    Streams,
    assemble,
    build_evaluation_envs,
    describe_untuned,
    evaluation_seed,
    evaluation_width,
    name_encoder,
    name_env,
    restart_seed,
    take_env,
    torch_threads,
)
from fastac.config import (
    ActionChoice,
    AlgoName,
    Config,
    ConfigValue,
    JsonValue,
    ResumeSettings,
    TrainSettings,
    WrapperFactory,
)
from fastac.contract import WorkerFailure
from fastac.envs.source import Named
from fastac.envs.wrappers import name_wrappers
from fastac.pickling import end_where_imported
from fastac.runs import Session
from fastac.runs.checkpoint import Checkpoint
from fastac.runs.configuring import Base, ConfigLike, configure
from fastac.runs.evaluate import MOST_STEPS, Evaluation, Tell, action_noise
from fastac.runs.evaluate import evaluate as play_episodes
from fastac.runs.follower import Follower
from fastac.runs.on_hosts import HostRun, begin_on_hosts
from fastac.runs.player import make_player
from fastac.runs.resuming import check_spaces, continued_config, log_changes, why_complete
from fastac.runs.run_dir import RunDirectory
from fastac.runs.services import check_installed
from fastac.runs.transfer import begin_with, load_model, read_origin
from fastac.runs.worker_count import choose_workers
from fastac.text import log_on_stderr
from fastac.tools.policy import TrainedPolicy
from fastac.torchrun import end_agent, find_launch, is_launched
from fastac.workers import Training

log = logging.getLogger("fastac")

# An environment as a user may give it: an id, a class, a function, a spec, or an instance from `gymnasium.make`.
EnvLike: TypeAlias = "str | EnvFactory | gym.Env[np.ndarray, np.ndarray]"

# Selects a run's policy: the one with the best evaluation, or the last one.
Which: TypeAlias = Literal["best", "last"]


@dataclass(frozen=True, slots=True, repr=False)
class Run:
    """A run that has ended, or was loaded.

    Attributes:
        config: the configuration of the run.
        directory: the run directory.
        policy: the trained policy, the best one unless the last was requested; call `policy.act(obs)`.
        summary: the content of `summary.json`; empty for a run that has not ended.
        checkpoint: which policy it is.
        env: builds its environments, if known and if the name in `config` is not enough.
    """

    config: Config
    directory: Path
    policy: TrainedPolicy
    summary: Mapping[str, JsonValue]
    checkpoint: Which = "best"
    env: EnvFactory | None = None

    def __repr__(self) -> str:
        """Return the algorithm, the environment, the mean return and the directory as text."""
        told = "eval_mean_return" if self.checkpoint == "best" else "last_eval_mean_return"
        config, mean_return = self.config, self.summary.get(told)
        episodes = self.summary.get("eval_episodes")
        reached = f", mean return {mean_return:.1f} over {episodes} episodes" if isinstance(mean_return, float) else ""
        return f"Run({config.algo.algo} on {config.env.env_id}, seed {config.run.seed}{reached}, {self.directory})"


def train(
    env: EnvLike | None = None,
    algo: AlgoName | None = None,
    *,
    preset: str | None = None,
    config: ConfigLike | None = None,
    run_dir: Path | str | None = None,
    encoder: str | EncoderFactory | None = None,
    verbose: bool = False,
    checkpoint: Which = "best",
    **settings: Unpack[TrainSettings],
) -> Run:
    """Train to the end and return the run, with its best policy.

    Args:
        env: an environment's id, `module:name` of a class or function, or the class or function itself. A class of
            environments, or a function without required parameters, builds one environment; it is called once per
            environment. A function with a parameter `num_envs`, or with a required parameter, builds a
            `gymnasium.vector.VectorEnv` of that many (and receives a `seed` if it has such a parameter). Also a spec
            from `gymnasium.spec(...)`, or an environment from `gymnasium.make(...)`. `env_kwargs` are passed to it.
            None if `config` names one.
        algo: a2c (the default without a preset), a3c, ppo or reinforce.
        preset: a preset's name; by default the algorithm's own preset.
        config: settings below those given one by one and above the preset: a .json, .yaml or .toml file, the
            directory of an earlier run, a `Config`, or a mapping, flat or in sections.
        run_dir: a new directory; by default a dated one under `runs/`.
        encoder: an encoder's name as in the configuration (auto, mlp, nature, a3c, minatar or `module:name` of a
            function); or a function that builds an `nn.Module` for an observation space, replacing the configured
            layers. The module maps `[..., *obs_shape]` to `[..., D]` and is kept in evaluation mode.
        verbose: show progress on stderr (a bar on a terminal, else a line per evaluation), and log messages unless
            your program has set up logging.
        checkpoint: which policy to return, the one with the best evaluation, or the last one.
        settings: any field of the configuration by its flat name, such as `num_envs=64`.

    Raises:
        ValueError: the settings are not valid, or the directory already holds a run; nothing is written.
        EnvFailure: an environment failed during the run; the last checkpoint stays.
        WorkerFailure: a worker was lost (with a3c: after all allowed restarts); a checkpoint stays.
        KeyboardInterrupt: Ctrl-C; everything is saved, and `resume` continues the run.
        SystemExit: SIGTERM; everything is saved as after Ctrl-C; the exit code is 143.

    With a3c, or several workers, `env` and `encoder` are sent to other processes, so they must be defined at the top
    level of a module. If that module is the script itself, it needs `if __name__ == "__main__":`; otherwise the
    script needs no guard. Objects defined in a module are recorded by name, so that `fastac eval`, `record` and
    `resume` find them.
    """
    _check_which(checkpoint)
    with _giving_up(), ExitStack() as lasting:
        if verbose and is_launched():
            lasting.enter_context(log_on_stderr())
        begun = _begin(
            env, algo, preset, config, run_dir, encoder, verbose, cast("dict[str, ConfigValue]", {**settings})
        )
        if begun is not None and not isinstance(begun, Follower):
            return complete(begun, checkpoint)
        if begun is not None:
            begun.run()
            _end_if_stopped(begun.stop_signal)
        assert run_dir is not None, "a run on hosts has a directory that was given"
        return load(run_dir, checkpoint=checkpoint, encoder=encoder)


def _end_if_stopped(stop_signal: int | None) -> None:
    """End a process of torchrun if a user has stopped the run: any other way it would begin again."""
    if stop_signal and is_launched():
        end_agent()
        raise SystemExit(0)


@contextmanager
def _giving_up() -> Iterator[None]:
    """End torchrun after a failure that another start cannot mend."""
    try:
        yield
    except WorkerFailure:
        raise
    except (ValueError, RuntimeError):
        if is_launched():
            end_agent()
        raise


def complete(session: Session, checkpoint: Which = "best") -> Run:
    """Train a session to its end and return the run, as `train` does; for an existing run see `resume`.

    Args:
        session: from `start` or `resume`.
        checkpoint: which policy to return, the one with the best evaluation, or the last one.

    Raises:
        As `train` during training.
    """
    _check_which(checkpoint)
    for _ in session:
        pass
    run = finish(session, checkpoint)
    _end_if_stopped(session.stop_signal)
    if session.stop_signal == signal.SIGTERM:
        raise SystemExit(128 + signal.SIGTERM)
    if session.stop_signal is not None:
        raise KeyboardInterrupt(f"all is saved: go on with {session.how_to_resume}")
    return run


def start(
    env: EnvLike | None = None,
    algo: AlgoName | None = None,
    *,
    preset: str | None = None,
    config: ConfigLike | None = None,
    run_dir: Path | str | None = None,
    encoder: str | EncoderFactory | None = None,
    verbose: bool = False,
    **settings: Unpack[TrainSettings],
) -> Session:
    """Begin a run and return it as an iterator of reports; `finish` ends it. See `train` for the arguments.

    Under torchrun only `train` divides a run among hosts.
    """
    if is_launched():
        raise ValueError("fastac.start trains on one host, and torchrun is for several: call fastac.train instead.")
    begun = _begin(env, algo, preset, config, run_dir, encoder, verbose, cast("dict[str, ConfigValue]", {**settings}))
    return cast(Session, begun)  # only torchrun starts others


def _begin(
    env: EnvLike | None,
    algo: AlgoName | None,
    preset: str | None,
    config: ConfigLike | None,
    run_dir: Path | str | None,
    encoder: str | EncoderFactory | None,
    verbose: bool,
    settings: dict[str, ConfigValue],
) -> Session | Follower | None:
    """Begin a run, see `start`; under torchrun begin or continue it, see `begin_on_hosts`."""
    end_where_imported()
    launch = find_launch()
    with ExitStack() as held:
        if verbose:
            held.enter_context(log_on_stderr())
        base = Base.read(config)
        if env is None and "env_id" not in base.settings:
            raise ValueError("env is None, expected an environment, or a config that names one.")
        named = name_env(str(base.settings["env_id"]) if env is None else env)
        complete, factory = configure_named(named, algo, preset, encoder, base, settings)
        directory = None if run_dir is None else Path(run_dir)
        if launch is not None:
            return begin_on_hosts(complete, HostRun(launch, directory, named.given, factory, verbose))
        return start_config(complete, directory, named.given, factory, verbose, held=held)


def configure_named(
    named: Named,
    algo: AlgoName | None,
    preset: str | None,
    encoder: str | EncoderFactory | None,
    base: Base,
    settings: dict[str, ConfigValue],
) -> tuple[Config, EncoderFactory | None]:
    """Return the preset updated with the given settings, and the encoder function if `encoder` is one."""
    if "env_id" in settings:
        raise ValueError(
            f"env_id is {settings['env_id']!r} beside the environment {named.env_id!r}, expected only the latter."
        )
    if named.kwargs or "env_kwargs" in settings:
        given_kwargs = Config().replace(env_kwargs=settings.get("env_kwargs", {})).env.env_kwargs
        settings["env_kwargs"] = cast("dict[str, JsonValue]", {**named.kwargs, **given_kwargs})
    if "wrappers" in settings:
        settings["wrappers"] = name_wrappers(cast("Sequence[str | WrapperFactory]", settings["wrappers"]))
    name, factory = name_encoder(encoder)
    settings |= {key: value for key, value in {"algo": algo, "encoder": name}.items() if value is not None}
    return configure(named.env_id, preset, settings, base, named.given)[0], factory


def start_config(
    config: Config,
    run_dir: Path | None = None,
    env_factory: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
    verbose: bool = False,
    command: str = "",
    held: ExitStack | None = None,
) -> Session:
    """Begin a run of a complete configuration; see `start`.

    `command` is stored in the summary; `held` holds resources to close with the session.
    """
    end_where_imported()
    began = perf_counter()
    check_installed(config)
    origin = read_origin(config, encoder)
    config = choose_workers(config, env_factory, encoder)
    untuned = describe_untuned(config)
    if untuned is not None:
        log.info("%s", untuned)
    with held or ExitStack() as lasting:
        training = assemble(config, Streams.spawn(config.run.seed).env, env_factory, encoder)
        with _closing_on_error(training):
            _log_cautions(training)
            if origin is not None:
                log.info("%s", begin_with(training, origin, config.model))
            directory = RunDirectory.create_default(config) if run_dir is None else RunDirectory.create(run_dir, config)
            lasting.enter_context(directory.held())
            try:
                return Session(config, directory, training, began, lasting, env_factory, None, verbose, command)
            except BaseException:
                directory.discard()
                raise


def resume(
    run_dir: Path | str,
    *,
    env: EnvLike | None = None,
    encoder: str | EncoderFactory | None = None,
    verbose: bool = False,
    command: str = "",
    **settings: Unpack[ResumeSettings],
) -> Session:
    """Return a session that continues a run from its last checkpoint; bit-exact if the environments support capture.

    Nothing is trained, and the directory stays unchanged, until the session is iterated over::

        run = fastac.complete(fastac.resume("runs/mine", total_env_steps=2e6))

    Args:
        run_dir: the run's directory.
        env: the class or function of the environment, if the run began with one that cannot be imported.
        encoder: the encoder function, if it cannot be imported; a name must be the run's own.
        verbose: see `train`.
        command: stored in the summary.
        settings: new values, such as `total_env_steps`, `learning_rate` or `ent_coef`; what is not given stays. Each
            change is logged and written to `changes.jsonl`. Schedules still span all steps of the run, and
            `budget_minutes` includes the minutes up to the checkpoint. With other `workers` results are the same.

    Raises:
        ValueError: there is no run or no checkpoint, the checkpoint is damaged or of another run, `config.json` was
            edited, the run is complete, or a setting cannot change while a run goes on.
    """
    if is_launched():
        raise ValueError("torchrun continues a run by itself: start it with the command that began the run.")
    end_where_imported()
    began = perf_counter()
    directory = RunDirectory.open(Path(run_dir))
    with ExitStack() as held:
        if verbose:
            held.enter_context(log_on_stderr())
        held.enter_context(directory.held())  # lock first: another session may be about to save
        checkpoint = directory.load_checkpoint("last")
        config = _continue(directory, checkpoint, cast("dict[str, ConfigValue]", {**settings}))
        factory, given = _pick_encoder(encoder, config), _find_given(env, config)
        config = choose_workers(config, given, factory, checkpoint.env_steps)
        # Saved streams overwrite those of these environments; streams that could not be saved start from a new seed.
        training = assemble(config, restart_seed(config.run.seed, checkpoint.env_steps), given, factory)
        with _closing_on_error(training):
            _log_cautions(training)
            check_spaces(training.envs, checkpoint)
            session = Session(config, directory, training, began, held, given, checkpoint, verbose, command)
        log_changes(checkpoint.config, config, checkpoint.env_steps)
        return session


def _continue(directory: RunDirectory, checkpoint: Checkpoint, changes: Mapping[str, ConfigValue]) -> Config:
    """Return the configuration that a run continues with."""
    directory.check_checkpoints()
    config = continued_config(checkpoint.config, directory.read_config(), directory.config_path, changes)
    complete = why_complete(config, checkpoint, directory)
    if complete is not None:
        raise ValueError(complete)
    check_installed(config)
    return config


def finish(session: Session, checkpoint: Which = "best") -> Run:
    """End a session, see `Session.finish`, and return its run.

    Args:
        session: from `start` or `resume`.
        checkpoint: which policy to return, the one with the best evaluation, or the last one.

    Raises:
        ValueError: `checkpoint` is neither best nor last, nothing was trained yet, or the session was closed before.
    """
    _check_which(checkpoint)
    summary = session.finish()
    envs, model = session.training.envs, session.copy_policy(checkpoint)
    spaces = envs.single_observation_space, envs.single_action_space
    policy = TrainedPolicy(model, *spaces, config=session.config.model)
    return Run(session.config, session.directory.path, policy, summary, checkpoint, session.env_factory)


def load(
    run_dir: Path | str,
    *,
    checkpoint: Which = "best",
    encoder: str | EncoderFactory | None = None,
) -> Run:
    """Load a run's best policy (the last if none was evaluated) on the CPU, for evaluation or use.

    This needs no environment: its spaces are saved.

    Args:
        run_dir: the run's directory.
        checkpoint: which policy, the one with the best evaluation, or the last one.
        encoder: the encoder function, if the run began with one that cannot be imported.

    Raises:
        ValueError: there is no run or no checkpoint, or the checkpoint is damaged.
    """
    _check_which(checkpoint)
    directory = RunDirectory.open(Path(run_dir))
    saved, spaces, model = load_model(directory, checkpoint, _pick_encoder(encoder, directory.read_config()))
    of_envs = spaces.single_observation_space, spaces.single_action_space
    policy = TrainedPolicy(model, *of_envs, config=saved.config.model)
    return Run(
        saved.config, directory.path, policy, directory.read_summary() if directory.has_ended else {}, checkpoint
    )


def evaluate(
    run: Run,
    episodes: int = 100,
    seed: int = 0,
    *,
    env: EnvLike | None = None,
    actions: ActionChoice | None = None,
    max_steps: int | None = None,
    tell: Tell | None = None,
) -> Evaluation:
    """Play episodes and return raw returns, in newly built environments with their own random stream.

    Args:
        run: from `train`, `finish` or `load`.
        episodes: number of episodes.
        seed: for the environments and sampled actions.
        env: the class or function of the environment, if the run began with one that cannot be imported.
        actions: greedy or sampled; None uses the run's own `eval_actions`.
        max_steps: step limit of an episode; None uses the limit of the run's own evaluations.
        tell: called after every step with the episodes played so far and the total number of episodes.

    Raises:
        ValueError: `episodes` or `max_steps` is below 1, or `actions` is not valid.
        EnvFailure: an environment failed.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}, expected at least 1.")
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}, expected at least 1, or None.")
    if actions not in (None, *get_args(ActionChoice)):
        raise ValueError(f"actions is {actions!r}, expected {' or '.join(get_args(ActionChoice))}.")
    stream = evaluation_seed(seed, 0)
    noise = action_noise(actions or run.config.run.eval_actions, stream)
    given = run.env if env is None and run.env is not None else _find_given(env, run.config)
    width = evaluation_width(run.config.env, episodes, given)
    envs = build_evaluation_envs(run.config.env, width, stream, given)
    try:
        limit = max_steps or run.config.run.eval_max_steps or envs.max_episode_steps or _limit_of(run)
        with torch_threads(run.config.run.torch_threads):
            player = make_player(run.policy.model, width, run.policy.device)
            return play_episodes(player, envs, episodes, noise, limit, tell=tell)
    finally:
        envs.close()


def _limit_of(run: Run) -> int:
    """Return the final episode limit of the run's own evaluations."""
    limit = run.summary.get("eval_max_steps")
    return limit if isinstance(limit, int) else MOST_STEPS


def _check_which(checkpoint: str) -> None:
    if checkpoint not in get_args(Which):
        raise ValueError(f"checkpoint is {checkpoint!r}, expected {' or '.join(get_args(Which))}.")


def _find_given(env: EnvLike | None, config: Config) -> EnvFactory | None:
    """Return the environment factory of a run, or None if the recorded name is sufficient."""
    return name_env(config.env.env_id).given if env is None else take_env(env)


def _log_cautions(training: Training) -> None:
    for caution in training.envs.cautions:
        log.warning("%s", caution)


def _pick_encoder(encoder: str | EncoderFactory | None, config: Config) -> EncoderFactory | None:
    """Return the encoder function, or None if `encoder` is the configured encoder's name."""
    name, factory = name_encoder(encoder)
    if name is None or name == config.model.encoder:
        return factory
    if isinstance(encoder, str):
        raise ValueError(f"encoder is {encoder!r}, expected {config.model.encoder!r}, as the run has it: leave it out.")
    return encoder


@contextmanager
def _closing_on_error(training: Training) -> Iterator[None]:
    try:
        yield
    except BaseException:
        training.close()
        raise
