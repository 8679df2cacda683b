"""Images with labels: what a classifier trains on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..._errors import ConfigError
from .._files import FILES, DataFile, content, optional
from .._formats import parse_idx
from ..data import load


def _labels(images: str, name: str, sha256: str) -> DataFile:
    """Return the file of labels that lies beside a file of images, here and on its mirrors."""
    beside = FILES[images]
    folder = beside.path.rpartition("/")[0]
    mirrors = tuple(f"{url.rpartition('/')[0]}/{name}" for url in beside.mirrors)
    return DataFile(f"{folder}/{name}", sha256, beside.shape[:1], mirrors)


LABELS: dict[str, DataFile] = {
    "mnist train": _labels(
        "mnist train",
        "train-labels-idx1-ubyte.gz",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    "mnist test": _labels(
        "mnist test",
        "t10k-labels-idx1-ubyte.gz",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    "fashion-mnist train": _labels(
        "fashion-mnist train",
        "train-labels-idx1-ubyte.gz",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    ),
    "fashion-mnist test": _labels(
        "fashion-mnist test",
        "t10k-labels-idx1-ubyte.gz",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
}
LABELLED = ("digits", "mnist", "fashion-mnist")


@dataclass(frozen=True, eq=False, repr=False)
class Labelled:
    """Images and their classes.

    Args:
        images: float32 (n, 1, height, width), any scale.
        labels: int64 (n,), in [0, 10).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> Labelled:
        return Labelled(self.images[rows], self.labels[rows])

    def to(self, device: torch.device) -> Labelled:
        """Return the same on a device."""
        return Labelled(self.images.to(device), self.labels.to(device))


def load_labelled(
    name: str, root: str | os.PathLike[str] | None = None
) -> tuple[Labelled, Labelled]:
    """Load training and test images with their labels; all have ten classes.

    Pixels are scaled so that those of the training images have mean 0 and variance 1. Images and
    their order are those of `gradthrough.bench.data.load`.

    Args:
        name: digits, mnist or fashion-mnist.
        root: folder to look in, instead of ``$GRADTHROUGH_DATA``.

    Raises:
        ConfigError: a name without labels; as `gradthrough.bench.data.load`.
        DomainError: as there.

    Example:
        >>> from gradthrough.bench.tasks._labelled import load_labelled
        >>> train, test = load_labelled("digits")
        >>> train.images.shape, len(test)
        (torch.Size([1437, 1, 8, 8]), 360)
    """
    if name not in LABELLED:
        raise ConfigError(f"dataset is {name!r}, but labels come with {', '.join(LABELLED)}.")
    data = load(name, root=root)
    labels = _digits(len(data.train)) if name == "digits" else _idx(name, root)
    variance, mean = torch.var_mean(data.train, correction=0)
    train, test = (
        Labelled(((x - mean) / variance.sqrt()).reshape(-1, 1, *data.shape), y)
        for x, y in zip((data.train, data.test), labels, strict=True)
    )
    return train, test


def _digits(train: int) -> tuple[Tensor, Tensor]:
    datasets = optional("sklearn.datasets", "load_labelled('digits')")
    target = cast("NDArray[Any]", datasets.load_digits().target)
    # The order of the images: see data.load.
    shuffled = target[np.random.RandomState(0).permutation(len(target))].astype(np.int64)
    labels = torch.from_numpy(shuffled)
    return labels[:train], labels[train:]


def _idx(name: str, root: str | os.PathLike[str] | None) -> tuple[Tensor, Tensor]:
    folder = os.environ.get("GRADTHROUGH_DATA") if root is None else root
    place = Path(folder).expanduser() if folder else None
    train, test = (
        torch.from_numpy(parse_idx(*content(file, place), file.shape).astype(np.int64))
        for file in (LABELS[f"{name} train"], LABELS[f"{name} test"])
    )
    return train, test
