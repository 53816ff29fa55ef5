"""Seeds by name, so that a new consumer of random numbers changes no other's."""

import hashlib


def derive(seed: int, *names: object) -> int:
    """Return a 63-bit seed from a run's seed and the names of its consumer."""
    text = ":".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
