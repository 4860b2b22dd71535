"""Makes `benchmarks`, which is not installed, importable from whatever folder pytest is started in."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
