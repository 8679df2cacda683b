"""The data files: which there are, where they are found or downloaded from, and their SHA256."""

import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .._errors import ConfigError, DomainError


class Downloader(Protocol):
    """Writes the content behind a URL to a file: the protocol of pooch's downloaders."""

    def __call__(self, url: str, output_file: str, pooch: object, /) -> object:
        """Download `url` to `output_file`."""
        ...


@dataclass(frozen=True)
class DataFile:
    """One file of a dataset.

    Args:
        path: place below the data folder, e.g. ``"mnist/train-images-idx3-ubyte.gz"``.
        sha256: SHA256 of the file, 64 hex digits.
        shape: shape of the images in it, e.g. ``(60000, 28, 28)``.
        mirrors: URLs of the file, tried in this order; empty if it is published nowhere.
    """

    path: str
    sha256: str
    shape: tuple[int, ...]
    mirrors: tuple[str, ...] = ()


_MNIST = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_FASHION = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)
# The repository packed its files anew several times; this commit has the ones with these hashes.
_OMNIGLOT = (
    "https://raw.githubusercontent.com/bitsandscraps/omniglot/"
    "9514cfd6780ed78e96a4d88bae8c85f3ee31359e/",
)


def _file(path: str, sha256: str, shape: tuple[int, ...], folders: tuple[str, ...]) -> DataFile:
    name = path.rpartition("/")[2]
    return DataFile(path, sha256, shape, tuple(folder + name for folder in folders))


FILES: dict[str, DataFile] = {
    "mnist train": _file(
        "mnist/train-images-idx3-ubyte.gz",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        (60_000, 28, 28),
        _MNIST,
    ),
    "mnist test": _file(
        "mnist/t10k-images-idx3-ubyte.gz",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        (10_000, 28, 28),
        _MNIST,
    ),
    "fashion-mnist train": _file(
        "fashion-mnist/train-images-idx3-ubyte.gz",
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        (60_000, 28, 28),
        _FASHION,
    ),
    "fashion-mnist test": _file(
        "fashion-mnist/t10k-images-idx3-ubyte.gz",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        (10_000, 28, 28),
        _FASHION,
    ),
    "omniglot small": _file(
        "omniglot/omniglot_28x28.npz",
        "e507b3ccdadf8d98c80ea8d180e6050eb091cf726e33afe29bde26bcd800e613",
        (32_460, 28, 28),
        (),
    ),
    "omniglot background": _file(
        "omniglot/images_background.npz",
        "8bf84167413cd00beacdce3fe582f780ab538d8dbef043a6d688f2527bbce199",
        (964, 20, 105, 105),
        _OMNIGLOT,
    ),
    "omniglot evaluation": _file(
        "omniglot/images_evaluation.npz",
        "0b84c7ffd94c4841c0040e529c86a82eaaccb986d8eadad5673f7991b7475276",
        (659, 20, 105, 105),
        _OMNIGLOT,
    ),
}


def optional(module: str, needed_for: str) -> Any:  # noqa: ANN401 - a module without type stubs
    """Import a module of the ``bench`` extra.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{needed_for} needs {module.partition('.')[0]}, which cannot be imported ({error}). "
            "Install it: pip install 'gradthrough[bench]'."
        ) from error


def local(file: DataFile, root: Path | None) -> tuple[bytes, Path] | None:
    """Return the verified content of `file` below `root` and its path, or None if not there.

    Raises:
        DomainError: the file is there, but cannot be read or has another SHA256.
    """
    if root is None:
        return None
    path = root / file.path
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DomainError(
            f"{path} cannot be read: {error}. Make it a readable file, or remove it."
        ) from error
    check_sha256(content, file, path)
    return content, path


def content(file: DataFile, root: Path | None) -> tuple[bytes, Path]:
    """Return the verified content of `file` and its path, below `root` or in the cache.

    Raises:
        DomainError: the file, or what the mirrors sent, is not the file that was wanted.
        ConfigError: the file is nowhere.
    """
    found = local(file, root)
    if found is None:
        path = fetch(file, cache_folder())  # where pooch has just compared the SHA256
        found = path.read_bytes(), path
    return found


def cache_folder() -> Path:
    """Return the folder that downloads go to (pooch's choice for this operating system)."""
    return Path(optional("pooch", "finding the cache of downloaded data").os_cache("gradthrough"))


def fetch(file: DataFile, cache: Path, *, downloader: Downloader | None = None) -> Path:
    """Download `file` into `cache` unless it is there; the mirrors are tried in order.

    pooch writes to a temporary file beside the target, compares the SHA256, and renames: the
    target's name never holds anything but the whole, right file.

    Args:
        file: what to fetch.
        cache: folder to put it in, at ``cache / file.path``.
        downloader: how to get a URL; by default over HTTP.

    Raises:
        DomainError: no mirror sent the right file, and one sent a wrong one.
        ConfigError: no mirror could be reached, or there is none.
    """
    target = cache / file.path
    pooch = optional("pooch", f"downloading {file.path}")
    if downloader is None:
        # Some servers label .gz files as a compressed transfer, which would be unpacked on the way.
        plain = {"Accept-Encoding": "identity"}
        downloader = pooch.HTTPDownloader(chunk_size=1 << 16, headers=plain)
    failures: list[str] = []
    wrong_content = False
    for url in file.mirrors:
        try:
            pooch.retrieve(url, file.sha256, target.name, target.parent, downloader=downloader)
        except OSError as error:
            failures.append(f"  {url}: {type(error).__name__}: {error}")
        except ValueError as error:
            wrong_content = True
            failures.append(f"  {url}: {error}")
        else:
            return target
    tried = "\n".join(failures) or "  It has no public mirror."
    raise (DomainError if wrong_content else ConfigError)(
        f"{file.path} was not found and could not be downloaded to {target}:\n{tried}\n"
        "Get the file elsewhere, put it in a folder under that same relative path, and set "
        f"GRADTHROUGH_DATA to the folder. Its SHA256 must be {file.sha256}."
    )


def check_sha256(content: bytes, file: DataFile, path: Path) -> None:
    """Refuse content that is not the file that was wanted.

    Raises:
        DomainError: the SHA256 differs.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256.lower():
        raise DomainError(
            f"{path} ({len(content)} bytes) has SHA256 {found}, but {file.path} has SHA256 "
            f"{file.sha256}. Replace it with the original file, or remove it."
        )
