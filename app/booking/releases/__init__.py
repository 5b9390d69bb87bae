"""Releases as staff make them and everybody reads them: creating, publishing, the catalogue, capacity, the audit.

Promises that a published release keeps the rules under which it was published (`rules_version`), and that a pool
never has fewer places than are held.
"""
