"""The same workers as in the tests of the gate; here many of them, and many phones."""

from tests.booking.gate.conftest import db, open_worker, signer, worker

__all__ = ["db", "open_worker", "signer", "worker"]
