"""Compares the working tree with an earlier revision: time in turn, memory, and what torch is asked to do."""
