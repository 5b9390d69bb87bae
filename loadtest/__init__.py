"""A crowd of parents with phones, which meets Clocktower only where a phone does: over HTTP.

Nothing here imports the server. What the crowd concludes, it concludes from answers, and from the audit that an
operator may read over the same API; so a rehearsal proves the same thing against any address.
"""
