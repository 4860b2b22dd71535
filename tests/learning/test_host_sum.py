"""What hosts exchange of their gradients, in threads that stand for hosts."""

import threading
from copy import deepcopy

import pytest
import torch

from fastac.learning.host_sum import build_host_sum
from fastac.learning.optimizer import SharedOptimizer, flat_size
from fastac.learning.update_rules import Adam
from fastac.workers import Division, GroupMemory, SharedGroup

NUM_SHARDS, UPDATES = 6, 7


class Exchange:
    """Stands for torch.distributed among threads."""

    def __init__(self, host, barrier, places):
        self.host, self._barrier, self._places = host, barrier, places
        self.is_paused = False

    def _swap(self, value):
        self._places[self.host] = value.clone()
        self._barrier.wait(20.0)
        found = list(self._places)
        self._barrier.wait(20.0)
        return found

    def gather(self, parts, own):
        for part, found in zip(parts, self._swap(own), strict=True):
            part.copy_(found)

    def add_up(self, vector):
        found = self._swap(vector)
        vector.copy_(sum(found[1:], found[0]))

    def gather_rows(self, everyones, hosts):
        found = self._swap(torch.from_numpy(everyones))
        for shards, rows in zip(hosts, found, strict=True):
            everyones[shards.start : shards.stop] = rows[shards.start : shards.stop]


torch.manual_seed(5)
MODEL = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
SIZE = flat_size(MODEL)


def gradient_of(shard, update):
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(100 * shard + update))


def train_host(host, hosts, kind, sync_every, exchange, results):
    division = Division.divide(NUM_SHARDS, 1, hosts, host)
    model, rule = deepcopy(MODEL), Adam(1e-5)
    memory = GroupMemory.allocate(division, 1024, SIZE, rule.slots, kind, sync_every)
    group = SharedGroup(memory, 0, lambda waited_s: None, exchange)
    total = (
        build_host_sum(kind, sync_every, group.nodes, group.grads[0], division.hosts, group, exchange)
        if hosts > 1
        else None
    )
    optimizer = SharedOptimizer(model, rule, 0.5, group, group.grads, group.vectors, total)
    parts = torch.zeros(len(group.shards), 5, dtype=torch.float64)
    terms, norm = torch.zeros(5, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    calls = optimizer.prepare(parts, terms, norm, torch.full((1,), 0.01, dtype=torch.float64))
    keeps = [optimizer.prepare_keep(k) for k in range(len(parts))]
    said = []
    for update in range(UPDATES):
        for k, shard in enumerate(group.shards):
            optimizer._grad.copy_(gradient_of(shard, update))
            parts[k] = torch.arange(5.0) + shard
            for call in keeps[k]:
                call()
        for call in calls:
            call()
        said.append((terms.tolist(), float(norm)))
    if exchange is not None:
        exchange.is_paused = True
        group.gather(parts.numpy())
        group.end_iteration()
    results[host] = optimizer._vectors.param.clone(), said


def train(hosts, kind="exact", sync_every=1):
    results, barrier, places = [None] * hosts, threading.Barrier(hosts), [None] * hosts
    exchanges = [Exchange(host, barrier, places) for host in range(hosts)] if hosts > 1 else [None]
    threads = [
        threading.Thread(target=train_host, args=(host, hosts, kind, sync_every, exchanges[host], results), daemon=True)
        for host in range(hosts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert None not in results
    return results


@pytest.mark.parametrize("hosts", [2, 3, 4, 5, 6])
def test_the_exact_sum_has_the_bits_of_one_host(hosts):
    (expected, said), *_ = train(1)
    for param, its in train(hosts):
        assert torch.equal(param, expected) and its == said


@pytest.mark.parametrize("hosts", [2, 3])
def test_the_reduced_sum_is_that_but_for_rounding(hosts):
    (expected, said), *_ = train(1)
    first, *others = train(hosts, "allreduce")
    assert torch.allclose(first[0], expected, atol=1e-6)
    for (terms, norm), (its, its_norm) in zip(said, first[1], strict=True):
        assert its == pytest.approx(terms) and its_norm == pytest.approx(norm)
    assert all(torch.equal(param, first[0]) for param, _ in others)


@pytest.mark.parametrize(("hosts", "sync_every"), [(2, 3), (3, 2), (6, 100)])
def test_local_steps_end_with_one_policy(hosts, sync_every):
    first, *others = train(hosts, sync_every=sync_every)
    (expected, _), *_ = train(1)
    assert all(torch.equal(param, first[0]) for param, _ in others)
    assert 0.0 < (first[0] - expected).abs().max() < 0.2  # other steps than those of one host, but not far from them


def test_a_local_step_of_plain_descent_averages_to_the_step_of_all():
    # With plain descent, H times a host's part of the gradient, averaged over the hosts, is the step of one host.
    gradients = torch.stack([gradient_of(shard, 0) for shard in range(NUM_SHARDS)])
    alone = -gradients.sum(dim=0)
    hosts = [range(2), range(2, 4), range(4, 6)]
    local = torch.stack([-3.0 * gradients[shards.start : shards.stop].sum(dim=0) for shards in hosts])
    assert torch.allclose(local.mean(dim=0), alone, atol=1e-5)
