"""The one mini-program that the fake knows unless it is told of another."""

from typing import Final

DEMO_APP_ID: Final = "wx00000000000fake"
DEMO_APP_SECRET: Final = "fake-secret-of-the-demonstration"  # noqa: S105 - opens nothing but this fake
