"""Readers of image files: the whole content of a file in, an array out."""

import gzip
import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._errors import DomainError

_IDX_UNSIGNED_BYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"
# What zipfile, zlib and NumPy raise for damaged members; RuntimeError if one seems encrypted.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    EOFError,
    RuntimeError,
    MemoryError,
)


def parse_idx(content: bytes, path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or plain.

    Args:
        content: the whole file.
        path: where it came from, for messages.
        shape: the shape it must have.

    Returns:
        A read-only array of that shape.

    Raises:
        DomainError: not gzip, not IDX, another dtype or shape, cut short, or too long.
    """
    if content.startswith(_GZIP_MAGIC):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise _bad(path, f"gzip data that does not unpack ({error})", "a whole file") from error
    header = 4 + 4 * len(shape)
    magic = bytes((0, 0, _IDX_UNSIGNED_BYTE, len(shape)))
    if content[:4] != magic:
        raise _bad(path, f"the magic number 0x{content[:4].hex()}", f"0x{magic.hex()}")
    if len(content) < header:
        raise _bad(path, f"a header of {len(content)} bytes", f"{header} bytes")
    dims = tuple(int(n) for n in np.frombuffer(content[4:header], ">u4"))
    if dims != shape:
        raise _bad(path, f"an array of shape {dims}", f"{shape}")
    if len(content) - header != math.prod(shape):
        found = f"{len(content) - header} bytes of pixels"
        raise _bad(path, found, f"{math.prod(shape)} bytes for shape {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def parse_npz(
    content: bytes, path: Path, members: Mapping[str, tuple[str, tuple[int, ...]]]
) -> dict[str, NDArray[Any]]:
    """Read named arrays of an npz file; nothing is unpickled.

    Args:
        content: the whole file.
        path: where it came from, for messages.
        members: dtype and shape that each array must have, e.g. ``{"x": ("uint8", (3, 28, 28))}``.

    Raises:
        DomainError: not an npz file, an array missing, damaged, or of another dtype or shape.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except _UNREADABLE as error:
        raise _bad(path, f"no zip archive ({error})", "an npz file") from error
    with archive:
        return {name: _member(archive, name, *want, path) for name, want in members.items()}


def _member(
    archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...], path: Path
) -> NDArray[Any]:
    if f"{name}.npy" not in archive.namelist():
        raise _bad(path, f"arrays {sorted(archive.namelist())}", f"an array {name!r}")
    method = archive.getinfo(f"{name}.npy").compress_type
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _bad(path, f"an array {name!r} packed by method {method}", "one that NumPy packs")
    try:
        # The checksum of the archive is compared only where a member is read to its end.
        stream = io.BytesIO(archive.read(f"{name}.npy"))
        array = np.lib.format.read_array(stream, allow_pickle=False)
    except _UNREADABLE as error:
        raise _bad(path, f"an array {name!r} that cannot be read ({error})", dtype) from error
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        found = f"an array {name!r} of dtype {array.dtype} and shape {array.shape}"
        raise _bad(path, found, f"{dtype} {shape}")
    return array


def _bad(path: Path, found: str, wanted: str) -> DomainError:
    return DomainError(
        f"{path} holds {found}, but {wanted} was wanted. The file is damaged or another one: "
        "remove it, and get it again."
    )


def area_average(paper: NDArray[np.bool_], size: int) -> NDArray[np.uint8]:
    """Shrink square drawings: each new pixel is the share of its area that is ink.

    Args:
        paper: (n, old, old), True where there is paper, False where there is ink.
        size: new height and width, at most `old`.

    Returns:
        (n, size, size); 0 is paper, 255 is full ink.
    """
    old = int(paper.shape[-1])
    edges = np.arange(old + 1, dtype=np.int64) * size
    cells = np.arange(size + 1, dtype=np.int64) * old
    # Overlaps in units of 1 / size of an old pixel are whole numbers: float32 sums them exactly.
    overlap = np.minimum(edges[1:], cells[1:, None]) - np.maximum(edges[:-1], cells[:-1, None])
    weights = overlap.clip(0).astype(np.float32)
    shrunk = np.empty((len(paper), size, size), np.uint8)
    for start in range(0, len(paper), 256):  # all drawings as floats would take 1.4 GB
        chunk = paper[start : start + 256].astype(np.float32)
        ink = old**2 - weights @ chunk @ weights.T
        shrunk[start : start + 256] = np.rint(ink * (255 / old**2))
    return shrunk
