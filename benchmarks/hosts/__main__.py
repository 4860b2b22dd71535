"""Trains on two hosts that are network namespaces of this machine, and tells what it sees (needs root).

python -m benchmarks.hosts              the whole story: the same bits, each fault once, speed
python -m benchmarks.hosts faults --times 20
python -m benchmarks.hosts bits --seeds 3
python -m benchmarks.hosts speed --rate 1gbit
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.hosts import faults
from benchmarks.hosts.network import two_hosts, why_not


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hosts", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", nargs="?", choices=["all", "faults"], default="all")
    parser.add_argument("--times", type=int, default=1, help="how often each fault happens")
    parser.add_argument("--fault", action="append", choices=list(faults.FAULTS), help="only this one")
    parser.add_argument("--keep", type=Path, help="where the runs go; they stay there")
    asked = parser.parse_args()
    reason = why_not()
    if reason is not None:
        print(f"benchmarks.hosts cannot run here: {reason}", file=sys.stderr)
        return 2
    with TemporaryDirectory() as temporary, two_hosts():
        folder = asked.keep or Path(temporary)
        for line in faults.run(folder, asked.fault or list(faults.FAULTS), asked.times):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
