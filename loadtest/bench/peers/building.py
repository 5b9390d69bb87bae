"""Where peers that are not part of this environment are made."""

from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[3]


def building_site(peer: str) -> Path:
    """Return the directory in which a peer's own environment is to stand, whether or not it is made yet."""
    return _ROOT / "build" / "bench" / peer
