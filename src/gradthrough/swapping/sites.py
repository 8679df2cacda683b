"""Where in the user's code a call came from."""

import os
import sys
import threading
from collections import Counter

import torch

_HERE = os.path.dirname(__file__)
_TORCH = os.path.dirname(torch.__file__) + os.sep


class Sites:
    """Counts calls by where they came from, over all threads."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self) -> None:
        """Count the call in progress."""
        place = _caller()
        with self._lock:
            self._counts[place] += 1

    def counts(self) -> dict[str, int]:
        """Return how many calls came from each place, most first."""
        with self._lock:
            return dict(self._counts.most_common())


def _caller() -> str:
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None:
        name = frame.f_code.co_filename
        if os.path.dirname(name) != _HERE and not name.startswith(_TORCH):
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
