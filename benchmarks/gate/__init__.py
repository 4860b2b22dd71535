"""The second tier of the regression gate: does this working tree do the same as its base, as fast, in as much memory?

`make bench-check` runs it after the counts (`benchmarks.counts`, the first tier). It says nothing of how
fast anything is: that is `make bench`. How it measures is in `fastac.tools.gate`, for any repository.

    python -m benchmarks.gate [--quick] [--base REV]           compare, exit 1 if something became slower or larger
    python -m benchmarks.gate declare [--base REV] [--reason]  declare other bits, or more memory
    python -m benchmarks.gate selftest                         its false alarms, and the slowdowns that it sees
    python -m benchmarks.gate trend                            draw the rates of all runs so far
"""
