"""Trains on two hosts that are network namespaces of this machine, and tells what it sees (needs root).

python -m benchmarks.hosts              the whole story: the same bits, each fault once, speed
python -m benchmarks.hosts faults --times 20
python -m benchmarks.hosts bits --seeds 3
python -m benchmarks.hosts speed --rate 1gbit
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.hosts import bits, faults, speed
from benchmarks.hosts.network import two_hosts, why_not


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hosts", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", nargs="?", choices=["all", "bits", "faults", "speed"], default="all")
    parser.add_argument("--seeds", type=int, default=1, help="of each run whose bits are compared")
    parser.add_argument("--times", type=int, default=1, help="how often each fault happens, and each pair is timed")
    parser.add_argument("--rate", help="of the cable, such as 1gbit")
    parser.add_argument("--flags", default="", help="more flags of the timed runs on two hosts")
    parser.add_argument("--fault", action="append", choices=list(faults.FAULTS), help="only this one")
    parser.add_argument("--keep", type=Path, help="where the runs go; they stay there")
    asked = parser.parse_args()
    reason = why_not()
    if reason is not None:
        print(f"benchmarks.hosts cannot run here: {reason}", file=sys.stderr)
        return 2
    with TemporaryDirectory() as temporary, two_hosts():
        for line in _tell(asked, asked.keep or Path(temporary)):
            print(line, flush=True)
    return 0


def _tell(asked: argparse.Namespace, folder: Path) -> Iterator[str]:
    if asked.what in ("all", "bits"):
        yield from bits.run(folder / "bits", asked.seeds)
    if asked.what in ("all", "faults"):
        yield from faults.run(folder / "faults", asked.fault or list(faults.FAULTS), asked.times)
    if asked.what in ("all", "speed"):
        yield from speed.run(folder / "speed", asked.times, asked.rate, tuple(shlex.split(asked.flags)))


if __name__ == "__main__":
    sys.exit(main())
