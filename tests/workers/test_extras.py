"""What episodes say in `info`, on its way from workers to the first process."""

import numpy as np

from fastac.contract import EXTRAS_WINDOW, MAX_EXTRAS
from fastac.workers.extras import ExtrasReader, ExtrasWriter, SharedExtras


def make(workers=2):
    shared = SharedExtras.allocate(workers)
    return shared, [ExtrasWriter(shared, worker) for worker in range(workers)], ExtrasReader(shared)


def plain(extras):
    return {key: values.tolist() for key, values in extras.items()}


def values(*numbers):
    return np.array(numbers, dtype=np.float64)


def test_the_first_process_takes_what_came_since_the_last_time_worker_by_worker():
    _, (first, second), reader = make()
    assert plain(reader.take()) == {}
    second.put({"a": values(1, 2), "größe": values(5)})
    first.put({"größe": values(3), "none": values()})
    assert plain(reader.take()) == {"größe": [3, 5], "a": [1, 2]}
    assert plain(reader.take()) == {}
    second.put({"a": values(4)})
    assert plain(reader.take()) == {"a": [4]}


def test_only_the_latest_are_kept():
    _, (writer, _), reader = make()
    writer.put({"a": np.arange(30.0)})
    reader.take()
    for begin in (30.0, 90.0):
        writer.put({"a": np.arange(begin, begin + 60.0)})
    writer.put({"b": np.arange(1000.0)})
    assert plain(reader.take()) == {"a": [*range(50, 150)], "b": [*range(900, 1000)]}
    assert EXTRAS_WINDOW == 100


def test_there_is_room_for_so_many_keys():
    _, (writer, _), reader = make()
    writer.put({f"key {k}": values(k) for k in range(MAX_EXTRAS + 3)})
    writer.put({"key 99": values(99), "key 3": values(33)})
    assert plain(reader.take()) == {f"key {k}": [k] if k != 3 else [3, 33] for k in range(MAX_EXTRAS)}


def test_who_takes_a_lost_workers_place_goes_on_with_its_row():
    shared, (lost, _), reader = make()
    lost.put({"a": values(1), "b": values(2)})
    shared.keys.view()[0, 2, :3] = ord("x")  # it was killed while it wrote a third key
    again = ExtrasWriter(shared, 0)
    again.put({"b": values(3), "c": values(4)})
    assert plain(reader.take()) == {"a": [1], "b": [2, 3], "c": [4]}
