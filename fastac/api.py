"""The Python face: settings to sessions and runs."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal, TypeAlias, get_args

from fastac.build import (
    EncoderFactory,
    EnvFactory,
    Parts,
    Streams,
    assemble,
    build_evaluation_envs,
    build_model,
    default_config,
    evaluation_seed,
    evaluation_width,
    load_module,
    resolve_workers,
    restart_seed,
    single_thread,
)
from fastac.config import ActionChoice, AlgoName, Config, ConfigValue, EncoderName, JsonValue
from fastac.contract import read_branch
from fastac.records import Checkpoint, RunDirectory, best_mean_return, one_sentence
from fastac.run import Session
from fastac.run.resuming import continued_config, tell_changes, tell_jumps
from fastac.run.state import wall_minutes_of
from fastac.tools.evaluate import MOST_STEPS, Evaluation, Tell, action_noise
from fastac.tools.evaluate import evaluate as play_episodes
from fastac.tools.player import make_player
from fastac.tools.policy import TrainedPolicy

log = logging.getLogger("fastac")

# Which of a run's policies: the one with the best evaluation, or the last one.
Which: TypeAlias = Literal["best", "last"]


@dataclass(frozen=True, slots=True, repr=False)
class Run:
    """A run that has ended, or was loaded.

    Attributes:
        config: what was trained.
        directory: where everything is.
        policy: the trained policy, the best one unless the last was asked for; `policy.act(obs)`.
        summary: the content of `summary.json`; empty for a run that has not ended.
    """

    config: Config
    directory: Path
    policy: TrainedPolicy
    summary: Mapping[str, JsonValue]

    def __repr__(self) -> str:
        """Tell what was trained, what it has reached, and where it is."""
        config, mean_return = self.config, self.summary.get("eval_mean_return")
        reached = f", mean return {mean_return:.1f}" if isinstance(mean_return, float) else ""
        return f"Run({config.algo.algo} on {config.env.env_id}, seed {config.run.seed}{reached}, {self.directory})"


def train(
    env: str | EnvFactory,
    algo: AlgoName | None = None,
    *,
    preset: str | None = None,
    run_dir: Path | str | None = None,
    encoder: EncoderName | EncoderFactory | None = None,
    verbose: bool = False,
    checkpoint: Which = "best",
    **settings: ConfigValue | Sequence[int],
) -> Run:
    """Train to the end and return the run, with its best policy.

    Args:
        env: an environment id, or a function that takes a number and returns a
            `gymnasium.vector.VectorEnv` of so many environments (called again for evaluations).
        algo: a2c (if neither this nor a preset is given), a3c, ppo or reinforce.
        preset: a preset's name, where not the algorithm's own.
        run_dir: a new directory; by default a dated one under `runs/`.
        encoder: the name of one, as the configuration has it (auto, mlp, nature, a3c or minatar); or a function
            that builds an `nn.Module` for an observation space, in place of the configured layers:
            it maps `[..., *obs_shape]` to `[..., D]` and is kept in evaluation mode.
        verbose: show on stderr how far the run is: a bar on a terminal, elsewhere a line per evaluation.
        checkpoint: which policy to return, the one with the best evaluation, or the last one.
        settings: any field of the configuration by its flat name, such as `num_envs=64`.

    Raises:
        ValueError: the settings do not fit, or the directory holds a run; nothing is written.
        EnvFailure: an environment failed in mid-run; the last checkpoint stays.
        WorkerFailure: a worker was lost, with a3c more often than it is started again; a checkpoint stays.
        KeyboardInterrupt: Ctrl-C; all is saved, and `resume` goes on.
        SystemExit: SIGTERM, likewise; its code is 143.

    With a3c, or several workers, `env` and `encoder` go to other processes: they must be defined at the top level
    of a module, a script needs `if __name__ == "__main__":`, and environments can have no processes of their own.
    """
    session = start(env, algo, preset=preset, run_dir=run_dir, encoder=encoder, verbose=verbose, **settings)
    for _ in session:
        pass
    run = finish(session, checkpoint)
    if session.stop_signal == signal.SIGTERM:
        raise SystemExit(128 + signal.SIGTERM)
    if session.stop_signal is not None:
        raise KeyboardInterrupt(f"all is saved: go on with fastac.resume({str(run.directory)!r})")
    return run


def start(
    env: str | EnvFactory,
    algo: AlgoName | None = None,
    *,
    preset: str | None = None,
    run_dir: Path | str | None = None,
    encoder: EncoderName | EncoderFactory | None = None,
    verbose: bool = False,
    **settings: ConfigValue | Sequence[int],
) -> Session:
    """Begin a run and return it as an iterator of reports; `finish` ends it. Arguments as in `train`."""
    if not isinstance(env, str) and not callable(env):
        raise ValueError(f"env is {env!r}, expected an id, or a function that returns a gymnasium.vector.VectorEnv.")
    factory = None if isinstance(env, str) else env
    env_id = env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)
    if "env_id" in settings:
        raise ValueError(
            f"env_id is {settings['env_id']!r} beside the environment {env_id!r}, expected only the latter."
        )
    config = default_config(env_id, algo, preset, factory).replace(**settings)
    if isinstance(encoder, str):
        config = config.replace(encoder=encoder)
    directory = None if run_dir is None else Path(run_dir)
    return start_config(config, directory, factory, _pick_encoder(encoder, config), verbose)


def start_config(
    config: Config,
    run_dir: Path | None = None,
    env_factory: EnvFactory | None = None,
    encoder: EncoderFactory | None = None,
    verbose: bool = False,
    command: str = "",
) -> Session:
    """Begin a run of a complete configuration; see `start`. `command` goes into the summary."""
    began = perf_counter()
    config = resolve_workers(config, env_factory)
    parts = assemble(config, Streams.spawn(config.run.seed).env, env_factory, encoder)
    with _closing_on_error(parts):
        directory = RunDirectory.create_default(config) if run_dir is None else RunDirectory.create(run_dir, config)
        return Session(config, directory, parts, began, env_factory, encoder, None, verbose, command)


def resume(
    run_dir: Path | str,
    *,
    env: EnvFactory | None = None,
    encoder: EncoderName | EncoderFactory | None = None,
    total_env_steps: int | None = None,
    budget_minutes: float | None = None,
    until_return: float | None = None,
    learning_rate: float | None = None,
    verbose: bool = False,
    command: str = "",
) -> Session:
    """Continue a run from its last checkpoint, bit for bit where the environments can be captured.

    Args:
        run_dir: the run's directory.
        env: the environment function, if the run began with one.
        encoder: the encoder function, if the run began with one; a name must be the run's own.
        total_env_steps: a new budget; None keeps the run's.
        budget_minutes: a new budget, of which those up to the checkpoint are spent; None keeps the run's.
        until_return: a new return to stop at; None keeps the run's.
        learning_rate: a new one; None keeps the run's. Its schedule, if it has one, goes by all steps of the run.
        verbose: as in `train`.
        command: for the summary.

    Raises:
        ValueError: no run, no checkpoint, a damaged one or another run's, a `config.json` that was edited, or a run
            that is complete.
    """
    began = perf_counter()
    directory = RunDirectory.open(Path(run_dir))
    checkpoint = directory.load_checkpoint("last")
    directory.check_checkpoints()
    changes: dict[str, ConfigValue] = {
        "total_env_steps": total_env_steps,
        "budget_minutes": budget_minutes,
        "until_return": until_return,
        "learning_rate": learning_rate,
    }
    config = continued_config(checkpoint.config, directory.read_config(), directory.config_path, changes)
    with one_sentence(f"the last checkpoint in {directory.path} does not fit this run"):
        minutes = wall_minutes_of(checkpoint.state)
    _check_incomplete(config, checkpoint, minutes, directory)
    factory = _pick_encoder(encoder, config)
    # These environments' streams are overwritten by the saved ones, or new where none could be saved.
    parts = assemble(config, restart_seed(config.run.seed, checkpoint.env_steps), env, factory)
    with _closing_on_error(parts):
        session = Session(config, directory, parts, began, env, factory, checkpoint.state, verbose, command)
    told = tell_changes(checkpoint.config, config, checkpoint.env_steps)
    if told:
        is_jump = tell_jumps(checkpoint.config, config, checkpoint.env_steps)
        log.log(logging.WARNING if is_jump else logging.INFO, "from step %d on: %s", checkpoint.env_steps, told)
    return session


def finish(session: Session, checkpoint: Which = "best") -> Run:
    """End a session, see `Session.finish`, and return its run.

    Args:
        session: from `start` or `resume`.
        checkpoint: which policy to return, the one with the best evaluation, or the last one.

    Raises:
        ValueError: `checkpoint` is neither best nor last.
    """
    _check_which(checkpoint)
    summary = session.finish()
    if checkpoint == "last":
        session.load_last()
    envs = session.parts.envs
    policy = TrainedPolicy(session.parts.model, envs.single_observation_space, envs.single_action_space)
    return Run(session.config, session.directory.path, policy, summary)


def load(
    run_dir: Path | str,
    *,
    checkpoint: Which = "best",
    env: EnvFactory | None = None,
    encoder: EncoderName | EncoderFactory | None = None,
) -> Run:
    """Load a run's best policy (the last where none was evaluated) on the CPU, for evaluation or use.

    `env` and `encoder` as in `resume`; with `checkpoint="last"` it is the last policy.

    Raises:
        ValueError: no run, no checkpoint, or a damaged one.
    """
    _check_which(checkpoint)
    directory = RunDirectory.open(Path(run_dir))
    saved = directory.load_checkpoint(checkpoint)
    config = saved.config
    factory = _pick_encoder(encoder, config)
    envs = build_evaluation_envs(config.env, 1, evaluation_seed(config.run.seed, 0), env)
    try:
        model = build_model(config.model, envs, encoder=factory)
        with one_sentence(f"the {checkpoint} checkpoint in {directory.path} cannot be loaded"):
            load_module(model, read_branch(read_branch(saved.state, "parts"), "model"))
        policy = TrainedPolicy(model, envs.single_observation_space, envs.single_action_space)
    finally:
        envs.close()
    return Run(config, directory.path, policy, directory.read_summary() if directory.has_ended else {})


def evaluate(
    run: Run,
    episodes: int = 100,
    seed: int = 0,
    *,
    env: EnvFactory | None = None,
    actions: ActionChoice | None = None,
    max_steps: int | None = None,
    tell: Tell | None = None,
) -> Evaluation:
    """Play episodes in raw reward, in environments of their own stream.

    Args:
        run: from `train`, `finish` or `load`.
        episodes: how many.
        seed: of the environments, and of sampled actions.
        env: the environment function, if the run began with one.
        actions: greedy or sampled; None takes the run's own `eval_actions`.
        max_steps: an episode is cut after so many; None: the environment's own limit, or else the run's.
        tell: called after every step with the episodes played so far and how many there will be.

    Raises:
        ValueError: `episodes` or `max_steps` is below 1, or `actions` are of another kind.
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
    width = evaluation_width(run.config.env, episodes, env)
    envs = build_evaluation_envs(run.config.env, width, stream, env)
    try:
        limit = max_steps or envs.max_episode_steps or _limit_of(run)
        with single_thread():
            player = make_player(run.policy.model, width, run.policy.device)
            return play_episodes(player, envs, episodes, noise, limit, tell=tell)
    finally:
        envs.close()


def _limit_of(run: Run) -> int:
    """Return where the run's own evaluations cut an episode."""
    limit = run.summary.get("eval_max_steps")
    return run.config.run.eval_max_steps or (limit if isinstance(limit, int) else MOST_STEPS)


def _check_which(checkpoint: str) -> None:
    if checkpoint not in get_args(Which):
        raise ValueError(f"checkpoint is {checkpoint!r}, expected {' or '.join(get_args(Which))}.")


def _pick_encoder(encoder: EncoderName | EncoderFactory | None, config: Config) -> EncoderFactory | None:
    """Return the encoder function, if it is one and not the configured encoder's name."""
    if encoder is None or encoder == config.model.encoder:
        return None
    if isinstance(encoder, str):
        raise ValueError(f"encoder is {encoder!r}, expected {config.model.encoder!r}, as the run has it: leave it out.")
    if not callable(encoder):
        raise ValueError(f"encoder is {encoder!r}, expected a name, or a function that returns an nn.Module.")
    return encoder


def _check_incomplete(config: Config, checkpoint: Checkpoint, spent: float, directory: RunDirectory) -> None:
    """Refuse to resume a run that has nothing left to do, not even its last evaluation."""
    budget, target = config.run.total_env_steps, config.run.until_return
    if not directory.has_ended or directory.read_summary().get("stopped_by") is not None:
        return
    if checkpoint.env_steps >= budget:
        raise ValueError(
            f"the run is complete: it has taken {checkpoint.env_steps} of {budget} environment steps; "
            "give a larger --total-env-steps to go on."
        )
    minutes = config.run.budget_minutes
    if minutes is not None and spent >= minutes:
        raise ValueError(
            f"the run is complete: it has taken {spent:,.2f} of {minutes:g} minutes; "
            "give a larger --budget-minutes to go on."
        )
    best = best_mean_return(directory.path)
    if target is not None and best is not None and best >= target:
        raise ValueError(
            f"the run is complete: its mean return of {best:g} has reached {target:g}; "
            "give a larger --until-return to go on."
        )


@contextmanager
def _closing_on_error(parts: Parts) -> Iterator[None]:
    try:
        yield
    except BaseException:
        parts.close()
        raise
