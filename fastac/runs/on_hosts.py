"""Begins or continues a run that torchrun has started, on this host as one of several.

All hosts get the same command, and get it again after every failure. So they first agree: that they run the same code
with the same settings, whether the run directory is one for all or one each, and which checkpoint is the newest.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from fastac.build import EncoderFactory, EnvFactory, Streams, assemble, resolve_shards, restart_seed
from fastac.config import Config, JsonValue
from fastac.contract import WorkerFailure, read_branch
from fastac.processes import ANSWER_TIMEOUT_S
from fastac.runs.checkpoint import Checkpoint
from fastac.runs.copies import newest_checkpoint, read_copy, write_copy
from fastac.runs.files import RecordError, describe
from fastac.runs.follower import Follower
from fastac.runs.provenance import versions
from fastac.runs.resuming import check_spaces, flatten, rerun_config, why_complete, why_one_host
from fastac.runs.run_dir import RunDirectory
from fastac.runs.session import Session
from fastac.runs.worker_count import choose_workers_of_host
from fastac.torchrun import Launch, end_with_agent
from fastac.workers import Division, Hosts

log = logging.getLogger("fastac")

_SILENT_S = 3.0  # a host without a sign of life for so long is lost
_LOCK_S = 30.0  # until a process that is being ended has left the run directory
_READY_S = 1800.0  # until the slowest host has compiled its kernels and built its environments


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
        is_same_disk: whether its run directory is that of the first host.
        newest: env steps of its newest checkpoint, -1 without.
        run_id: of the run that wrote it.
    """

    name: str
    versions: dict[str, str]
    settings: dict[str, JsonValue]
    is_same_disk: bool
    newest: int
    run_id: str


def begin_on_hosts(config: Config, run: HostRun) -> Session | Follower | None:
    """Begin or continue a run.

    Returns:
        The first host's session; for the others a `Follower`; None if the run is complete.

    Raises:
        ValueError: the hosts do not agree, or the run cannot be divided among them.
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
    hosts = Hosts(run.launch, config.run.device, config.env.env_timeout_s or ANSWER_TIMEOUT_S, _SILENT_S)
    try:
        checkpoint = _agree(hosts, config, run.run_dir, run.must_share)
        return _assemble(hosts, config, run, run.run_dir, checkpoint, began)
    except BaseException:
        hosts.abandon()
        raise


def _agree(hosts: Hosts, config: Config, run_dir: Path, must_share: bool) -> Checkpoint | None:
    """Check that the hosts agree; return the newest checkpoint of any of them, or None if there is none."""
    is_same_disk = _is_same_disk(hosts, run_dir)
    newest, run_id = newest_checkpoint(run_dir)
    settings = {name: value for name, value in flatten(config).items() if name != "workers"}
    own = _Facts(platform.node(), versions() | {"code": _digest_code()}, settings, is_same_disk, newest, run_id)
    facts = hosts.share(own)
    _check_facts(facts, run_dir, must_share)
    hosts.has_own_disk, hosts.have_copies = not is_same_disk, not all(each.is_same_disk for each in facts)
    newest = max(each.newest for each in facts)
    if newest < 0:
        return None
    owner = next(host for host, each in enumerate(facts) if each.newest == newest)
    writes = hosts.rank == 0 or not is_same_disk
    if any(each.newest < newest for each in facts):
        files = hosts.broadcast(read_copy(run_dir) if hosts.rank == owner else None, owner)
        if own.newest < newest and writes:
            log.info("taking the checkpoint of step %d from host %d", newest, owner)
            write_copy(run_dir, files)
        hosts.share(None)  # a host that reads another's disk waits for it
    return RunDirectory.open(run_dir).load_checkpoint("last")


def _is_same_disk(hosts: Hosts, run_dir: Path) -> bool:
    """Return whether the run directory is that of the first host, which leaves a file there for a moment."""
    mark = run_dir / f".host-0-{uuid.uuid4().hex}"
    is_new = not run_dir.exists()
    if hosts.rank == 0:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as error:
            raise RecordError(f"cannot write into the run directory {run_dir}: {describe(error)}.") from error
    name = hosts.broadcast(mark.name, 0)
    found = (run_dir / name).exists()
    hosts.share(None)  # all have looked
    if hosts.rank == 0:
        mark.unlink()
        if is_new:
            run_dir.rmdir()
    return found


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
        if must_share and not each.is_same_disk:
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
    config = (
        resolve_shards(config, run.env_factory)
        if checkpoint is None
        else rerun_config(checkpoint.config, config, run_dir)
    )
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
    training = assemble(config, seed, run.env_factory, run.encoder, hosts if hosts.size > 1 else None)
    with ExitStack() as opened:
        opened.callback(training.close)
        for caution in training.envs.cautions:
            log.warning("%s", caution)
        if checkpoint is not None:
            check_spaces(training.envs, checkpoint)
        hosts.wait_ready(_READY_S)
        part = f"shards {own[0]} to {own[-1]}" if len(own) > 1 else f"shard {own[0]}"
        log.info("host %d of %d: %s of %d, workers %d", hosts.rank, hosts.size, part, shards, config.num_workers)
        if hosts.rank > 0:
            if checkpoint is not None:
                training.set_state(read_branch(checkpoint.state, "training"))
            opened.pop_all()
            return Follower(config, run_dir, training, hosts)
        with ExitStack() as held:
            directory = _open_directory(config, run_dir, checkpoint, held)
            state = None if checkpoint is None else checkpoint.state
            opened.pop_all()
            return Session(
                config,
                directory,
                training,
                began,
                held,
                run.env_factory,
                run.encoder,
                state,
                run.verbose,
                run.command,
                hosts,
            )


def _is_complete(config: Config, checkpoint: Checkpoint, run_dir: Path) -> bool:
    why = why_complete(config, checkpoint, RunDirectory.open(run_dir))
    if why is not None:
        log.info("%s", why)
    return why is not None


def _open_directory(config: Config, run_dir: Path, checkpoint: Checkpoint | None, held: ExitStack) -> RunDirectory:
    """Create the run's directory, or take it over from a process that may be about to end."""
    if checkpoint is None:
        with suppress(ValueError):  # what a run that was killed before its first checkpoint has left
            RunDirectory.open(run_dir).clear()
        directory = RunDirectory.create(run_dir, config)
    else:
        directory = RunDirectory.open(run_dir)
        directory.check_checkpoints()
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            held.enter_context(directory.held())
        except ValueError as error:
            if time.monotonic() > deadline:
                raise WorkerFailure(str(error)) from error
            time.sleep(0.2)
        else:
            return directory
