"""fastac hosts: the commands that train on several machines."""

from __future__ import annotations

import json
import shlex
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastac.cli.flags import Flag, asks_for_help, flags_of, read, show_help, split_options
from fastac.cli.train import TrainOptions, read_settings, setting_flags, without
from fastac.config import Config
from fastac.text import fit

_PROG = "fastac hosts"
_WAYS = Literal["shell", "slurm", "kubernetes"]
_COMMON = ("hosts", "processes", "endpoint", "way", "serve", "run_dir", "seed", "total_env_steps", "shards")

# Without this the agents' store keeps addresses of earlier starts, and whoever comes back finds nobody there.
_ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
# torchrun's own values take 42 s until a host goes on without one that is gone. `is_host=0`: a store of its own.
_RENDEZVOUS = {
    "is_host": 0,
    "last_call_timeout": 1,
    "keep_alive_interval": 1,
    "keep_alive_max_attempt": 3,  # with 2, an agent that is alone drops itself, and nobody joins it
}
_RESTARTS = 100  # failures of a host; hosts that leave and join do not count


@dataclass(frozen=True)
class HostsOptions:
    """Print the commands that train one agent on several machines: torchrun in a shell, for Slurm or Kubernetes."""

    hosts: int = 2
    """The most hosts; training begins with one, and others join."""
    processes: int = 1
    """Processes per host. 1: its workers share memory. On GPUs: one per GPU."""
    endpoint: str = "HOST:29400"
    """shell: address and port where the hosts meet; one of them holds this place with --serve."""
    way: _WAYS = "shell"
    """How they are started: shell (a command per host), slurm (a script for sbatch), kubernetes (a PyTorchJob)."""
    serve: str | None = None
    """Hold the place HOST:PORT where hosts meet, until this is ended; nothing else is done."""


def hosts_flags() -> list[Flag]:
    """Return all flags of the command: its own, and those of train."""
    return [*flags_of(HostsOptions, "command"), *flags_of(TrainOptions, "train"), *setting_flags(Config())]


def hosts(words: Sequence[str]) -> int:
    """Run `fastac hosts`."""
    if asks_for_help(words):
        more = "The environment and the flags of train follow; the guide on hosts tells what they do."
        show_help(f"{_PROG} ENV_ID", f"{HostsOptions.__doc__} {more}", hosts_flags(), words, _COMMON)
    own = flags_of(HostsOptions, "command")
    values = read([*own, *hosts_flags()[len(own) :]], [word for word in words if not _is_env_id(words, word)], _PROG)
    options, _ = split_options(HostsOptions, values)
    if options.serve is not None:
        return _serve(options.serve)
    given = list(words)
    for flag in own:
        given = without(given, flag.word)
    _check(options, given)
    print(_write(options, ["train", *given]))
    return 0


def _is_env_id(words: Sequence[str], word: str) -> bool:
    return word is words[0] and not word.startswith("-")


def _serve(endpoint: str) -> int:
    """Hold the store until the process is ended."""
    import threading

    from fastac.tools.rendezvous import serving

    with serving(endpoint):
        print(fit(f"hosts can meet at {endpoint} as long as this runs", sys.stderr), file=sys.stderr)
        threading.Event().wait()
    return 0


def _check(options: HostsOptions, given: Sequence[str]) -> None:
    """Refuse what torchrun would start only to fail.

    Raises:
        ValueError: the run cannot be divided among so many hosts.
    """
    for name in ("hosts", "processes"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} is {getattr(options, name)}, expected at least 1.")
    host, _, port = options.endpoint.rpartition(":")
    if options.way == "shell" and not (host and port.isdigit()):
        raise ValueError(f"endpoint is {options.endpoint!r}, expected HOST:PORT, such as 10.0.0.1:29400.")
    train, asked = read_settings("hosts", TrainOptions, given)
    if train.run_dir is None:
        raise ValueError("hosts needs a place from which a run goes on after a failure: give --run-dir DIR.")
    from fastac.build import resolve_shards
    from fastac.runs.resuming import why_one_host

    reason = why_one_host(asked.config)
    if reason is not None:
        raise ValueError(reason)
    shards, wanted = resolve_shards(asked.config).num_shards, options.hosts * options.processes
    if wanted > shards:
        raise ValueError(
            f"{options.hosts} hosts with {options.processes} process{'es' if options.processes > 1 else ''} each have "
            f"{shards} shard{'s' if shards > 1 else ''} to divide, expected at most one process per shard: give fewer, "
            "or more --shards."
        )


def _write(options: HostsOptions, command: Sequence[str]) -> str:
    """Return the text for a way of starting."""
    match options.way:
        case "shell":
            return _write_shell(options, command)
        case "slurm":
            return _write_slurm(options, command)
        case "kubernetes":
            return _write_kubernetes(options, command)


def _run_id(command: Sequence[str]) -> str:
    """Return a name for the meeting: two runs, or the same with another budget, must not mix."""
    return f"fastac-{zlib.crc32(shlex.join(command).encode()):08x}"


def _torchrun(options: HostsOptions, run_id: str, endpoint: str, command: Sequence[str]) -> str:
    conf = ",".join(f"{name}={value}" for name, value in _RENDEZVOUS.items())
    return " \\\n    ".join(
        [
            f"torchrun --nnodes=1:{options.hosts} --nproc-per-node={options.processes} --max-restarts={_RESTARTS}",
            f"--rdzv-id={run_id} --rdzv-backend=c10d --rdzv-endpoint={endpoint}",
            f"--rdzv-conf={conf}",
            f"-m fastac {shlex.join(command)}",
        ]
    )


def _write_shell(options: HostsOptions, command: Sequence[str]) -> str:
    address = options.endpoint.rpartition(":")[0]
    exported = "\n".join(f"export {name}={value}" for name, value in _ENVIRONMENT.items())
    return f"""\
# Once, on the host with the address {address}: where all of them meet. It must outlive the training on that host.
fastac hosts --serve {options.endpoint}

# On every host, at any time, and again after it was gone. Add --local-addr=ADDRESS before -m if the host's own name
# does not lead the others to it.
{exported}
{_torchrun(options, _run_id(command), options.endpoint, command)}"""


def _write_slurm(options: HostsOptions, command: Sequence[str]) -> str:
    exported = "\n".join(f"export {name}={value}" for name, value in _ENVIRONMENT.items())
    return f"""\
#!/bin/bash
#SBATCH --nodes={options.hosts}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --no-kill
{exported}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" fastac hosts --serve "$head:29400" &
srun --overlap --kill-on-bad-exit=0 {_torchrun(options, '"$SLURM_JOB_ID"', '"$head:29400"', command)}
kill %1"""


def _write_kubernetes(options: HostsOptions, command: Sequence[str]) -> str:
    arguments = ", ".join(json.dumps(word) for word in ["-m", "fastac", *command])
    conf = "\n".join(
        f"      - {{key: {name}, value: '{value}'}}" for name, value in _RENDEZVOUS.items() if name != "is_host"
    )
    env = "\n".join(f"            - {{name: {name}, value: '{value}'}}" for name, value in _ENVIRONMENT.items())
    return f"""\
# For the training operator of Kubeflow. The image needs fastac; the run directory a volume that all pods share, or
# each keeps copies of the checkpoints. The first worker holds the place where they meet.
apiVersion: kubeflow.org/v1
kind: PyTorchJob
metadata: {{name: fastac}}
spec:
  elasticPolicy:
    rdzvBackend: c10d
    minReplicas: 1
    maxReplicas: {options.hosts}
    maxRestarts: {_RESTARTS}
    nProcPerNode: {options.processes}
    rdzvConf:
{conf}
  pytorchReplicaSpecs:
    Worker:
      replicas: {options.hosts}
      restartPolicy: OnFailure
      template:
        spec:
          containers:
          - name: pytorch
            image: YOUR-IMAGE
            command: ["torchrun"]
            args: [{arguments}]
            env:
{env}"""
