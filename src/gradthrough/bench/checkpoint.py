"""Checkpoints: written whole or not at all, and read back without running code."""

import io
from pathlib import Path
from typing import Any

import torch

from .._errors import DomainError
from . import records


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain data."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    records.replace(path, buffer.getvalue())


def load(path: Path, device: torch.device) -> dict[str, Any] | None:
    """Return the state at path, or None where there is none.

    Raises:
        DomainError: the file is not a checkpoint.
    """
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise DomainError(
            f"{path} is not a readable checkpoint ({type(error).__name__}). Remove it to start "
            "the run anew."
        ) from error
