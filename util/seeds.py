"""Seeds derived from several numbers."""

import hashlib


def derived_seed(*parts: int) -> int:
    """Return a 63-bit seed that depends on every part."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
