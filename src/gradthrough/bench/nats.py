"""The official files of NATS-Bench, read without running anything that is in them."""

from __future__ import annotations

import bz2
import io
import os
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .._errors import ConfigError, DomainError, GradthroughError

_LARGEST = 64 << 20  # bytes; the files of both search spaces unpack to less than one MiB
_SCALARS = {"f8": "d", "f4": "f", "i8": "q", "i4": "i", "b1": "?"}


@dataclass(frozen=True)
class Training:
    """One training of an architecture.

    Args:
        dataset: what it trained on: cifar10-valid, cifar10, cifar100 or ImageNet16-120.
        epochs: for how long.
        seed: of the training.
        accuracies: in percent after the last epoch, by what they were measured on: x-valid, x-test,
            ori-test.
        parameters: in millions.
        flops: in millions.
    """

    dataset: str
    epochs: int
    seed: int
    accuracies: Mapping[str, float]
    parameters: float
    flops: float


@dataclass(frozen=True)
class Architecture:
    """An architecture with all its trainings.

    Args:
        index: in the benchmark.
        name: a cell of the topology space, or the widths of the size space.
        trainings: on each dataset, for each number of epochs, with each seed.
    """

    index: int
    name: str
    trainings: tuple[Training, ...]

    def accuracy(self, dataset: str, split: str, epochs: int) -> float:
        """Return the accuracy in percent after the last epoch, mean over the seeds.

        Args:
            dataset: what it trained on.
            split: what it was measured on.
            epochs: for how long it trained.

        Raises:
            ConfigError: there is no such training.
        """
        found = [
            training.accuracies[split]
            for training in self.trainings
            if (training.dataset, training.epochs) == (dataset, epochs)
            and split in training.accuracies
        ]
        if not found:
            known = sorted(
                {(t.dataset, split, t.epochs) for t in self.trainings for split in t.accuracies}
            )
            raise ConfigError(
                f"architecture {self.index} has no {(dataset, split, epochs)}. Known: "
                f"{', '.join(map(str, known))}."
            )
        return sum(found) / len(found)


def read_architecture(path: str | os.PathLike[str]) -> Architecture:
    """Read one architecture, such as ``NATS-tss-v1_0-3ffb9-simple/000011.pickle.pbz2``.

    The files are pickles, which may hold any program. Here nothing of them runs: plain containers
    and numbers are made, and every other class is refused.

    Args:
        path: of the file.

    Raises:
        DomainError: the file cannot be read, is no such file, or asks for another class. The "full"
            files, which hold weights, do.
    """
    path = Path(path)
    try:
        trainings = _load(path)
        first = next(iter(trainings.values()))
        found = tuple(
            _training(int(epochs), dataset, seed, result)
            for epochs, info in trainings.items()
            for (dataset, seed), result in info["all_results"].items()
        )
        return Architecture(int(first["arch_index"]), str(first["arch_str"]), found)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        if isinstance(error, GradthroughError):
            raise
        what = f"no trainings of an architecture ({type(error).__name__}: {error})"
        raise _bad(path, what) from error


def read_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read the names of all architectures in order, from ``meta.pickle.pbz2``.

    Args:
        path: of the file.

    Raises:
        DomainError: as `read_architecture`.
    """
    path = Path(path)
    meta = _load(path)
    names: object = meta.get("meta_archs")
    if not isinstance(names, list):
        raise _bad(path, "no list of names")
    return tuple(str(name) for name in cast("list[object]", names))


def _training(epochs: int, dataset: str, seed: int, result: Mapping[str, Any]) -> Training:
    splits, curves = result["eval_names"], result["eval_acc1es"]
    last = {str(split): float(curves[f"{split}@{epochs - 1}"]) for split in splits}
    size, flops = float(result["params"]), float(result["flop"])
    return Training(str(dataset), epochs, int(seed), last, size, flops)


def _load(path: Path) -> dict[str, Any]:
    raw = _unpacked(path)
    try:
        found = _Restricted(io.BytesIO(raw), path).load()
    except GradthroughError:
        raise
    except Exception as error:  # bytes at random can make a pickle raise anything
        raise _bad(path, f"no pickle ({type(error).__name__}: {error})") from error
    if not isinstance(found, dict):
        raise _bad(path, f"a {type(found).__name__}")
    return cast("dict[str, Any]", found)


def _unpacked(path: Path) -> bytes:
    """Return the content, of bounded size: a small file may unpack to any."""
    unpacker = bz2.BZ2Decompressor()
    try:
        raw = unpacker.decompress(path.read_bytes(), _LARGEST)
    except OSError as error:
        raise DomainError(f"{path} cannot be read: {error}. Is it a .pickle.pbz2 file?") from error
    if not unpacker.eof:
        size = f"more than {_LARGEST} bytes" if len(raw) == _LARGEST else "bzip2 data, cut short"
        raise _bad(path, size)
    return raw


class _Restricted(pickle.Unpickler):
    """Makes dicts, lists, strings and numbers; NumPy's scalars become plain numbers.

    What a pickle asks for is never imported. It gets stand-ins that are made anew each time, so
    that a pickle which changes them changes nothing that lasts.
    """

    def __init__(self, stream: io.BytesIO, path: Path) -> None:
        super().__init__(stream)
        self._path = path

    def find_class(self, module_name: str, global_name: str, /) -> Callable[..., object]:
        wanted = f"{module_name}.{global_name}"
        if wanted == "collections.OrderedDict":
            return dict
        if wanted == "numpy.dtype":

            def dtype(code: str, *_: object) -> _Dtype:
                return _Dtype(code)

            return dtype
        if wanted in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"):

            def scalar(dtype: _Dtype, raw: bytes) -> float:
                return dtype.number(raw)

            return scalar
        raise DomainError(
            f"{self._path} asks for {wanted}, but only dicts and numbers are read: a pickle may "
            "run any program. Take a 'simple' file of NATS-Bench, from its authors."
        )


class _Dtype:
    """Stands in for a NumPy dtype of single numbers."""

    __slots__ = ("_format", "_order")

    def __init__(self, code: str) -> None:
        self._format, self._order = _SCALARS[code], "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = {"<": "<", "|": "<", ">": ">"}[state[1]]

    def number(self, raw: bytes) -> float:
        return struct.unpack(self._order + self._format, raw)[0]


def _bad(path: Path, found: str) -> DomainError:
    return DomainError(
        f"{path} holds {found}, but a file of NATS-Bench was wanted: a dict in a pickle in bzip2. "
        "It is damaged or another one: get it again."
    )
