"""What a search trains on: two halves of the training images, seen in turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._errors import DomainError
from ..._random import uniforms
from ..seeds import Seeds
from ._labelled import Labelled, load_labelled
from ._supernet import StepKind

_KINDS: tuple[StepKind, ...] = ("weights", "architecture")


@dataclass(frozen=True, eq=False)
class Step:
    """What one step sees.

    Args:
        kind: which parameters it moves: "weights" or "architecture".
        data: images and labels.
    """

    kind: StepKind
    data: Labelled

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: slice) -> Step:
        return Step(self.kind, self.data[rows])


@dataclass(frozen=True, eq=False)
class SearchData:
    """Images by who sees them.

    Args:
        weights: the half of the training images that the weights train on.
        architecture: the other half.
        test: images that nothing trains on.
    """

    weights: Labelled
    architecture: Labelled
    test: Labelled

    @classmethod
    def load(cls, dataset: str, images: int | None, device: torch.device) -> SearchData:
        """Load a dataset.

        Args:
            dataset: with labels.
            images: how many training images are used, an odd one left out; all by default.
            device: where they are put.

        Raises:
            DomainError: the dataset does not have as many.
        """
        train, test = (part.to(device) for part in load_labelled(dataset))
        if images is not None and images > len(train):
            raise DomainError(f"images is {images}, but {dataset} has {len(train)} to train on.")
        n = (images or len(train)) // 2
        # In turns: whatever order the images have, both halves are alike.
        rows = torch.arange(2 * n, device=device).view(n, 2)
        return cls(train[rows[:, 0]], train[rows[:, 1]], test)

    def steps(
        self, seeds: Seeds, *, epoch: int, size: int, crop: int, flip: bool
    ) -> Iterator[Step]:
        """Yield steps of one pass over both halves, of the weights and the architecture in turns.

        Args:
            seeds: of the order and of the augmentation.
            epoch: of which both are a function.
            size: images for each step; the last two may have fewer.
            crop: images are shifted by up to so many pixels each way.
            flip: whether half of the images are mirrored.
        """
        generator = torch.Generator().manual_seed(seeds.of("augment", epoch))
        halves = [parts(self._shuffled(kind, seeds, epoch), size) for kind in _KINDS]
        for pair in zip(*halves, strict=True):
            for kind, part in zip(_KINDS, pair, strict=True):
                yield Step(
                    kind, Labelled(augmented(part.images, crop, flip, generator), part.labels)
                )

    def _shuffled(self, kind: StepKind, seeds: Seeds, epoch: int) -> Labelled:
        half: Labelled = getattr(self, kind)
        generator = torch.Generator().manual_seed(seeds.of("order", kind, epoch))
        return half[torch.randperm(len(half), generator=generator).to(half.labels.device)]


def parts(data: Labelled, size: int) -> Iterator[Labelled]:
    """Yield parts of a size in order, the last one smaller."""
    yield from (data[start : start + size] for start in range(0, len(data), size))


def augmented(images: Tensor, crop: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Mirror and shift each image on its own.

    Args:
        images: (n, 1, height, width), 0 is their mean, which comes in where they move away.
        crop: shift by up to so many pixels each way; 0 for none.
        flip: mirror each with probability one half, left to right.
        generator: on the CPU, so that the draw is the same on every device.
    """
    (n, _, height, width), device = images.shape, images.device
    if flip:
        mirrored = uniforms((n, 1, 1, 1), torch.device("cpu"), generator).to(device) < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
    if not crop:
        return images
    shifts = torch.randint(2 * crop + 1, (2, n, 1), generator=generator).to(device)
    rows, columns = (
        shift + torch.arange(size, device=device)
        for shift, size in zip(shifts, (height, width), strict=True)
    )
    padded = F.pad(images, (crop, crop, crop, crop)).squeeze(1)
    which = torch.arange(n, device=device).view(n, 1, 1)
    return padded[which, rows.unsqueeze(2), columns.unsqueeze(1)].unsqueeze(1)
