"""Proof by trouble: real processes, real engines and a crowd of phones, while something breaks in the middle.

`python -m tests.chaos` (`make chaos`) plays rounds. In each a release of 300 places is open, phones claim, wait and
give back, and one fault of the catalogue (`faults.py`) strikes. Everything that a phone asked and heard is written down
(`crowd.py`), and so is everything that PostgreSQL wrote (`observer.sql`). When all is quiet again the checker
(`checker.py`) reads both, and the gate's state, and decides every invariant of the seat protocol.

A round is drawn from its seed and its number alone, so that it can be played again: `--seed 7 --only-round 13`. What
cannot be repeated is how the machine interleaves the processes.
"""
