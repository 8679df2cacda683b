"""Seeds: independent streams of randomness, all derived from one number."""

import hashlib
import re
from dataclasses import dataclass

from .._errors import ConfigError


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


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds as one types them: numbers and ranges with both ends, between commas.

    Args:
        text: such as "3", "0,3,7", "0..9" or "0..4,10".

    Returns:
        The seeds, in that order.

    Raises:
        ConfigError: something else, a range that runs backwards, or a seed that comes twice.

    Example:
        >>> from gradthrough.bench.seeds import parse_seeds
        >>> parse_seeds("0..3,7")
        (0, 1, 2, 3, 7)
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\.\.(\d+))?\s*", part, re.ASCII)
        if match is None:
            raise ConfigError(
                f"seeds are {text!r}, but must be whole numbers >= 0 and ranges: 0..9 or 0,3,7."
            )
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first:
            raise ConfigError(
                f"the range {part.strip()!r} of seeds is empty: write {last}..{first}."
            )
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise ConfigError(f"seeds are {text!r}, where one comes twice. Name each once.")
    return tuple(found)
