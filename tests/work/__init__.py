"""Counts the work that a claim makes, and fails when it has grown by more than a tenth: the work stays small.

Seconds differ from machine to machine and from hour to hour; work does not. What is counted for each scenario comes to
the same at every run: commands and bytes on the lines to Redis and PostgreSQL, commands inside the scripts, statements
inside PostgreSQL's functions, and the calls and bytecodes of Python from a request's bytes to the bytes of its answer.
The engines are real; only the clock, and the socket of the phone, are not.

Two figures are not exact to the last digit: Redis writes the microseconds of its time without leading zeros, so a fresh
poll receives a byte more or less; and records of PostgreSQL's log, which are told and held to nothing.

The figures that hold are in `baseline.json`. After a change that is meant, `.venv/bin/python -m tests.work --accept`
writes them anew; the change of the file is then part of the commit, for everybody to see. Without `--accept` the
command prints all of them.

How often Lua executes something cannot be counted; how often a script calls Redis can.
"""
