"""Seeds by name, so that adding one consumer of randomness moves no other."""

import hashlib


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed from a run's seed and the name of what it is for."""
    text = ":".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
