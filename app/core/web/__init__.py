"""The web edge: everything between a socket and a feature's function that is the same for every feature.

`edge` wraps a request (request id, size limit, headers, log line, last resort), `limits` slows the greedy down,
`routing` reads bodies strictly and gives answers again (`Idempotency-Key`), `failures` turns whatever was raised
into a problem, and `documents` writes it down, for the gate as well.
"""
