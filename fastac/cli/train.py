"""fastac train, resume and tune."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast, get_type_hints

from fastac.cli.flags import HELP, Flag, Options, asks_for_help, flags_of, read, show_help
from fastac.cli.interrupts import name_of
from fastac.config import Config, ConfigValue, ResumeSettings, with_home
from fastac.garbage import loading
from fastac.presets import find
from fastac.text import fit, fit_command
from fastac.torchrun import end_agent, end_with_agent, find_launch, is_launched

if TYPE_CHECKING:
    from fastac.runs import Session
    from fastac.runs.follower import Follower
    from fastac.tools.tune import Measurement, Search


@dataclass(frozen=True)
class TrainOptions:
    """Train an agent. fastac train ENV_ID uses the environment's preset; flags override its values."""

    preset: str | None = None
    """Name of a preset, instead of the one named like the algorithm (see fastac list)."""
    config: Path | None = None
    """File of settings (.json, .yaml, .toml), flat or as in config.json; flags win over it, it wins over the preset."""
    from_: Path | None = None
    """Directory of a run to do again, with the changes that --config and flags say. ENV_ID may be left out."""
    run_dir: Path | None = None
    """New directory for the run. Default: a dated one under runs/."""
    tuned: bool = False
    """Use workers, vectorization and reuse-forward as found by fastac tune, unless given; tune first if needed."""
    json: bool = False
    """Print summary.json as the last line of stdout."""
    seeds: int | None = None
    """Train this many seeds from --seed on, side by side, each with a run directory below --run-dir; then sum up."""
    shared_run_dir: bool = False
    """On several hosts (see fastac hosts): refuse to train unless all of them have the same run directory."""


@dataclass(frozen=True)
class TuneOptions:
    """Find the fastest settings for an environment on this machine. The flags of train describe the run to tune."""

    preset: str | None = None
    """Name of a preset, instead of the one named like the algorithm (see fastac list)."""
    seconds: float = 3.0
    """Seconds to measure each setting."""


@dataclass(frozen=True)
class ResumeOptions:
    """Continue a run from its last checkpoint; settings stay as they are, apart from those that are given."""

    run_dir: Path
    """The run's directory."""
    json: bool = False
    """Print summary.json as the last line of stdout."""


# The flags that --help shows; --help-all shows the rest, too.
COMMON = (
    *("algo", "preset", "seed", "seeds", "total_env_steps", "budget_minutes", "until_return", "eval", "num_envs"),
    *("num_steps", "workers", "shards", "env_kwargs", "wrappers", "encoder", "hidden_sizes", "core", "learning_rate"),
    *("gamma", "ent_coef", "normalize_obs", "run_dir", "json"),
)
# The same for resume.
_RESUMED = (
    *("total_env_steps", "budget_minutes", "until_return", "eval", "workers", "learning_rate"),
    *("learning_rate_schedule", "gamma", "ent_coef", "clip_coef", "num_epochs", "num_minibatches"),
)
_GROUPS = {
    "env": "environments",
    "model": "network",
    "algo": "algorithm",
    "optim": "optimiser",
    "run": "run and evaluation",
}
_MORE = "A flag of True or False has a --no- too, such as --no-eval. --help-all tells of all flags, by group."


def setting_flags(config: Config) -> list[Flag]:
    """Return every field of the configuration as a flag, those for Atari last."""
    flags = [
        flag
        for section, kind in get_type_hints(Config).items()
        for flag in flags_of(kind, _GROUPS[section], getattr(config, section))
    ]
    ours = [flag for flag in flags if not flag.what.startswith("Atari: ") and flag.name != "atari_protocol"]
    return ours + [
        Flag(flag.name, flag.kind, flag.default, flag.what, "Atari games") for flag in flags if flag not in ours
    ]


@dataclass(frozen=True, slots=True)
class _Given:
    """The parsed arguments.

    Attributes:
        config: the resulting configuration.
        settings: the settings given by flags, files and earlier runs, by name.
    """

    config: Config
    settings: Mapping[str, ConfigValue]


def read_settings(
    command: str, kind: type[Options], words: Sequence[str], common: Sequence[str] = COMMON
) -> tuple[Options, _Given]:
    """Return the command's own options and the given settings; the first argument is the environment id.

    It may be left out if a file or an earlier run names the environment.

    Raises:
        ValueError: the arguments are invalid; the message is one sentence.
        SystemExit: after --help.
    """
    named, words = _take_env_id(words, command)
    prog = f"fastac {command} ENV_ID"
    own = flags_of(kind, "command")
    if asks_for_help(words):
        asked = [word for word in words if word not in HELP]
        env_id = named or "CartPole-v1"
        config = _configure_for_help(env_id, read([*own, *setting_flags(Config())], asked, prog))
        show_help(
            prog,
            f"{kind.__doc__} {_MORE} Defaults are those for {env_id}.",
            [*own, *setting_flags(config)],
            words,
            common,
        )
    values = read([*own, *setting_flags(Config())], words, prog)
    options = {flag.name: values.pop(flag.name) for flag in own if flag.name in values}
    settings = cast("dict[str, ConfigValue]", values)
    if named and settings.get("env_id", named) != named:
        raise ValueError(f"the environment is named twice, {named} and --env-id {settings['env_id']}.")
    if {"num_envs", "envs_per_worker"} <= settings.keys():
        raise ValueError("num_envs and envs_per_worker are both given, expected one of them.")
    if options.get("from_") is not None and options.get("preset") is not None:
        raise ValueError("from and preset are both given, expected one: a run's own settings take a preset's place.")
    from fastac.runs.configuring import Base, configure

    base = Base.read(*(cast("Path | None", options.get(name)) for name in ("from_", "config")))
    found = named or settings.get("env_id") or base.settings.get("env_id")
    if found is None:
        raise _needs_env_id(command)
    return kind(**options), _Given(*configure(str(found), cast("str | None", options.get("preset")), settings, base))


def _take_env_id(words: Sequence[str], command: str) -> tuple[str | None, list[str]]:
    """Return the environment id, which comes first, and the other arguments; None if a file may name it."""
    if words and not words[0].startswith("-"):
        return words[0], list(words[1:])
    if asks_for_help(words):
        is_next = len(words) > 1 and words[0] in HELP and not words[1].startswith("-")
        return (words[1], [words[0], *words[2:]]) if is_next else (None, list(words))
    if any(word.partition("=")[0] in ("--config", "--from") for word in words):
        return None, list(words)
    raise _needs_env_id(command)


def _needs_env_id(command: str) -> ValueError:
    return ValueError(f"{command} needs an environment id first, such as: fastac {command} CartPole-v1")


def _configure_for_help(env_id: str, values: Mapping[str, object]) -> Config:
    """Return the preset's values for help; for an environment without a preset this avoids importing torch."""
    name = values.get("preset") or values.get("algo") or "a2c"
    config = find(with_home(env_id), str(name)) or Config().replace(env_id=env_id)
    protocol = values.get("atari_protocol")
    return config if protocol is None else config.replace(atari_protocol=str(protocol))


def train(words: Sequence[str]) -> int:
    """Run `fastac train`."""
    if is_launched():
        end_with_agent()
    with loading():
        options, asked = read_settings("train", TrainOptions, words)
    config = _take_tuned(asked.config, asked.settings) if options.tuned else asked.config
    command = shlex.join(["fastac", "train", *words])
    if options.seeds is not None:
        if options.shared_run_dir:
            raise ValueError("shared_run_dir is True with seeds, expected False: seeds are trained on one machine.")
        from fastac.cli.studies import train_seeds

        return train_seeds(options, options.seeds, config, "workers" in asked.settings, command)
    launch = find_launch()
    with loading():
        from fastac.api import start_config

        if launch is None:
            session: Session | Follower | None = start_config(config, options.run_dir, verbose=True, command=command)
        else:
            from fastac.runs.on_hosts import HostRun, begin_on_hosts

            run = HostRun(launch, options.run_dir, verbose=True, command=command, must_share=options.shared_run_dir)
            session = begin_on_hosts(config, run)
    return _follow(session, options.json)


def tune(words: Sequence[str]) -> int:
    """Run `fastac tune`."""
    options, asked = read_settings("tune", TuneOptions, words)
    seconds = options.seconds
    if not 0.0 < seconds <= 3600.0:
        raise ValueError(f"seconds is {seconds!r}, expected a number above 0, up to 3600.")
    from fastac.tools.tune import TUNED, Search, measure_sps

    for name in sorted(asked.settings.keys() & set(TUNED) - {"vectorization"}):
        raise ValueError(f"--{name.replace('_', '-')} is what fastac tune finds: leave it out.")
    search = Search(asked.config, partial(measure_sps, seconds=seconds), seconds)
    _print_trials(search, search.run(), asked.config, sys.stdout)
    kept = _keep_tuned(search, asked.config)
    _print_trials(search, search.grow(), asked.config, sys.stdout)
    _print_tuned(search, ["fastac", "train", *without(words, "--seconds")], kept)
    return 0


def without(words: Sequence[str], flag: str) -> list[str]:
    """Return the arguments without a flag and its value."""
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and word != flag and not word.startswith(flag + "="):
            kept.append(word)
        skip = word == flag
    return kept


def _take_tuned(config: Config, given: Mapping[str, ConfigValue]) -> Config:
    """Return the configuration with the settings found by `fastac tune`, now or before; given flags take precedence."""
    from fastac.build import shorten_rollout
    from fastac.tools.tune import TUNED, Search, load_tuned, measure_sps

    setting = load_tuned(config)
    if setting is None:
        print(fit("Nothing is tuned for this on this machine yet, so that comes first.", sys.stderr), file=sys.stderr)
        seconds = TuneOptions.seconds
        search = Search(config, partial(measure_sps, seconds=seconds), seconds)
        _print_trials(search, search.run(), config, sys.stderr)
        print(fit(_keep_tuned(search, config), sys.stderr), file=sys.stderr)
        setting = search.best.setting
    config = config.replace(**{name: getattr(setting, name) for name in TUNED if name not in given})
    config = shorten_rollout(config, is_asked="num_steps" in given)
    told = f"tuned: {setting.flags}{' (but for what is given)' if given.keys() & set(TUNED) else ''}"
    print(fit(told, sys.stderr), file=sys.stderr)
    return config


def _keep_tuned(search: Search, config: Config) -> str:
    """Save the tuned settings; return a sentence that says where, or why not."""
    from fastac.runs.files import RecordError
    from fastac.tools.tune import save_tuned

    try:
        return f"Kept in {save_tuned(config, search.best)}"
    except RecordError as error:
        return f"It is not kept for next time: {error}"


def _print_trials(search: Search, trials: Iterator[Measurement], config: Config, out: TextIO) -> None:
    """Print a line per trial when it is done, and a header above the first."""
    for trial in trials:
        if len(search.own) + len(search.larger) == 1:
            print(fit(_tell_trials(search, config), out), file=out)
        print(fit(_tell_trial(trial), out), file=out, flush=True)


def _tell_trials(search: Search, config: Config) -> str:
    from fastac.cpu import count_cores
    from fastac.system import cpu_model

    where = f"{config.env.env_id}, {config.algo.algo}, {count_cores()} cores ({cpu_model()})"
    head = f"{'envs':>8}{'workers':>9}  {'vectorization':<15}{'reuse-forward':<15}{'steps/s':>12}{'took':>9}"
    return f"{where}: {search.seconds:g} s each, untrained policy\n\n{head}"


def _tell_trial(trial: Measurement) -> str:
    setting = trial.setting
    sps = "-" if trial.failure else f"{trial.sps:,.0f}"
    row = (
        f"{setting.num_envs:>8}{setting.workers:>9}  {setting.vectorization:<15}"
        f"{'yes' if setting.reuse_forward else 'no':<15}{sps:>12}{trial.took_s:>7.1f} s"
    )
    return row + (f"\n          which does not work here: {trial.failure}" if trial.failure else "")


def _tell_fastest(search: Search) -> str:
    """Return a sentence that compares the vectorizations with the configuration's own number of environments."""
    names = dict.fromkeys(trial.setting.vectorization for trial in search.own if not trial.failure)
    fastest = search.best.setting.vectorization
    text = f"Fastest vectorization here, of {', '.join(names)}: {fastest}."
    is_pool = fastest == "envpool"
    return f"{text} These environments are EnvPool's own, see the guide on environments." if is_pool else text


def _print_tuned(search: Search, command: Sequence[str], kept: str) -> None:
    """Print how to use the tuned settings."""
    best, fastest = search.best, search.fastest

    def tell(*flags: str, words: Sequence[str] = without(command, "--vectorization")) -> None:
        print(fit_command(" ".join([shlex.join(words), *flags]), sys.stdout))

    print()
    print(fit(_tell_fastest(search), sys.stdout))
    print(f"Fastest with {best.setting.num_envs} envs, {best.sps:,.0f} steps/s. These flags change no algorithm;")
    print("random numbers may be others, as with another seed:")
    tell(best.setting.flags)
    print("or, as long as the rest stays the same:")
    tell("--tuned", words=command)
    print(fit(kept, sys.stdout))
    if fastest.setting.num_envs != best.setting.num_envs:
        times = fastest.setting.num_envs // best.setting.num_envs
        text = (
            f"\nFastest of all, {fastest.sps:,.0f} steps/s. But every update then learns from {times} times the rows: "
            "fewer updates in as many steps, which need other learning rates to learn as much:"
        )
        print(fit(text, sys.stdout))
        tell(f"--num-envs {fastest.setting.num_envs}", fastest.setting.flags)


def resume(words: Sequence[str]) -> int:
    """Run `fastac resume`."""
    prog = "fastac resume"
    show_help(prog, f"{ResumeOptions.__doc__} {_MORE}", resume_flags(), words, ("run_dir", *_RESUMED, "json"))
    values = read([*resume_flags(), *_fixed_flags()], words, prog)
    if "run_dir" not in values:
        raise ValueError("resume needs a run's directory, such as: fastac resume runs/...")
    run_dir, as_json = Path(str(values.pop("run_dir"))), bool(values.pop("json", False))
    with loading():
        from fastac import api

        settings = cast("ResumeSettings", values)  # what may not change is refused there
        session = api.resume(run_dir, verbose=True, command=shlex.join([*prog.split(), *words]), **settings)
    return _follow(session, as_json)


def resume_flags() -> list[Flag]:
    """Return the flags of `fastac resume`: its own, and the settings that may change."""
    return [*flags_of(ResumeOptions, "command", None, ["run_dir"]), *_flags_of_run(is_changeable=True)]


def _fixed_flags() -> list[Flag]:
    """Return the settings that may not change, which are read to say why."""
    return _flags_of_run(is_changeable=False)


def _flags_of_run(is_changeable: bool) -> list[Flag]:
    """Return settings of an existing run as flags; their defaults are its own."""
    changeable = ResumeSettings.__annotations__
    return [
        replace(flag, default=None) for flag in setting_flags(Config()) if (flag.name in changeable) == is_changeable
    ]


def _follow(session: Session | Follower | None, as_json: bool) -> int:
    """Consume a session's stream to its end and report how it ended; None has nothing left to do."""
    from fastac.contract import EnvFailure, WorkerFailure
    from fastac.runs.ending import describe_end
    from fastac.runs.follower import Follower

    if session is None:
        return 0
    if isinstance(session, Follower):
        session.run()
        if session.stop_signal:
            end_agent()
        return 0
    try:
        for _ in session:
            pass
        summary = session.finish(measure_efficiency=True)
    except (EnvFailure, WorkerFailure, KeyboardInterrupt) as error:
        if not session.is_saved or is_launched():  # torchrun starts it again
            raise
        hint = f"continue from the last checkpoint with: fastac resume {session.directory.path}"
        raise type(error)(f"{str(error).removesuffix('.') or name_of(error)}; {hint}") from error
    for text in describe_end(session, summary):
        print(fit(text, sys.stderr), file=sys.stderr)
    if as_json:
        print(json.dumps(summary, allow_nan=False))
    # Under torchrun a run that its user has stopped must not begin again, which another exit code would mean.
    if session.stop_signal is not None and is_launched():
        end_agent()  # which would wait for those that the user has ended
        return 0
    return 0 if session.stop_signal is None else 128 + session.stop_signal
