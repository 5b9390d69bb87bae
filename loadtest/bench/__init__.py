"""Measures the service beside what a town would take instead: the same work, the same machine, the same minute.

Absolute figures move with the machine, so every row is a ratio of two sides that took turns. Unlike the crowd, the
bench knows the service from inside: it signs passes with the server's key and fills tables, because signing in a
hundred thousand parents over HTTP would take longer than everything that is to be measured.
"""
