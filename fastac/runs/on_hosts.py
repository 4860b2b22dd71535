"""Begins or continues a run that torchrun has started, on this host as one of several.

All hosts get the same command, and get it again after every failure. So they first agree: that they run the same code
with the same settings, whether the run directory is one for all or one each, and which checkpoint is the newest.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal

from fastac.build import EncoderFactory, EnvFactory, Streams, assemble, resolve_shards, restart_seed
from fastac.config import Config, JsonValue
from fastac.contract import WorkerFailure, read_branch
from fastac.processes import ANSWER_TIMEOUT_S
from fastac.runs.checkpoint import Checkpoint
from fastac.runs.copies import newest_checkpoint, read_copy, write_copy
from fastac.runs.files import RecordError, describe
from fastac.runs.follower import Follower
from fastac.runs.provenance import versions
from fastac.runs.resuming import (
    check_spaces,
    flatten,
    log_changes,
    rerun_config,
    settings_apart,
    why_complete,
    why_one_host,
)
from fastac.runs.run_dir import RunDirectory
from fastac.runs.services import check_installed
from fastac.runs.session import Session
from fastac.runs.transfer import begin_with, read_origin
from fastac.runs.worker_count import choose_workers_of_host
from fastac.torchrun import Launch, end_with_agent
from fastac.workers import Division, Hosts

log = logging.getLogger("fastac")

_LOCK_S = 30.0  # until a process that is being ended has left the run directory


@dataclass(frozen=True, slots=True)
class HostRun:
    """What a host needs besides the configuration.

    Attributes:
        launch: how torchrun started this process.
        run_dir: the run's directory, or None if none was given.
        env_factory: the user's environments, if the run has them.
        encoder: the user's encoder.
        verbose: whether the first host shows its progress.
        command: the command line.
        must_share: whether to refuse hosts with run directories of their own.
    """

    launch: Launch
    run_dir: Path | None
    env_factory: EnvFactory | None = None
    encoder: EncoderFactory | None = None
    verbose: bool = False
    command: str = ""
    must_share: bool = False


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a host tells the others.

    Attributes:
        name: of the machine.
        versions: of Python, the packages and fastac's own code.
        settings: the flat configuration as given, except for the workers.
        leader: the lowest rank that has the same run directory.
        newest: env steps of its newest checkpoint, -1 without.
        run_id: of the run that wrote it.
    """

    name: str
    versions: dict[str, str]
    settings: dict[str, JsonValue]
    leader: int
    newest: int
    run_id: str


def begin_on_hosts(config: Config, run: HostRun) -> Session | Follower | None:
    """Begin or continue a run.

    Returns:
        The first host's session; for the others a `Follower`; None if the run is complete.

    Raises:
        ValueError: the hosts do not agree, the run cannot be divided among them, or a logger is not installed.
        WorkerFailure: another host was lost.
    """
    end_with_agent()
    began = perf_counter()
    if run.run_dir is None:
        raise ValueError(
            "torchrun starts a run again after a failure, so it needs a place to go on from: give --run-dir, the same "
            "on every host."
        )
    reason = why_one_host(config)
    if reason is not None:
        raise ValueError(reason)
    check_installed(config)
    hosts = Hosts(
        run.launch, config.run.device, config.env.env_timeout_s or ANSWER_TIMEOUT_S, config.run.host_timeout_s
    )
    try:
        config, checkpoint = _agree(hosts, config, run, run.run_dir)
        return _assemble(hosts, config, run, run.run_dir, checkpoint, began)
    except BaseException:
        hosts.abandon()
        raise


def _agree(hosts: Hosts, config: Config, run: HostRun, run_dir: Path) -> tuple[Config, Checkpoint | None]:
    """Check that the hosts agree; return what they train, and the newest checkpoint of any of them, if there is one."""
    leader, is_new = _find_leader(hosts, run_dir)
    newest, run_id = newest_checkpoint(run_dir)
    settings = {name: value for name, value in flatten(config).items() if name != "workers"}
    own = _Facts(platform.node(), versions() | {"code": _digest_code()}, settings, leader, newest, run_id)
    try:
        facts = hosts.share(own)
        _check_facts(facts, run_dir, run.must_share)
        hosts.writes_copies = leader == hosts.rank > 0
        hosts.have_copies = any(each.leader > 0 for each in facts)
        newest = max(each.newest for each in facts)
        if newest < 0:
            # Workers may raise the number of shards, and each host may have been given others.
            shards = hosts.broadcast(resolve_shards(config, run.env_factory).num_shards, 0)
            return config.replace(shards=shards, workers=_at_most(config, shards)), None
    finally:
        if is_new:
            with suppress(OSError):  # it is not empty any more
                run_dir.rmdir()
    owner = next(host for host, each in enumerate(facts) if each.newest == newest)
    if any(each.newest < newest for each in facts):
        files = hosts.broadcast(read_copy(run_dir) if hosts.rank == owner else None, owner)
        if own.newest < newest and leader == hosts.rank:
            log.info("taking the checkpoint of step %d from host %d", newest, owner)
            write_copy(run_dir, files)
        hosts.share(None)  # a host that reads another's disk waits for it
    checkpoint = RunDirectory.open(run_dir).load_checkpoint("last")
    again = rerun_config(checkpoint.config, config, run_dir)
    if hosts.rank == 0:
        log_changes(checkpoint.config, again.replace(workers=checkpoint.config.run.workers), checkpoint.env_steps)
    return again, checkpoint


def _at_most(config: Config, shards: int) -> int | Literal["auto"]:
    """Return the given number of workers, or that of the shards if there are less."""
    return "auto" if config.run.workers == "auto" else min(config.run.workers, shards)


def _find_leader(hosts: Hosts, run_dir: Path) -> tuple[int, bool]:
    """Return the lowest rank with the same run directory, and whether this host has just made it.

    Every host leaves a file there for a moment.
    """
    mark = run_dir / f".host-{uuid.uuid4().hex}"
    try:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        is_new = not run_dir.is_dir()
        run_dir.mkdir(exist_ok=True)
        mark.touch()
    except OSError as error:
        raise RecordError(f"cannot write into the run directory {run_dir}: {describe(error)}.") from error
    marks = hosts.share(mark.name)
    found = set(os.listdir(run_dir))  # reads the directory anew, also on a network's disk
    hosts.share(None)  # all have looked
    mark.unlink()
    return next(rank for rank, name in enumerate(marks) if name in found), is_new


def _digest_code() -> str:
    """Return a digest of fastac's own source, of which two hosts may have different versions with one number."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _check_facts(facts: Sequence[_Facts], run_dir: Path, must_share: bool) -> None:
    """Refuse hosts that differ in what a run's results depend on."""
    first = facts[0]
    for host, each in enumerate(facts[1:], start=1):
        whose, others = f"host {host} ({each.name})", f"host 0 ({first.name})"
        for name in sorted(first.versions.keys() | each.versions.keys()):
            here, there = each.versions.get(name, "none"), first.versions.get(name, "none")
            if here != there:
                what = "other code of fastac" if name == "code" else f"{name} {here}"
                than = f"than {others}" if name == "code" else f"and {others} has {there}"
                raise ValueError(f"{whose} has {what} {than}: install the same everywhere.")
        for name, value in first.settings.items():
            if each.settings[name] != value:
                raise ValueError(
                    f"{whose} was started with {name} {each.settings[name]!r}, and {others} with {value!r}: start the "
                    "same command on every host."
                )
        if must_share and each.leader > 0:
            raise ValueError(
                f"{whose} has another {run_dir} than {others}, expected one that all hosts share: mount the same disk, "
                "or leave out --shared-run-dir, and each keeps copies of the checkpoints."
            )
    ids = {each.run_id: host for host, each in reversed(list(enumerate(facts))) if each.newest >= 0}
    if len(ids) > 1:
        told = " and ".join(f"host {host}" for host in sorted(ids.values()))
        raise ValueError(f"{run_dir} holds other runs on {told}: give another --run-dir, or remove the wrong one.")


def _assemble(
    hosts: Hosts, config: Config, run: HostRun, run_dir: Path, checkpoint: Checkpoint | None, began: float
) -> Session | Follower | None:
    """Build this host's part of the run, and wait until all have theirs."""
    if hosts.broadcast(checkpoint is not None and _is_complete(config, checkpoint, run_dir), 0):
        hosts.leave()
        return None
    shards = config.num_shards
    if hosts.size > shards:
        raise ValueError(
            f"{hosts.size} hosts have {shards} shard{'s' if shards > 1 else ''} to divide, expected at most one host "
            "per shard: start fewer, or a new run with more --shards."
        )
    own = Division.divide(shards, 1, hosts.size, hosts.rank).own
    most = 1 if run.launch.local_size > 1 else len(own)
    done = 0 if checkpoint is None else checkpoint.env_steps
    config = choose_workers_of_host(config, len(own), most, run.env_factory, run.encoder, done)
    streams = Streams.spawn(config.run.seed)
    seed = streams.env if checkpoint is None else restart_seed(config.run.seed, done)
    origin = None if checkpoint is not None else read_origin(config, run.encoder)
    training = assemble(config, seed, run.env_factory, run.encoder, hosts if hosts.size > 1 else None)
    with ExitStack() as opened:
        opened.callback(training.close)
        if origin is not None:
            told = begin_with(training, origin, config.model)
            log.log(logging.INFO if hosts.rank == 0 else logging.DEBUG, "%s", told)
        for caution in training.envs.cautions:
            log.warning("%s", caution)
        if checkpoint is not None:
            check_spaces(training.envs, checkpoint)
        hosts.wait_ready()
        part = f"shards {own[0]} to {own[-1]}" if len(own) > 1 else f"shard {own[0]}"
        log.info("host %d of %d: %s of %d, workers %d", hosts.rank, hosts.size, part, shards, config.num_workers)
        if hosts.rank > 0:
            log.info("host 0 shows the progress and writes %s", run_dir)
            if checkpoint is not None:
                training.set_state(read_branch(checkpoint.state, "training"))
            opened.pop_all()
            return Follower(config, run_dir, training, hosts)
        with ExitStack() as held:
            directory = _open_directory(config, run_dir, checkpoint, held)
            opened.pop_all()
            return Session(
                config,
                directory,
                training,
                began,
                held,
                run.env_factory,
                checkpoint,
                run.verbose,
                run.command,
                hosts if hosts.size > 1 else None,
            )


def _is_complete(config: Config, checkpoint: Checkpoint, run_dir: Path) -> bool:
    why = why_complete(config, checkpoint, RunDirectory.open(run_dir))
    if why is not None:
        log.info("%s", why)
    return why is not None


def _open_directory(config: Config, run_dir: Path, checkpoint: Checkpoint | None, held: ExitStack) -> RunDirectory:
    """Create the run's directory, or take it over from a process that may be about to end."""
    if checkpoint is None:
        _clear(config, run_dir)
        directory = RunDirectory.create(run_dir, config)
        held.enter_context(directory.held())
        return directory
    directory = RunDirectory.open(run_dir)
    directory.check_checkpoints()
    _take_over(directory, held)
    if newest_checkpoint(run_dir)[0] != checkpoint.env_steps:
        raise WorkerFailure(f"another process has trained on in {run_dir} meanwhile: starting again from there.")
    return directory


def _clear(config: Config, run_dir: Path) -> None:
    """Remove what this run has left if it was killed before its first checkpoint.

    Raises:
        ValueError: another run has left it.
    """
    with suppress(ValueError), ExitStack() as held:
        directory = RunDirectory.open(run_dir)
        if not directory.has_ended and not settings_apart(directory.read_config(), config):
            _take_over(directory, held)
            directory.clear()


def _take_over(directory: RunDirectory, held: ExitStack) -> None:
    """Lock a run's directory, which the process before this one may hold for another moment."""
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            held.enter_context(directory.held())
        except ValueError as error:
            if time.monotonic() > deadline:
                raise WorkerFailure(str(error)) from error
            time.sleep(0.2)
        else:
            return
