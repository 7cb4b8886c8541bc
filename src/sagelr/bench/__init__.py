"""How fast and how small the optimizers are, next to torch's and to others that are installed.

Everything is measured in one run, in which the contestants take turns: what else the machine does
then falls on all of them alike, and a ratio within a round says more than two times from two runs.
"""
