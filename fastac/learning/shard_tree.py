"""The balanced tree in which the gradients of shards are added up.

Level 0 has the shards in their order; each level above has the sums of pairs of the one below, and the last one alone
if their number is odd. Floating-point sums depend on the order, so this tree, and not who holds which shard, gives a
run its bits. A host adds up the largest subtrees that it holds alone, and sends only those.
"""

from __future__ import annotations

from collections.abc import Sequence


def subtrees(shards: range, num_shards: int) -> list[range]:
    """Return the largest subtrees that consist of a host's shards alone, in order, each as the range of its shards.

    Args:
        shards: the host's, which follow each other.
        num_shards: S, the number of all shards.
    """
    found: list[range] = []
    begin = shards.start
    while begin < shards.stop:
        size = 1
        while begin % (2 * size) == 0 and begin + size < num_shards:
            if min(begin + 2 * size, num_shards) > shards.stop:
                break
            size *= 2
        found.append(range(begin, min(begin + size, num_shards)))
        begin += size
    return found


def merges(nodes: Sequence[range], num_shards: int) -> list[tuple[int, int]]:
    """Return which sums to take, in order, to get from subtrees to the root: node `left` += node `right`.

    Args:
        nodes: subtrees that together hold all shards, in order.
        num_shards: S.
    """
    places = {node.start: (place, len(node)) for place, node in enumerate(nodes)}
    sums: list[tuple[int, int]] = []

    def add_up(begin: int, size: int) -> int:
        known = places.get(begin)
        if known is not None and known[1] == min(size, num_shards - begin):
            return known[0]
        left = add_up(begin, size // 2)
        if begin + size // 2 < num_shards:
            sums.append((left, add_up(begin + size // 2, size // 2)))
        return left

    size = 1
    while size < num_shards:
        size *= 2
    add_up(0, size)
    return sums
