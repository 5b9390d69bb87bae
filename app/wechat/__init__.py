"""Speaks WeChat's server API: who is signing in, and one message to somebody who asked for it.

Promises: no call outlasts its total time-out; every failure is a `Problem` with a stable code; the access token is
kept in Redis, once for all workers, and renewed by one of them at a time; a session key is never read out of an
answer, so it can be neither stored nor logged. `fake` is a server with the same paths, fields and error codes, for
the embedded mode, for rehearsals and for tests.
"""
