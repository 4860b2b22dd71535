"""The tree of sums over shards: whoever holds which of them, the bits are those of one host."""

import pytest
import torch

from fastac.kernels import num_blocks, sum_gradients
from fastac.learning.shard_tree import merges, subtrees
from fastac.workers import divide_shards

SIZE = 70


def add_up(rows):
    total, squares = torch.empty(SIZE), torch.zeros(num_blocks(SIZE), dtype=torch.float64)
    sum_gradients(rows.contiguous(), 0, SIZE, total, squares)
    return total


@pytest.mark.parametrize("num_shards", [1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 23, 32])
def test_any_number_of_hosts_comes_to_the_same_sum(num_shards):
    gradients = torch.randn(num_shards, SIZE, generator=torch.Generator().manual_seed(num_shards))
    expected = add_up(gradients)
    for hosts in range(1, num_shards + 1):
        nodes = [node for shards in divide_shards(num_shards, hosts) for node in subtrees(shards, num_shards)]
        sums = [add_up(gradients[node.start : node.stop]) for node in nodes]
        for left, right in merges(nodes, num_shards):
            sums[left] = sums[left] + sums[right]
        assert torch.equal(sums[0], expected), (num_shards, hosts)


@pytest.mark.parametrize(
    ("shards", "num_shards", "expected"),
    [
        (range(8), 8, [range(8)]),
        (range(4), 8, [range(4)]),
        (range(2, 5), 8, [range(2, 4), range(4, 5)]),
        (range(1, 4), 8, [range(1, 2), range(2, 4)]),
        (range(4, 5), 5, [range(4, 5)]),
        (range(2, 5), 5, [range(2, 4), range(4, 5)]),  # 4 is alone on its level, until the root
        (range(4, 7), 7, [range(4, 7)]),  # (4 + 5) + 6 is a node of the tree
    ],
)
def test_a_host_sends_its_largest_subtrees(shards, num_shards, expected):
    assert subtrees(shards, num_shards) == expected


def test_a_plain_sum_in_order_would_not_do():
    gradients = torch.randn(8, SIZE, generator=torch.Generator().manual_seed(0))
    in_order = gradients[0].clone()
    for row in gradients[1:]:
        in_order += row
    assert not torch.equal(in_order, add_up(gradients))
