"""Seeds: independent streams of randomness, all derived from one number."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Seeds:
    """Derive a seed for each purpose, so that no stream depends on how much another one drew.

    Streams are stateless (the noise of epoch 7 is a function of the root and 7), so a run that
    is taken up again needs no state of a generator.

    Args:
        root: the run's seed.

    Example:
        >>> Seeds(0).of("noise", 3) == Seeds(0).of("noise", 3) != Seeds(1).of("noise", 3)
        True
    """

    root: int

    def of(self, purpose: str, *ids: int | str) -> int:
        """Return a seed in [0, 2^63) for a purpose and its numbers."""
        text = "/".join(map(str, (self.root, purpose, *ids)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
