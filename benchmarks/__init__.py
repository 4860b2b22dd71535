"""How fast fastac is, on which machine, and the counts that hold it there; see the Makefile's bench targets."""
