"""What is said of the address that a server answers on."""

import pytest

from app.cli.sockets import is_reached_from_elsewhere, listening_sockets


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)],  # noqa: S104 - bound, never listened on
)
def test_an_address_that_other_machines_reach_is_told_from_loopback(host: str, *, expected: bool) -> None:
    (listener,) = listening_sockets(host, 0, 1)
    with listener:
        assert is_reached_from_elsewhere(listener) is expected
