"""Finished episodes on their way from workers to the first process."""

import numpy as np
import pytest

from fastac.contract import Episodes
from fastac.workers.shared_episodes import EpisodesReader, EpisodesWriter, SharedEpisodes

ROOM = 5


def put(writer, counts, worker, returns):
    """Add episodes whose length is twice their return, and count them, as workers do."""
    returns = np.array(returns, dtype=np.float64)
    writer.put(Episodes(returns, (2 * returns).astype(np.int64), {"r": returns}), int(counts[worker]))
    counts[worker] += len(returns)


def take(reader, counts):
    episodes = reader.take(counts)
    assert episodes.length.tolist() == (2 * episodes.return_).astype(int).tolist()
    return episodes.return_.tolist()


@pytest.mark.parametrize("before", [0, 3, 5, 14])
def test_what_came_since_the_last_time_is_taken_worker_by_worker_wherever_the_ring_begins_anew(before):
    shared, counts = SharedEpisodes.allocate(2, ROOM), np.array([before, 0])
    reader = EpisodesReader(shared, counts)
    first, second = (EpisodesWriter(shared, worker) for worker in range(2))
    put(second, counts, 1, [1])
    put(first, counts, 0, [2, 3])
    put(first, counts, 0, [])
    put(first, counts, 0, [4])
    assert take(reader, counts) == [2, 3, 4, 1]
    assert take(reader, counts) == []
    put(first, counts, 0, [5, 6, 7, 8])
    put(second, counts, 1, range(9, 9 + ROOM + 3))
    assert take(reader, counts) == [5, 6, 7, 8, 12, 13, 14, 15, 16], "of each the latest for which there is room"


def test_who_takes_a_lost_workers_place_goes_on_with_its_row():
    shared, counts = SharedEpisodes.allocate(1, ROOM), np.array([0])
    reader = EpisodesReader(shared, counts)
    put(EpisodesWriter(shared, 0), counts, 0, [1, 2])
    put(EpisodesWriter(shared, 0), counts, 0, [3])
    episodes = reader.take(counts)
    assert episodes.return_.tolist() == episodes.extras["r"].tolist() == [1, 2, 3]


def test_episodes_of_before_a_resumed_run_are_not_taken():
    shared, counts = SharedEpisodes.allocate(1, ROOM), np.array([0])
    reader = EpisodesReader(shared, counts)
    counts[0] = 1000
    reader.skip(counts)
    put(EpisodesWriter(shared, 0), counts, 0, [1])
    assert take(reader, counts) == [1]
