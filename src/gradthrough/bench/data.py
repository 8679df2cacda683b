"""Images to train on: scanned digits, MNIST, Fashion-MNIST and Omniglot.

Files are looked for in the folder ``$GRADTHROUGH_DATA``, laid out as ``mnist/...``,
``fashion-mnist/...`` and ``omniglot/...``, then in a cache that is filled from public mirrors. The
SHA256 of every file is checked.
"""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._errors import BackendError, ConfigError, DomainError, UnsupportedError
from .._random import uniforms
from ._files import FILES, content, local, optional
from ._formats import area_average, parse_idx, parse_npz

Binarize: TypeAlias = Literal["none", "threshold", "static", "dynamic"]
Images: TypeAlias = NDArray[np.float32]

_DIGITS_TRAIN = 1437  # four fifths of the 1,797 scans
_OMNIGLOT_SIZE = 28
_OMNIGLOT_TRAIN = 15  # of the 20 drawings of each character


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """Grey or binary images in three splits.

    Args:
        name: name of the dataset.
        train: float32 (n, height * width), pixels in [0, 1], 0 is background.
        valid: the same, held out from the end of the training images; may be empty.
        test: the same.
        shape: (height, width).
        binarize: how the pixels were, or with ``"dynamic"`` are to be, made binary.

    Example:
        >>> from gradthrough.bench.data import load
        >>> data = load("digits", valid=137)
        >>> data
        ImageData(digits, 8 x 8, binarize='none', train=1300, valid=137, test=360)
        >>> data.to("cpu").test.shape
        torch.Size([360, 64])
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    shape: tuple[int, int]
    binarize: Binarize

    def __repr__(self) -> str:
        sizes = f"train={len(self.train)}, valid={len(self.valid)}, test={len(self.test)}"
        height, width = self.shape
        return f"ImageData({self.name}, {height} x {width}, binarize={self.binarize!r}, {sizes})"

    def to(self, device: torch.device | str) -> "ImageData":
        """Return the same data with all splits on `device`."""
        train, valid, test = (x.to(device) for x in (self.train, self.valid, self.test))
        return replace(self, train=train, valid=valid, test=test)

    def prepare(self, batch: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Make a batch ready for the model: drawn anew if binarisation is dynamic, else as it is.

        Args:
            batch: images of a split, (n, height * width), in [0, 1].
            generator: source of the draw, on the device of `batch`; unused unless dynamic.

        Raises:
            ConfigError: binarisation is dynamic and there is no generator.

        Example:
            >>> import torch
            >>> from gradthrough.bench.data import load
            >>> data = load("digits", binarize="dynamic")
            >>> batch = data.prepare(data.train[:100], generator=torch.Generator().manual_seed(0))
            >>> batch.unique()
            tensor([0., 1.])
        """
        if self.binarize != "dynamic":
            return batch
        if generator is None:
            raise ConfigError(
                "prepare() got no generator, but binarize='dynamic' draws each batch anew. "
                "Pass generator=torch.Generator(device=batch.device).manual_seed(...)."
            )
        return binarize_batch(batch, generator=generator)


def binarize_batch(x: Tensor, *, generator: torch.Generator) -> Tensor:
    """Draw each pixel from a Bernoulli whose probability is the pixel: P(out = 1) = x.

    Args:
        x: probabilities in [0, 1], any shape and floating dtype.
        generator: the only source of randomness, on the device of `x`.

    Returns:
        A new tensor of 0s and 1s with the shape and dtype of `x`.

    Raises:
        UnsupportedError: `x` is not floating.
        DomainError: a value is NaN or outside [0, 1] (on CPU; elsewhere a NaN draws 0).
        BackendError: `generator` lives on another kind of device.

    Example:
        >>> import torch
        >>> from gradthrough.bench.data import binarize_batch
        >>> binarize_batch(torch.tensor([0.0, 1.0]), generator=torch.Generator())
        tensor([0., 1.])
    """
    if not x.is_floating_point():
        raise UnsupportedError(f"x has dtype {x.dtype}, but probabilities are floating: x.float().")
    if generator.device.type != x.device.type:
        raise BackendError(
            f"generator lives on {generator.device}, but x on {x.device}. Make it there: "
            f"torch.Generator(device={str(x.device)!r})."
        )
    if x.device.type == "cpu" and not bool(((x >= 0) & (x <= 1)).all()):
        low, high = (float(bound) for bound in x.aminmax())
        raise DomainError(
            f"x has values from {low} to {high}, but probabilities lie in [0, 1]. "
            "Scale the pixels: divide bytes by 255."
        )
    return (uniforms(tuple(x.shape), x.device, generator) < x).to(x.dtype)


def load(
    name: str,
    *,
    binarize: Binarize = "none",
    valid: int = 0,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
) -> ImageData:
    """Load a dataset of images, in [0, 1], as float32 tensors on the CPU.

    * ``digits``: 1,797 scans of 8 x 8 that come with scikit-learn, pixel / 16; a fixed permutation
      makes 1,437 train and 360 test images, whatever the seed.
    * ``mnist``, ``fashion-mnist``: 60,000 train and 10,000 test images of 28 x 28, pixel / 255.
    * ``omniglot``: drawings of 1,623 characters by 20 people each, shrunk from 105 x 105 to 28 x 28
      by area average, ink high; drawings 1 to 15 of a character train (24,345), 16 to 20 test
      (8,115). Not the file of Burda et al. (2015), whose likelihoods differ somewhat.

    Args:
        name: one of `DATASETS`.
        binarize: ``"none"`` leaves grey pixels; ``"threshold"`` is x > 0.5; ``"static"`` draws
            each pixel once from Bernoulli(x), the same in every run with the same seed and
            whatever `valid`; ``"dynamic"`` leaves grey pixels for `ImageData.prepare` to draw.
        valid: how many training images, the last ones, are held out, in [0, n_train). The
            published protocol trains on all of them.
        seed: seed of the static draw, in [0, 2**63).
        root: folder to look in, instead of ``$GRADTHROUGH_DATA``.

    Raises:
        ConfigError: an unknown name or option, a folder that does not exist, a file that is
            nowhere, or a package of the ``bench`` extra that is not installed.
        DomainError: a file is damaged, or is not the published one.

    Example:
        >>> from gradthrough.bench.data import load
        >>> load("digits", binarize="static").train[:2, :5].unique()
        tensor([0., 1.])
    """
    _check_name(name)
    _check_options(binarize, seed)
    train, test = (torch.from_numpy(x) for x in _SOURCES[name](_folder(root)))
    if not _is_whole(valid, len(train)):
        raise ConfigError(f"valid is {valid!r}, but {name} can hold out 0 to {len(train) - 1}.")
    shape = (train.shape[1], train.shape[2])
    # Drawn before the images are held out, so that holding some out changes no other image.
    train, test = _binarized((train.flatten(1), test.flatten(1)), binarize, seed)
    kept = len(train) - valid
    return ImageData(name, train[:kept], train[kept:], test, shape, binarize)


def _check_name(name: str) -> None:
    if name in _SOURCES:
        return
    near = difflib.get_close_matches(str(name).lower(), DATASETS, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ConfigError(f"There is no dataset {name!r}.{hint} Known: {', '.join(DATASETS)}.")


def _check_options(binarize: str, seed: int) -> None:
    if binarize not in get_args(Binarize):
        known = ", ".join(map(repr, get_args(Binarize)))
        raise ConfigError(f"binarize is {binarize!r}, but must be one of {known}.")
    if not _is_whole(seed, 2**63):
        raise ConfigError(f"seed is {seed!r}, but must be an integer in [0, 2**63).")


def _is_whole(value: object, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end


def _folder(root: str | os.PathLike[str] | None) -> Path | None:
    chosen = os.environ.get("GRADTHROUGH_DATA") if root is None else root
    if not chosen:
        return None
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        origin = "$GRADTHROUGH_DATA" if root is None else "root"
        raise ConfigError(
            f"{origin} is {str(folder)!r}, but there is no such folder. Create it, or unset it to "
            "use downloaded files."
        )
    return folder


def _binarized(splits: tuple[Tensor, ...], binarize: Binarize, seed: int) -> tuple[Tensor, ...]:
    if binarize == "threshold":
        return tuple((x > 0.5).to(x.dtype) for x in splits)
    if binarize == "static":
        generator = torch.Generator().manual_seed(seed)
        return tuple(binarize_batch(x, generator=generator) for x in splits)
    return splits


def _unit(pixels: NDArray[np.uint8]) -> Images:
    scaled = pixels.astype(np.float32)
    scaled /= 255
    return scaled


def _digits(root: Path | None) -> tuple[Images, Images]:
    del root
    datasets = optional("sklearn.datasets", "load('digits')")
    images = cast("NDArray[np.float64]", datasets.load_digits().images)
    # RandomState, whose stream NumPy never changes: the split is the same for everyone.
    order = np.random.RandomState(0).permutation(len(images))
    scaled = (images[order] / 16).astype(np.float32)
    return scaled[:_DIGITS_TRAIN], scaled[_DIGITS_TRAIN:]


def _idx(name: str, root: Path | None) -> tuple[Images, Images]:
    train, test = (
        parse_idx(*content(file, root), file.shape)
        for file in (FILES[f"{name} train"], FILES[f"{name} test"])
    )
    return _unit(train), _unit(test)


def _omniglot(root: Path | None) -> tuple[Images, Images]:
    small = FILES["omniglot small"]
    found = local(small, root)
    if found is None:
        images, is_test = _shrunk_omniglot(root)
    else:
        members = {"images": ("uint8", small.shape), "is_test": ("uint8", small.shape[:1])}
        arrays = parse_npz(*found, members)
        images, is_test = arrays["images"], arrays["is_test"] == 1
    return _unit(images[~is_test]), _unit(images[is_test])


def _shrunk_omniglot(root: Path | None) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    images: list[NDArray[np.uint8]] = []
    is_test: list[NDArray[np.bool_]] = []
    for file in (FILES["omniglot background"], FILES["omniglot evaluation"]):
        paper = parse_npz(*content(file, root), {"images": ("bool", file.shape)})["images"]
        images.append(area_average(paper.reshape(-1, *paper.shape[2:]), _OMNIGLOT_SIZE))
        drawing = np.tile(np.arange(paper.shape[1], dtype=np.int64), len(paper))
        is_test.append(drawing >= _OMNIGLOT_TRAIN)
    return np.concatenate(images), np.concatenate(is_test)


_SOURCES: dict[str, Callable[[Path | None], tuple[Images, Images]]] = {
    "digits": _digits,
    "mnist": partial(_idx, "mnist"),
    "fashion-mnist": partial(_idx, "fashion-mnist"),
    "omniglot": _omniglot,
}
DATASETS: tuple[str, ...] = tuple(_SOURCES)
