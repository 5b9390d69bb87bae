"""Everything scarce that people claim at a moment: releases, their pools of places, claims on them.

Knows nothing of courses or clinics. Promises what `docs/seat-protocol.md` lists: never one place too many, no "yes"
that is lost, no place that nobody gets although somebody wanted it.
"""
