"""The hosts of a run: one process each, started by torchrun, which train one model together over a network.

Within a host, workers share memory; only the first of them, the one in this process, talks to other hosts. Numbers that
training needs go in collectives of torch.distributed (gloo; NCCL for tensors on a GPU). Orders of the first host, and a
sign of life of every host, go through torch's key-value store, which the first host's process holds.

Whoever loses another host ends with exit code 1: torchrun starts all again, and they continue from a checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from time import perf_counter
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from fastac.contract import Episodes, Extras, WorkerFailure
from fastac.rollout import join_episodes
from fastac.torchrun import Launch
from fastac.workers.membership import Membership, choose_interface, open_store
from fastac.workers.waiting import wait_until

log = logging.getLogger("fastac")

Shared = TypeVar("Shared")

_ROOM = 64  # finished episodes that go in a round with other numbers; more of them take a round of their own
_LONGEST_S = 3600.0  # of a collective between iterations; `Membership` finds a host that is gone much sooner
_NUM_HEADER = 3  # flags, number of episodes, whether they have extras
_PAUSE, _SIGNAL = 1, 2  # of the flags: the lowest bit, and the factor of a signal's number


class Hosts:
    """This host among the others.

    Attributes:
        rank: the number of this host; 0 writes, evaluates and decides.
        size: H, the number of hosts.
        wish: called at the beginning of an iteration with the env steps that there are at most after it; returns
            whether this host wants all hosts to pause then.
        own_signal: the number of the signal by which the user of this host wants to stop, or 0.
        signal: the one that all hosts know of since the first exchange of an iteration, or 0.
        writes_copies: whether this host's run directory is not that of the first host, and no lower rank writes it.
        have_copies: whether any host does: they get copies of the checkpoints.
        waited_s: seconds spent in exchanges so far.
    """

    def __init__(self, launch: Launch, device: str, timeout_s: float, silent_s: float) -> None:
        """Join the others.

        Args:
            launch: how torchrun started this process.
            device: where the model is.
            timeout_s: time limit for the wait in an exchange for another host that is alive.
            silent_s: a host without a sign of life for so long is lost.

        Raises:
            WorkerFailure: another host cannot be reached.
        """
        self.rank, self.size = launch.rank, launch.size
        self.wish: Callable[[int], bool] = lambda env_steps: False
        self.own_signal = self.signal = 0
        self.writes_copies = self.have_copies = False
        self.waited_s = 0.0
        self._flags, self._orders = _PAUSE, 0  # the others wait for the first order
        self._find_episodes: Callable[[], Episodes] | None = None
        self._episodes = Episodes(np.empty(0), np.empty(0, dtype=np.int64))
        self._packets: dict[tuple[int, bool], _Packet] = {}
        self._timeout_s = timeout_s
        with self._losing():
            self._store = open_store(launch)
            self._membership = Membership(launch, self._store, silent_s)
            if self.size > 1:
                from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # torch's own hints lack it

                choose_interface(self._store, launch)
                if device == "cuda":  # a process per GPU
                    torch.cuda.set_device(launch.local_rank)
                dist.init_process_group(
                    "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
                    store=PrefixStore("group", self._store),
                    rank=self.rank,
                    world_size=self.size,
                    timeout=timedelta(seconds=_LONGEST_S),
                )

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """Report what torch raises when another host is gone."""
        try:
            yield
        except WorkerFailure:
            raise
        except RuntimeError as error:  # also torch's errors of stores and of collectives
            log.debug("%s", error)  # paths of torch's source, mostly
            raise WorkerFailure(
                f"host {self.rank} has lost the connection to another one; torchrun starts it again from the last "
                "checkpoint"
            ) from error

    # ---- What is trained with ---------------------------------------------------------------------

    def begin(self, most_env_steps: int, find_episodes: Callable[[], Episodes]) -> None:
        """Begin an iteration.

        Args:
            most_env_steps: the env steps that there are at most after it.
            find_episodes: called in the first exchange of rows: this host's finished episodes.
        """
        self._flags = _PAUSE * self.wish(most_env_steps) + _SIGNAL * self.own_signal
        self._find_episodes = find_episodes

    def gather_rows(self, everyones: NDArray[np.generic], hosts: Sequence[range]) -> None:
        """Fill in the rows of the other hosts' shards in `[S, ...]`.

        The first exchange of an iteration also tells the flags and the finished episodes of all hosts.

        Raises:
            WorkerFailure: another host is lost.
        """
        row_bytes, is_first = everyones[0].nbytes, self._find_episodes is not None
        packet = self._packets.get((row_bytes, is_first))
        if packet is None:
            packet = _Packet(self.size, self.rank, row_bytes * max(map(len, hosts)), _ROOM if is_first else 0)
            self._packets[row_bytes, is_first] = packet
        own = everyones[hosts[self.rank].start : hosts[self.rank].stop]
        packet.rows[self.rank, : own.nbytes] = own.reshape(-1).view(np.uint8)
        episodes = self._find_episodes() if self._find_episodes is not None else None
        if episodes is not None:
            packet.put(self._flags, episodes)
        self.gather(packet.parts, packet.parts[self.rank])
        for host, shards in enumerate(hosts):
            if host != self.rank:
                rows = everyones[shards.start : shards.stop]
                rows[:] = packet.rows[host, : rows.nbytes].view(rows.dtype).reshape(rows.shape)
        if episodes is not None:
            self._find_episodes = None
            self._take_first(packet, episodes)

    def _take_first(self, packet: _Packet, own: Episodes) -> None:
        """Take what the first exchange of an iteration has told."""
        self._flags = int(np.bitwise_or.reduce(packet.header[:, 0]))
        self.signal = int(packet.header[:, 0].max()) // _SIGNAL
        counts = packet.header[:, 1]
        found = packet.episodes
        if counts.max() > _ROOM:
            large = _Packet(self.size, self.rank, 0, int(counts.max()))
            large.put(0, own)
            self.gather(large.parts, large.parts[self.rank])
            found = large.episodes
        extras: list[Extras] = [{}] * self.size
        if packet.header[:, 2].any():
            extras = self.share(own.extras)
        self._episodes = join_episodes(
            [
                Episodes(part[0, :count].copy(), part[1, :count].astype(np.int64), extra)
                for part, count, extra in zip(found, counts, extras, strict=True)
            ]
        )

    @property
    def finished_episodes(self) -> Episodes:
        """The episodes that have ended on all hosts in this iteration, in the order of the shards."""
        return self._episodes

    @property
    def is_paused(self) -> bool:
        """Whether all hosts wait after this iteration for what the first one says; known after its first exchange."""
        return self._flags != 0

    def gather(self, parts: list[Tensor], own: Tensor) -> None:
        """Fill `parts`, one of each host, from the `own` part of each; it may be the memory of the own part."""
        with self._losing():
            self._finish(dist.all_gather(parts, own, async_op=True))

    def add_up(self, vector: Tensor) -> None:
        """Add up a vector over all hosts, in place; the order of the sums is torch's own."""
        with self._losing():
            self._finish(dist.all_reduce(vector, async_op=True))

    def _finish(self, work: dist.Work | None) -> None:
        """Wait for a collective. Looking at it again and again keeps the core awake: that halves its mean time."""
        assert work is not None, "this process is in the group"
        began = perf_counter()
        wait_until(work.is_completed, self._watch)
        work.wait()  # raises if it has failed
        self.waited_s += perf_counter() - began

    def _watch(self, waited_s: float) -> None:
        if waited_s > self._timeout_s:
            raise WorkerFailure(
                f"another host kept host {self.rank} waiting for {waited_s:.0f} s (raise env_timeout_s if steps take "
                "longer)."
            )

    # ---- Between iterations -----------------------------------------------------------------------

    def share(self, value: Shared) -> list[Shared]:
        """Return the values of all hosts; they are pickled."""
        if self.size == 1:
            return [value]
        values: list[Shared | None] = [None] * self.size
        with self._losing():
            dist.all_gather_object(values, value)
        return cast("list[Shared]", values)

    def collect(self, value: Shared) -> list[Shared]:
        """Return the values of all hosts on the first one, and nothing on the others; they are pickled."""
        values: list[Shared | None] | None = [None] * self.size if self.rank == 0 else None
        with self._losing():
            dist.gather_object(value, values)
        return cast("list[Shared]", values or [])

    def broadcast(self, value: Shared | None, host: int) -> Shared:
        """Return the value of one host; it is pickled."""
        values = [value]
        if self.size > 1:
            with self._losing():
                dist.broadcast_object_list(values, src=host)
        return cast(Shared, values[0])

    def give_order(self, order: str) -> None:
        """Tell the other hosts, which wait in `take_order`."""
        self._orders += 1
        with self._losing():
            self._store.set(f"order/{self._orders}", order)

    def take_order(self) -> str:
        """Wait for what the first host says. It may play an evaluation before, so there is no limit of time."""
        self._orders += 1
        key = f"order/{self._orders}"
        with self._losing():
            while not self._has(key):  # `Membership` ends this process if the first host is lost
                pass
            order: str = self._store.get(key).decode()
            return order

    def _has(self, key: str) -> bool:
        """Wait for a key for a second, so that signals are heard; return whether it is there."""
        try:
            self._store.wait([key], timedelta(seconds=1))
        except dist.DistStoreError:
            return False
        return True

    def go_on(self) -> None:
        """Let the other hosts go on if they have paused."""
        if self.is_paused and self.rank == 0:
            self.give_order("go")

    def wait_ready(self) -> None:
        """Wait until all hosts have got here; from now on a host that is gone is noticed soon."""
        with self._losing():
            self._store.set(f"ready/{self.rank}", "")
            for host in range(self.size):
                while not self._has(f"ready/{host}"):
                    pass
        self._membership.tighten()

    def leave(self) -> None:
        """End together with the others: the first host gives the order, and waits until they have heard it."""
        self._membership.close()
        if self.rank == 0:
            self.give_order("end")
        with suppress(WorkerFailure), self._losing():
            self._store.set(f"left/{self.rank}", "")
            if self.rank == 0:
                self._store.wait([f"left/{host}" for host in range(self.size)], timedelta(seconds=10))
        self.abandon()

    def abandon(self) -> None:
        """Leave without the others; safe to call twice."""
        self._membership.close()
        self._flags = 0
        if self.size > 1 and dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()


class _Packet:
    """What each host sends in an exchange, and the memory where that of all hosts is.

    Attributes:
        header: `[H, 3]` int64, flags, number of episodes, and whether they have extras.
        episodes: `[H, 2, room]` float64, returns and lengths.
        rows: `[H, bytes]`.
        parts: all of it, a tensor of each host.
    """

    def __init__(self, size: int, rank: int, row_bytes: int, room: int) -> None:
        begin, end = 8 * _NUM_HEADER, 8 * (_NUM_HEADER + 2 * room)
        raw = np.zeros((size, -(-(end + row_bytes) // 8) * 8), np.uint8)
        self.header = raw[:, :begin].view(np.int64)
        self.episodes = raw[:, begin:end].view(np.float64).reshape(size, 2, room)
        self.rows = raw[:, end : end + row_bytes]
        self.parts = list(torch.from_numpy(raw))
        self._rank = rank

    def put(self, flags: int, episodes: Episodes) -> None:
        """Store this host's flags, and as many of its episodes as there is room for."""
        self.header[self._rank] = flags, len(episodes), bool(episodes.extras)
        room = self.episodes.shape[2]
        part = self.episodes[self._rank, :, : len(episodes)]
        part[0], part[1] = episodes.return_[:room], episodes.length[:room]
