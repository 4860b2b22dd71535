"""The contestants: each module sets one library up for the benchmarks' workloads; see `benchmarks.contestant`.

A contestant is a context manager that builds what it needs and yields a `Task`, whose work is one unit,
such as one iteration of A2C.
"""

import sys
from pathlib import Path

# Where packages lie that do not go beside the others: see requirements-tianshou.txt.
APART = {"tianshou": Path(sys.prefix) / "tianshou"}
