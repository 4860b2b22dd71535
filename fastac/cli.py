"""The command line: parse, build, consume the session's stream, say what happened.

Bad input is one sentence on stderr and exit code 2. What a command does not need is imported by none:
`fastac --help` does not wait for torch.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal, TextIO

from tyro.conf import Positional

from fastac import __version__
from fastac.config import ActionChoice, Config
from fastac.flags import given, parse, peek, take_env_id, to_arguments, without
from fastac.presets import PRESETS, find
from fastac.text import fit, fit_command

if TYPE_CHECKING:
    from fastac.presets.preset import Preset
    from fastac.runs import Session
    from fastac.tools.tune import Search, Trial


@dataclass(frozen=True)
class TrainOptions:
    """Train an agent: fastac train ENV_ID picks the tuned preset, and every field can be overridden.

    What is True or False has a --no- flag too, such as --no-fire-reset.
    """

    config: Config
    preset: str | None = None
    """A preset's name, where not the algorithm's own (see fastac list)."""
    run_dir: Path | None = None
    """A new directory for the run. Default: a dated one under runs/."""
    tuned: bool = False
    """Take the workers, vectorization and reuse-forward that fastac tune found, where not given; else find them."""
    json: bool = False
    """Print summary.json as the last line of stdout."""


@dataclass(frozen=True)
class TuneOptions:
    """Find the fastest settings for an environment on this machine; every flag of train's says what to tune for.

    What is True or False has a --no- flag too, such as --no-fire-reset.
    """

    config: Config
    preset: str | None = None
    """A preset's name, where not the algorithm's own (see fastac list)."""
    seconds: float = 3.0
    """How long to measure each setting."""


@dataclass(frozen=True)
class ResumeOptions:
    """Continue a run from its last checkpoint."""

    run_dir: Positional[Path]
    """The run's directory."""
    total_env_steps: int | None = None
    """A new budget in environment steps."""
    budget_minutes: float | None = None
    """A new budget in minutes of wall-clock, of which those up to the last checkpoint are spent."""
    until_return: float | None = None
    """A new return to stop at."""
    learning_rate: float | None = None
    """A new learning rate. Default: the run's own."""
    eval: bool = True
    """Go on with evaluations, if the run has any."""
    json: bool = False
    """Print summary.json as the last line of stdout."""


@dataclass(frozen=True)
class EvalOptions:
    """Play episodes with a run's best policy, in raw reward."""

    run_dir: Positional[Path]
    """The run's directory."""
    episodes: int = 100
    """Episodes to play."""
    seed: int = 0
    """Seed of the environments, and of sampled actions."""
    actions: ActionChoice | None = None
    """The most likely ones (greedy), or as training takes them (sampled). Default: the run's own eval-actions."""
    checkpoint: Literal["best", "last"] = "best"
    """Which policy plays, the one with the best evaluation, or the last one."""
    max_steps: int | None = None
    """Cut an episode after so many steps. Default: as in the run's own evaluations."""
    json: bool = False
    """Print the result as one JSON line."""


@dataclass(frozen=True)
class RecordOptions:
    """Record an episode of a run's best policy as a GIF or MP4."""

    run_dir: Positional[Path]
    """The run's directory."""
    output: Path | None = None
    """A .gif or .mp4 file. Default: episode.gif in the run's directory."""
    seed: int = 0
    """Seed of the environment."""
    checkpoint: Literal["best", "last"] = "best"
    """Which policy plays, the one with the best evaluation, or the last one."""


@dataclass(frozen=True)
class PlotOptions:
    """Draw learning curves of runs as a PNG: mean and spread over seeds."""

    run_dirs: Positional[tuple[Path, ...]]
    """The runs' directories."""
    output: Path = field(default_factory=lambda: Path("learning-curves.png"))
    """The picture."""
    x: Literal["env_steps", "seconds"] = "env_steps"
    """What is drawn to the right."""


@dataclass(frozen=True)
class ListOptions:
    """List the presets and what they reach."""


def _train(words: Sequence[str]) -> int:
    env_id, words = take_env_id(words, "train")
    options = parse(TrainOptions, words, "fastac train ENV_ID", TrainOptions(_find_default(env_id, words)))
    _check_env_id(options.config, env_id)
    config = _take_tuned(options.config, words) if options.tuned else options.config
    from fastac.api import start_config
    from fastac.build import shorten_rollout

    config = shorten_rollout(config, is_asked="num_steps" in given(words))

    command = shlex.join(["fastac", "train", env_id, *words])
    return _follow(start_config(config, options.run_dir, verbose=True, command=command), options.json)


def _find_default(env_id: str, words: Sequence[str]) -> Config:
    """Find what the flags override."""
    algo, preset = peek(words, "--algo"), peek(words, "--preset")
    if any(word in ("-h", "--help") for word in words):
        # Help shows the preset's values, but for an environment without one it does not wait for torch.
        return _take_protocol(find(env_id, preset or algo or "a2c") or Config().replace(env_id=env_id), words)
    from fastac.build import default_config

    arguments = to_arguments(peek(words, "--env-kwargs") or "{}")
    config, flags = _take_protocol(default_config(env_id, algo, preset, None, arguments), words), given(words)
    if {"num_envs", "envs_per_worker"} <= flags:
        raise ValueError("num_envs and envs_per_worker are both given, expected one of them.")
    # A number of environments in all overrides a preset's number for each worker.
    return config.replace(num_envs=config.env.num_envs) if "num_envs" in flags else config


def _take_protocol(config: Config, words: Sequence[str]) -> Config:
    """Return the configuration with all that --atari-protocol says; the parser would change only its name."""
    protocol = peek(words, "--atari-protocol")
    if protocol is None:
        return config
    return config.replace(atari_protocol=None if protocol == "None" else protocol)


def _check_env_id(config: Config, env_id: str) -> None:
    if config.env.env_id != env_id:
        raise ValueError(f"the environment is named twice, {env_id} and --env-id {config.env.env_id}.")


def _tune(words: Sequence[str]) -> int:
    env_id, words = take_env_id(words, "tune")
    options = parse(TuneOptions, words, "fastac tune ENV_ID", TuneOptions(_find_default(env_id, words)))
    config, seconds = options.config, options.seconds
    _check_env_id(config, env_id)
    if not 0.0 < seconds <= 3600.0:
        raise ValueError(f"seconds is {seconds!r}, expected a number above 0, up to 3600.")
    from fastac.tools.tune import TUNED, Search, measure_sps

    for name in sorted(given(words) & set(TUNED)):
        raise ValueError(f"--{name.replace('_', '-')} is what fastac tune finds: leave it out.")
    search = Search(config, partial(measure_sps, seconds=seconds), seconds)
    _print_trials(search, search.run(), config, sys.stdout)
    kept = _keep_tuned(search, config)
    _print_trials(search, search.grow(), config, sys.stdout)
    _print_tuned(search, ["fastac", "train", env_id, *without(words, "--seconds")], kept)
    return 0


def _take_tuned(config: Config, words: Sequence[str]) -> Config:
    """Return the configuration with what `fastac tune` found for it, now or before; flags win."""
    from fastac.tools.tune import TUNED, Search, load_tuned, measure_sps

    setting = load_tuned(config)
    if setting is None:
        print(fit("Nothing is tuned for this on this machine yet, so that comes first.", sys.stderr), file=sys.stderr)
        seconds = TuneOptions.seconds
        search = Search(config, partial(measure_sps, seconds=seconds), seconds)
        _print_trials(search, search.run(), config, sys.stderr)
        print(fit(_keep_tuned(search, config), sys.stderr), file=sys.stderr)
        setting = search.best.setting
    flags = given(words)
    config = config.replace(**{name: getattr(setting, name) for name in TUNED if name not in flags})
    told = f"tuned: {setting.flags}{' (but for what is given)' if flags & set(TUNED) else ''}"
    print(fit(told, sys.stderr), file=sys.stderr)
    return config


def _keep_tuned(search: Search, config: Config) -> str:
    """Keep what was found; say in a sentence where, or why not."""
    from fastac.runs.files import RecordError
    from fastac.tools.tune import save_tuned

    try:
        return f"Kept in {save_tuned(config, search.best)}"
    except RecordError as error:
        return f"It is not kept for next time: {error}"


def _print_trials(search: Search, trials: Iterator[Trial], config: Config, out: TextIO) -> None:
    """Print a line per trial when it is done, and what they are above the first."""
    for trial in trials:
        if len(search.own) + len(search.larger) == 1:
            print(fit(_tell_trials(search, config), out), file=out)
        print(fit(_tell_trial(trial), out), file=out, flush=True)


def _tell_trials(search: Search, config: Config) -> str:
    from fastac.processes import count_cores
    from fastac.tools.tune import cpu_model

    where = f"{config.env.env_id}, {config.algo.algo}, {count_cores()} cores ({cpu_model()})"
    head = f"{'envs':>8}{'workers':>9}  {'vectorization':<15}{'reuse-forward':<15}{'steps/s':>12}{'took':>9}"
    return f"{where}: {search.seconds:g} s each, untrained policy\n\n{head}"


def _tell_trial(trial: Trial) -> str:
    setting = trial.setting
    sps = "-" if trial.failure else f"{trial.sps:,.0f}"
    row = (
        f"{setting.num_envs:>8}{setting.workers:>9}  {setting.vectorization:<15}"
        f"{'yes' if setting.reuse_forward else 'no':<15}{sps:>12}{trial.took_s:>7.1f} s"
    )
    return row + (f"\n          which does not work here: {trial.failure}" if trial.failure else "")


def _print_tuned(search: Search, command: Sequence[str], kept: str) -> None:
    """Print what to do with what was found."""
    best, fastest = search.best, search.fastest

    def tell(*flags: str) -> None:
        print(fit_command(" ".join([shlex.join(command), *flags]), sys.stdout))

    print()
    print(f"Fastest with {best.setting.num_envs} envs, {best.sps:,.0f} steps/s. These flags change no algorithm;")
    print("random numbers may be others, as with another seed:")
    tell(best.setting.flags)
    print("or, as long as the rest stays the same:")
    tell("--tuned")
    print(fit(kept, sys.stdout))
    if fastest.setting.num_envs != best.setting.num_envs:
        times = fastest.setting.num_envs // best.setting.num_envs
        text = (
            f"\nFastest of all, {fastest.sps:,.0f} steps/s. But every update then learns from {times} times the rows: "
            "fewer updates in as many steps, which need other learning rates to learn as much:"
        )
        print(fit(text, sys.stdout))
        tell(f"--num-envs {fastest.setting.num_envs}", fastest.setting.flags)


def _resume(words: Sequence[str]) -> int:
    options = parse(ResumeOptions, words, "fastac resume")
    from fastac.api import resume

    command = shlex.join(["fastac", "resume", *words])
    session = resume(
        options.run_dir,
        total_env_steps=options.total_env_steps,
        budget_minutes=options.budget_minutes,
        until_return=options.until_return,
        learning_rate=options.learning_rate,
        eval=None if options.eval else False,
        verbose=True,
        command=command,
    )
    return _follow(session, options.json)


def _follow(session: Session, as_json: bool) -> int:
    """Consume a session's stream to its end and tell how it ended."""
    from fastac.contract import EnvFailure, WorkerFailure
    from fastac.runs.ending import describe_end

    try:
        for _ in session:
            pass
        summary = session.finish(measure_efficiency=True)
    except (EnvFailure, WorkerFailure, KeyboardInterrupt) as error:
        if not session.is_saved:
            raise
        hint = f"continue from the last checkpoint with: fastac resume {session.directory.path}"
        raise type(error)(f"{str(error) or _name_of(error)}; {hint}") from error
    for text in describe_end(session, summary):
        print(fit(text, sys.stderr), file=sys.stderr)
    if as_json:
        print(json.dumps(summary, allow_nan=False))
    return 0 if session.stop_signal is None else 128 + session.stop_signal


def _eval(words: Sequence[str]) -> int:
    options = parse(EvalOptions, words, "fastac eval")
    from fastac.api import evaluate, load

    run = load(options.run_dir, checkpoint=options.checkpoint)
    actions = options.actions or run.config.run.eval_actions
    result = evaluate(run, options.episodes, options.seed, actions=actions, max_steps=options.max_steps)
    if options.json:
        names = ("mean_return", "std_return", "mean_length", "episodes", "cut", "success_rate")
        print(json.dumps({name: getattr(result, name) for name in names}))
        return 0
    more = "" if result.success_rate is None else f", {result.success_rate:.0%} of them successes"
    more += f", {result.cut} of them cut before they ended" if result.cut else ""
    text = (
        f"mean return {result.mean_return:.2f} +- {result.std_return:.2f}, mean length {result.mean_length:.1f}, "
        f"{result.episodes} {actions} episodes{more}"
    )
    print(fit(text, sys.stdout))
    return 0


def _record(words: Sequence[str]) -> int:
    options = parse(RecordOptions, words, "fastac record")
    from fastac.api import load
    from fastac.tools.record import record

    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # frames are read, no window is shown

    output = options.output or options.run_dir / "episode.gif"
    run = load(options.run_dir, checkpoint=options.checkpoint)
    greedy = run.config.run.eval_actions == "greedy"
    episode = record(run.policy, run.config.env, output, options.seed, greedy=greedy)
    print(fit(f"{output}: one episode, return {episode.return_:.1f}, {episode.length} steps", sys.stdout))
    return 0


def _plot(words: Sequence[str]) -> int:
    options = parse(PlotOptions, words, "fastac plot")
    from fastac.tools.plot import plot

    plot(options.run_dirs, options.output, options.x)
    print(options.output)
    return 0


def _list(words: Sequence[str]) -> int:
    parse(ListOptions, words, "fastac list")
    print(_tell_presets_by_environment() if sys.stdout.isatty() else _tell_presets())
    return 0


def _tell_presets() -> str:
    """Tell a preset in a line, for programs that look for one."""
    head = f"{'environment':<45}{'preset':<16}{'reaches':>8}  what it is"
    return "\n".join([head, *(f"{preset.env_id:<45}{_tell_preset(preset)}" for preset in PRESETS)])


def _tell_presets_by_environment() -> str:
    """Tell presets under their environments, so that there is room for what they are."""
    env_ids = dict.fromkeys(preset.env_id for preset in PRESETS)  # in order
    lines = [f"{'  preset':<18}{'reaches':>8}  what it is"]
    for env_id in env_ids:
        lines += ["", env_id]
        lines += [
            fit(f"  {_tell_preset(preset)}", sys.stdout, hang=26) for preset in PRESETS if preset.env_id == env_id
        ]
    return "\n".join(lines)


def _tell_preset(preset: Preset) -> str:
    reaches = "-" if preset.reaches is None else f"{preset.reaches:g}"
    return f"{preset.name:<16}{reaches:>8}  {preset.what}"


_COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (_train, "train an agent: fastac train CartPole-v1"),
    "resume": (_resume, "continue a run: fastac resume DIR"),
    "tune": (_tune, "find the fastest settings on this machine: fastac tune CartPole-v1"),
    "eval": (_eval, "play episodes: fastac eval DIR --episodes 100"),
    "record": (_record, "record an episode as GIF or MP4: fastac record DIR"),
    "plot": (_plot, "draw learning curves: fastac plot DIR..."),
    "list": (_list, "list the presets and what they reach"),
}


def _help() -> str:
    lines = [fit(f"  {name:<12}{what}", sys.stdout, hang=12) for name, (_, what) in _COMMANDS.items()]
    more = "fastac COMMAND --help tells a command's flags."
    return "\n".join(["usage: fastac COMMAND [...]", "", "Fast, exact actor-critic training.", "", *lines, "", more])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 for bad input, 1 for a run that failed."""
    words = list(sys.argv[1:] if argv is None else argv)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for module:EnvId beside the user, as `python -m` would find it
    if words[:1] == ["--version"]:
        print(f"fastac {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else 2
    if words[0] not in _COMMANDS:
        near = get_close_matches(words[0], _COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(_COMMANDS)}."
        print(f"fastac: {words[0]!r} is not a command: {hint}", file=sys.stderr)
        return 2
    _log_to_stderr()
    logging.getLogger("fastac").setLevel(logging.INFO)  # and of other packages only warnings
    try:
        with _hearing_sigterm():
            return _COMMANDS[words[0]][0](words[1:])
    except ValueError as error:
        print(fit(f"fastac: {error}", sys.stderr), file=sys.stderr)
        return 2
    except RuntimeError as error:
        return _tell_failure(error)
    except KeyboardInterrupt as error:  # while starting or evaluating; a run that trains ends in order
        number = signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT
        if argv is None:
            signal.signal(number, signal.SIG_IGN)  # another one would only disturb the exit
        print(fit(f"fastac: {str(error) or _name_of(error)}", sys.stderr), file=sys.stderr)
        return 128 + number


class _Terminated(KeyboardInterrupt):
    """SIGTERM has come where nobody waits for it, while starting or evaluating."""


def _name_of(error: BaseException) -> str:
    return "terminated" if isinstance(error, _Terminated) else "interrupted"


@contextmanager
def _hearing_sigterm() -> Iterator[None]:
    """Raise `_Terminated` at SIGTERM, as Python raises KeyboardInterrupt at SIGINT, where it would die otherwise."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    is_ours = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if is_ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _log_to_stderr() -> None:
    """Let log lines fit the terminal."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Fitting("%(message)s"))
    logging.basicConfig(handlers=[handler])


class _Fitting(logging.Formatter):
    """Breaks lines between words."""

    def format(self, record: logging.LogRecord) -> str:
        """See `fastac.text.fit`."""
        return fit(super().format(record), sys.stderr)


def _tell_failure(error: RuntimeError) -> int:
    """Tell of an environment, disk or numbers that failed; anything else is a bug and keeps its traceback."""
    from fastac.contract import EnvFailure, NonFiniteError, WorkerFailure
    from fastac.runs.files import RecordError

    if not isinstance(error, EnvFailure | NonFiniteError | RecordError | WorkerFailure):
        raise error
    print(_find_traceback(error), end="", file=sys.stderr)
    print(fit(f"fastac: {error}", sys.stderr), file=sys.stderr)
    return 1 if isinstance(error, NonFiniteError | WorkerFailure) else 2


def _find_traceback(error: BaseException) -> str:
    """Return the traceback that a worker sent, or nothing where it died without one."""
    from fastac.processes import WorkerTraceback

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, WorkerTraceback):
        cause = cause.__cause__
    return str(cause or "")
