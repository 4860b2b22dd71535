"""`python -m fastac` is the `fastac` command."""

import sys

from fastac.cli import main

sys.exit(main())
