"""What happens to two hosts while they train, at random moments, and whether the run comes out the same."""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.hosts.cluster import BEGUN, Host, digest, left_over, store, wait_for
from benchmarks.hosts.network import cut

# Four to ten seconds of training on two hosts; a checkpoint about every two.
TRAIN = (
    *("train", "CartPole-v1", "--algo", "a2c", "--shards", "4", "--workers", "1", "--seed", "1"),
    *("--total-env-steps", "250000", "--normalize-obs", "--no-eval", "--no-tensorboard"),
    *("--checkpoint-minutes", "0.03", "--run-dir"),
)
_PROGRESS = " of 250k steps"  # in every line of progress, one per tenth of the training
_LATEST = 5  # tenths of the training, until which something happens: by the clock, a fast machine would be done by then
_WITHIN_S = 0.2  # and some part of this later, so that it may fall anywhere between two lines


def kill_worker(hosts: list[Host], which: int) -> None:
    """Kill the training process of a host."""
    hosts[which].kill_worker()


def kill_host(hosts: list[Host], which: int) -> None:
    """Kill all of a host, and start it again after some seconds."""
    hosts[which].kill()
    time.sleep(3.0)
    hosts[which].start()


def kill_first_host(hosts: list[Host], which: int) -> None:
    """Kill all of the host where the store is, which lives on."""
    kill_host(hosts, 0)


def cut_link(hosts: list[Host], which: int) -> None:
    """Cut the cable for 10 s."""
    cut(10.0)


def terminate_agent(hosts: list[Host], which: int) -> None:
    """Send SIGTERM to an agent, and start it again after some seconds."""
    hosts[which].terminate()
    time.sleep(3.0)
    hosts[which].start()


FAULTS: dict[str, tuple[str, Callable[[list[Host], int], None]]] = {
    "worker": ("a training process killed", kill_worker),
    "host": ("a whole host killed, back after 3 s", kill_host),
    "store": ("the host with the store killed", kill_first_host),
    "link": ("the cable cut for 10 s", cut_link),
    "sigterm": ("SIGTERM to an agent, back after 3 s", terminate_agent),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        is_equal: whether it has come to the bits of the run that nothing happened to.
        pause_s: seconds from what happened until training went on.
        num_left: processes left over.
    """

    is_equal: bool
    pause_s: float
    num_left: int


def train(
    folder: Path, fault: Callable[[list[Host], int], None] | None = None, seed: int = 0
) -> tuple[str, float, int]:
    """Train on two hosts; return the digest, the pause in seconds, and how many processes are left over."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run_dir, rng = folder / "run", random.Random(seed)
    hosts = [Host(number, [*TRAIN, str(run_dir)], folder, folder / f"host{number}.log") for number in (0, 1)]
    with store():
        for host in hosts:
            host.start()
        try:
            wait_for(hosts, 1)
            pause_s = 0.0
            if fault is not None:
                _wait_for_progress(hosts[0], rng.randint(0, _LATEST))
                time.sleep(rng.uniform(0.0, _WITHIN_S))
                known, began = sum(host.text.count(BEGUN) for host in hosts), time.monotonic()
                pause_s = _pause(hosts, fault, rng.randrange(2), known, began)
            codes = [host.wait() for host in hosts]
        except BaseException:
            for host in hosts:
                host.kill()
            raise
    # A host that comes back when all is done finds the rendezvous closed, which torchrun reports with exit code 1.
    sound = [code == 0 or "RendezvousClosedError" in host.text for code, host in zip(codes, hosts, strict=True)]
    assert all(sound) and 0 in codes, f"exit codes {codes}, see {folder}"
    return digest(run_dir), pause_s, len(left_over(run_dir))


def _wait_for_progress(host: Host, num_lines: int, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while host.text.count(_PROGRESS) < num_lines:
        assert host.is_running, f"training has ended, see {host.log}"
        assert time.monotonic() < deadline, f"no {num_lines} lines of progress within {timeout_s:g} s, see {host.log}"
        time.sleep(0.01)


def _pause(hosts: list[Host], fault: Callable[[list[Host], int], None], which: int, known: int, began: float) -> float:
    """Let something happen; return the seconds until training goes on, watched beside it."""
    import threading

    thread = threading.Thread(target=fault, args=(hosts, which))
    thread.start()
    deadline = began + 120.0
    while sum(host.text.count(BEGUN) for host in hosts) <= known:
        assert time.monotonic() < deadline, "training has not gone on within 120 s"
        time.sleep(0.02)
    pause_s = time.monotonic() - began
    thread.join()
    return pause_s


def run(folder: Path, names: list[str], times: int) -> Iterator[str]:
    """Yield a line per kind of fault."""
    expected, _, _ = train(folder / "undisturbed")
    yield f"undisturbed: {expected}"
    for name in names:
        what, fault = FAULTS[name]
        outcomes = []
        for k in range(times):
            found, pause_s, left = train(folder / f"{name}-{k}", fault, seed=k)
            outcomes.append(Outcome(found == expected, pause_s, left))
            shutil.rmtree(folder / f"{name}-{k}") if found == expected and not left else None
        pauses = [each.pause_s for each in outcomes]
        equal, left = sum(each.is_equal for each in outcomes), sum(each.num_left for each in outcomes)
        yield (
            f"{what:<38}{equal:>3} of {times:<3} equal   goes on after {statistics.median(pauses):>5.1f} s, at worst "
            f"{max(pauses):>5.1f} s   {left} processes left"
        )
