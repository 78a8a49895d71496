"""Seeds that are functions of what they are for."""

import hashlib


def derived_seed(*parts: int) -> int:
    """A 63-bit seed that depends on every part."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
