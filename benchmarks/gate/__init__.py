"""The second and third tier of the regression gate: is this working tree slower than its base, and what is the trend?

`make bench-check` runs it after the counts (`benchmarks.counts`, the first tier). It says nothing of how
fast anything is: that is `make bench`.

    python -m benchmarks.gate [--quick] [--base REV]   compare, exit 1 if something became slower
    python -m benchmarks.gate selftest                 what the gate itself is worth: false alarms, and slowdowns seen
    python -m benchmarks.gate trend                    draw the rates of all runs so far
"""
