"""Image data: what is loaded, how it is made binary, and what happens to damaged files."""

import dataclasses
import gzip
import hashlib
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gradthrough import _random
from gradthrough._errors import BackendError, ConfigError, DomainError, UnsupportedError
from gradthrough.bench import _files, _formats, data
from gradthrough.bench._files import FILES, DataFile, fetch
from gradthrough.bench.data import DATASETS, ImageData, binarize_batch, load

REAL = os.environ.get("GRADTHROUGH_DATA")
HERE = Path("some/file")
MNIST_TRAIN = "mnist/train-images-idx3-ubyte.gz"


def idx(images: np.ndarray) -> bytes:
    return struct.pack(f">4B{images.ndim}I", 0, 0, 8, images.ndim, *images.shape) + images.tobytes()


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def gz(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def grey(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(_files, "cache_folder", lambda: folder)
    monkeypatch.delenv("GRADTHROUGH_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


@pytest.fixture
def contents(cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Small files of the real layout, which take the place of the real ones in the table."""
    paper = np.random.RandomState(1).rand(4, 20, 105, 105) < 0.9
    paper[..., :8, :8] = False
    contents: dict[str, bytes] = {}
    small = {
        "mnist train": idx(grey(60, 28, 28)),
        "mnist test": idx(grey(60, 28, 28)[:10]),
        "fashion-mnist train": idx(grey(40, 28, 28, seed=2)),
        "fashion-mnist test": idx(grey(20, 28, 28, seed=3)),
        "omniglot small": npz(
            images=_formats.area_average(paper.reshape(-1, 105, 105), 28),
            is_test=np.tile(np.arange(20) >= 15, 4).astype(np.uint8),
        ),
        "omniglot background": npz(images=paper[:3]),
        "omniglot evaluation": npz(images=paper[3:]),
    }
    shapes = [(60, 28, 28), (10, 28, 28), (40, 28, 28), (20, 28, 28), (80, 28, 28)]
    shapes += [(3, 20, 105, 105), (1, 20, 105, 105)]
    for (key, content), shape in zip(small.items(), shapes, strict=True):
        path = FILES[key].path
        contents[path] = gz(content) if path.endswith(".gz") else content
        monkeypatch.setitem(FILES, key, DataFile(path, sha256(contents[path]), shape))
    return contents


@pytest.fixture
def folder(tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the small files, named by $GRADTHROUGH_DATA."""
    root = tmp_path / "data"
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    monkeypatch.setenv("GRADTHROUGH_DATA", str(root))
    return root


# What is loaded ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS)
def test_splits_are_flat_float32_in_the_unit_interval(name: str, folder: Path):
    found = load(name, valid=7)
    assert (found.name, found.binarize) == (name, "none")
    for x in (found.train, found.valid, found.test):
        assert x.dtype == torch.float32
        assert x.device.type == "cpu"
        assert x.is_contiguous()
        assert x.shape[1:] == (found.shape[0] * found.shape[1],)
        assert len(x) > 0
        assert 0 <= float(x.min()) < 0.1
        assert 0.9 < float(x.max()) <= 1


@pytest.mark.usefixtures("folder")
def test_idx_pixels_are_bytes_over_255_in_row_order():
    found = load("mnist")
    assert torch.equal(found.train, torch.from_numpy(grey(60, 28, 28).reshape(60, 784)) / 255)
    assert len(found.test) == 10
    assert found.shape == (28, 28)


def test_digits_have_a_fixed_split_of_all_scans():
    from sklearn.datasets import load_digits

    found = load("digits")
    assert found.shape == (8, 8)
    assert (len(found.train), len(found.valid), len(found.test)) == (1437, 0, 360)
    assert torch.equal(found.train, load("digits", seed=5).train)
    scans = np.sort(load_digits().data / 16, axis=0)
    both = np.sort(torch.cat([found.train, found.test]).numpy(), axis=0)
    assert np.array_equal(both, scans)
    # The order is part of what a published number rests on.
    assert sha256(found.test.numpy().tobytes())[:12] == "e110f2fe7f72"


def test_omniglot_splits_by_drawing(folder: Path, contents: dict[str, bytes]):
    found = load("omniglot")
    with np.load(io.BytesIO(contents["omniglot/omniglot_28x28.npz"])) as file:
        images = file["images"].reshape(4, 20, 784)
    assert torch.equal(found.train, torch.from_numpy(images[:, :15].reshape(60, 784)) / 255)
    assert torch.equal(found.test, torch.from_numpy(images[:, 15:].reshape(20, 784)) / 255)


def test_omniglot_is_the_same_from_the_published_drawings(folder: Path):
    small = load("omniglot")
    (folder / "omniglot/omniglot_28x28.npz").unlink()
    shrunk = load("omniglot")
    assert torch.equal(small.train, shrunk.train)
    assert torch.equal(small.test, shrunk.test)


@pytest.mark.parametrize(("old", "new"), [(105, 28), (15, 4), (6, 3), (5, 5)])
def test_area_average_is_the_mean_of_a_finely_repeated_drawing(old: int, new: int):
    paper = np.random.RandomState(0).rand(300 if old < 100 else 2, old, old) < 0.5
    for drawing, shrunk in zip(paper, _formats.area_average(paper, new), strict=True):
        fine = np.kron(~drawing, np.ones((new, new), bool)).reshape(new, old, new, old)
        assert np.array_equal(shrunk, np.rint(255 * fine.sum((1, 3)) / old**2))


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("binarize", ["none", "threshold", "static", "dynamic"])
def test_valid_takes_the_last_training_images_and_changes_no_other(
    name: str, binarize: data.Binarize, folder: Path
):
    whole, held = load(name, binarize=binarize), load(name, binarize=binarize, valid=9)
    assert len(whole.valid) == 0
    assert torch.equal(held.train, whole.train[:-9])
    assert torch.equal(held.valid, whole.train[-9:])
    assert torch.equal(held.test, whole.test)


def test_data_moves_between_devices_and_is_frozen():
    found = load("digits", valid=10, binarize="dynamic")
    moved = found.to("meta")
    assert {x.device.type for x in (moved.train, moved.valid, moved.test)} == {"meta"}
    assert (moved.shape, moved.binarize, moved.name) == (found.shape, "dynamic", "digits")
    assert found.train.device.type == "cpu"
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.name = "other"  # pyright: ignore[reportAttributeAccessIssue]


# Binary pixels -------------------------------------------------------------------------------


@pytest.mark.usefixtures("folder")
def test_threshold_is_above_one_half():
    grey_data, found = load("digits"), load("digits", binarize="threshold")
    assert bool((grey_data.train == 0.5).any())
    assert torch.equal(found.train, (grey_data.train > 0.5).float())
    assert torch.equal(found.test, (grey_data.test > 0.5).float())


@pytest.mark.usefixtures("folder")
def test_static_is_one_draw_for_a_seed_and_another_for_each_split():
    first, again = load("mnist", binarize="static"), load("mnist", binarize="static")
    other = load("mnist", binarize="static", seed=1)
    assert set(first.train.unique().tolist()) == {0, 1}
    for split in ("train", "test"):
        assert torch.equal(getattr(first, split), getattr(again, split))
        assert not torch.equal(getattr(first, split), getattr(other, split))
    # The test file repeats the first ten training images.
    assert torch.equal(load("mnist").test, load("mnist").train[:10])
    assert not torch.equal(first.test, first.train[:10])


def test_static_follows_the_pixels():
    pixels, drawn = load("digits").train, load("digits", binarize="static").train
    assert bool((drawn[pixels == 0] == 0).all())
    assert bool((drawn[pixels == 1] == 1).all())
    assert float(drawn[pixels == 0.5].mean()) == pytest.approx(0.5, abs=0.05)


def test_loading_leaves_the_global_generators_alone():
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    load("digits", binarize="static")
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_batch_is_drawn_from_the_generator_alone(dtype: torch.dtype):
    x = torch.linspace(0, 1, 600).reshape(20, 30).to(dtype)
    copy, before = x.clone(), torch.get_rng_state()
    drawn = binarize_batch(x, generator=generator(3))
    uniforms = _random.uniforms((20, 30), x.device, generator(3))
    assert torch.equal(drawn, (uniforms < x).to(dtype))
    assert drawn.dtype == dtype
    assert torch.equal(x, copy)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_draw_advances_the_generator():
    x, source = torch.full((100,), 0.5), generator()
    first, second = (binarize_batch(x, generator=source) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, binarize_batch(x, generator=generator()))


def test_certain_pixels_are_certain():
    x = torch.tensor([0.0, 1.0]).expand(5000, 2)
    assert torch.equal(binarize_batch(x, generator=generator()), x)
    assert binarize_batch(torch.empty(0, 784), generator=generator()).shape == (0, 784)


def test_a_black_pixel_stays_black_at_the_smallest_uniform(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data, "uniforms", lambda shape, *_: torch.zeros(shape))
    drawn = binarize_batch(torch.tensor([0.0, 1e-9]), generator=generator())
    assert drawn.tolist() == [0, 1]


def test_prepare_draws_only_if_dynamic():
    found = load("digits", binarize="dynamic")
    batch = found.train[:50]
    assert torch.equal(batch, load("digits").train[:50])
    drawn = found.prepare(batch, generator=generator(1))
    assert torch.equal(drawn, binarize_batch(batch, generator=generator(1)))
    assert set(drawn.unique().tolist()) == {0, 1}
    for mode in ("none", "threshold", "static"):
        other = dataclasses.replace(found, binarize=mode)
        source = generator(1)
        assert other.prepare(batch, generator=source) is batch
        assert torch.equal(source.get_state(), generator(1).get_state())


@pytest.mark.parametrize("bad", [float("nan"), -0.01, 1.01, float("inf"), 255.0])
def test_a_pixel_that_is_no_probability_is_refused(bad: float):
    x = torch.rand(4, 5, generator=generator())
    x[2, 3] = bad
    with pytest.raises(DomainError, match=r"probabilities lie in \[0, 1\]"):
        binarize_batch(x, generator=generator())


def test_refusals_of_a_draw_name_the_remedy():
    with pytest.raises(UnsupportedError, match=r"uint8.*x\.float"):
        binarize_batch(torch.zeros(3, dtype=torch.uint8), generator=generator())
    with pytest.raises(BackendError, match="generator lives on cpu, but x on meta"):
        binarize_batch(torch.zeros(3, device="meta"), generator=generator())
    with pytest.raises(ConfigError, match="no generator"):
        load("digits", binarize="dynamic").prepare(torch.zeros(3))


# Names and options ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"), [("mnst", "mnist"), ("MNIST", "mnist"), ("fashion_mnist", "fashion-mnist")]
)
def test_an_unknown_name_gets_its_neighbours_and_all_names(name: str, near: str):
    with pytest.raises(ConfigError, match=f"Did you mean .*'{near}'") as caught:
        load(name)
    assert all(known in str(caught.value) for known in DATASETS)


def test_a_name_like_no_other_gets_all_names():
    with pytest.raises(ConfigError, match=f"'zzz'. Known: {', '.join(DATASETS)}"):
        load("zzz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"binarize": "hard"}, "'hard'.*'none', 'threshold', 'static', 'dynamic'"),
        ({"binarize": None}, "binarize is None"),
        ({"valid": -1}, "valid is -1.* 0 to 1436"),
        ({"valid": 1437}, "valid is 1437"),
        ({"valid": 0.1}, "valid is 0.1"),
        ({"valid": True}, "valid is True"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"seed": None}, "seed is None"),
        ({"root": "no/such/folder"}, "root is 'no/such/folder'.*no such folder"),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        load("digits", **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("module", "name"), [("pooch", "mnist"), ("sklearn.datasets", "digits")])
def test_a_missing_package_says_what_to_install(
    module: str, name: str, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'gradthrough\[bench\]'"):
        load(name)


def test_heavy_packages_are_imported_only_when_needed():
    code = (
        "import sys, gradthrough.bench.data; "
        "sys.exit(' '.join({'sklearn', 'pooch', 'requests'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


# Files in the folder -------------------------------------------------------------------------


def test_an_explicit_folder_goes_before_the_variable(folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"mnist/train.* was not found"):
        load("mnist", root=tmp_path / "empty")
    assert len(load("mnist", root=str(folder)).train) == 60


def test_a_folder_that_does_not_exist_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRADTHROUGH_DATA", str(cache / "typo"))
    with pytest.raises(ConfigError, match=r"\$GRADTHROUGH_DATA is .*typo"):
        load("mnist")


@pytest.mark.parametrize("value", [None, ""])
def test_without_files_the_error_says_where_to_put_them(
    value: str | None, contents: dict[str, bytes], cache: Path, monkeypatch: pytest.MonkeyPatch
):
    if value is not None:
        monkeypatch.setenv("GRADTHROUGH_DATA", value)
    with pytest.raises(ConfigError, match="no public mirror") as caught:
        load("mnist")
    for part in (MNIST_TRAIN, "GRADTHROUGH_DATA", sha256(contents[MNIST_TRAIN])):
        assert part in str(caught.value)
    assert files_below(cache) == []


def test_a_folder_with_some_of_the_files_is_completed_from_the_cache(folder: Path, cache: Path):
    (cache / "mnist").mkdir(parents=True)
    (folder / MNIST_TRAIN).rename(cache / MNIST_TRAIN)
    FILES["mnist train"] = dataclasses.replace(FILES["mnist train"], mirrors=("http://x.invalid",))
    assert len(load("mnist").train) == 60
    assert not (folder / MNIST_TRAIN).exists()


@pytest.mark.parametrize(
    ("name", "path"), [("mnist", MNIST_TRAIN), ("omniglot", "omniglot/omniglot_28x28.npz")]
)
@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "longer"])
def test_a_damaged_file_is_refused_by_both_hashes_and_left_alone(
    name: str, path: str, damage: str, folder: Path, cache: Path
):
    whole = (folder / path).read_bytes()
    middle = len(whole) // 2
    damaged = {
        "truncated": whole[:-1],
        "empty": b"",
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "longer": whole + b"\0",
    }[damage]
    (folder / path).write_bytes(damaged)
    with pytest.raises(DomainError, match="Replace it") as caught:
        load(name)
    for part in (str(folder / path), sha256(whole), sha256(damaged), f"{len(damaged)} bytes"):
        assert part in str(caught.value)
    assert (folder / path).read_bytes() == damaged
    assert files_below(cache) == []


def test_a_folder_in_the_place_of_a_file_is_refused(folder: Path):
    (folder / MNIST_TRAIN).unlink()
    (folder / MNIST_TRAIN).mkdir()
    with pytest.raises(DomainError, match="cannot be read"):
        load("mnist")


# Readers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gz])
def test_idx_is_read_plain_or_gzipped(pack: type[bytes]):
    images = grey(5, 4, 3)
    assert np.array_equal(_formats.parse_idx(pack(idx(images)), HERE, (5, 4, 3)), images)


@pytest.mark.parametrize("pack", [bytes, gz])
def test_idx_cut_short_anywhere_is_refused(pack: type[bytes]):
    whole = pack(idx(grey(5, 4, 3)))
    for length in range(len(whole)):
        with pytest.raises(DomainError, match="some/file holds"):
            _formats.parse_idx(whole[:length], HERE, (5, 4, 3))


def test_no_damaged_byte_of_a_gzipped_idx_changes_a_pixel():
    images = grey(5, 4, 3)
    whole = gz(idx(images))
    refused = 0
    for place in range(len(whole)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(whole)
            damaged[place] ^= flip
            try:
                found = _formats.parse_idx(bytes(damaged), HERE, (5, 4, 3))
            except DomainError:
                refused += 1
            else:
                assert np.array_equal(found, images)
    assert refused > len(whole)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x08\x01" + idx(grey(5, 4, 3))[4:], "magic number 0x00000801, but 0x00000803"),
        (b"\0\0\x0d\x03" + idx(grey(5, 4, 3))[4:], "magic number 0x00000d03"),
        (b"PNG\x03" + idx(grey(5, 4, 3))[4:], "magic number 0x504e4703"),
        (idx(grey(5, 3, 4)), r"shape \(5, 3, 4\), but \(5, 4, 3\)"),
        (idx(grey(6, 4, 3)), r"shape \(6, 4, 3\)"),
        (idx(grey(5, 4, 3)) + b"\0", r"61 bytes of pixels, but 60 bytes"),
        (idx(grey(5, 4, 3))[:-1], r"59 bytes of pixels, but 60 bytes"),
        (idx(grey(5, 4, 3))[:10], "a header of 10 bytes, but 16"),
        (b"", "magic number 0x,"),
        (gz(idx(grey(5, 4, 3))) + b"x", "does not unpack"),
        (b"<html>404</html>", "magic number 0x3c68746d"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_what_is_no_such_idx_is_refused(content: bytes, message: str):
    with pytest.raises(DomainError, match=message) as caught:
        _formats.parse_idx(content, HERE, (5, 4, 3))
    assert "get it again" in str(caught.value)


MEMBERS = {"images": ("uint8", (5, 4, 3)), "is_test": ("uint8", (5,))}


def test_npz_damaged_anywhere_is_refused_or_right():
    images, is_test = grey(5, 4, 3), np.array([0, 1, 0, 0, 1], np.uint8)
    whole = npz(images=images, is_test=is_test, unused=np.zeros(3))
    for length in range(len(whole)):
        with pytest.raises(DomainError, match="some/file holds"):
            _formats.parse_npz(whole[:length], HERE, MEMBERS)
    for place in range(len(whole)):
        for flip in (0x01, 0x04, 0x80, 0xFF):
            damaged = bytearray(whole)
            damaged[place] ^= flip
            try:
                found = _formats.parse_npz(bytes(damaged), HERE, MEMBERS)
            except DomainError:
                continue
            assert np.array_equal(found["images"], images)
            assert np.array_equal(found["is_test"], is_test)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": grey(5, 4, 3)}, r"arrays \['images.npy'\], but an array 'is_test'"),
        ({"images": grey(5, 4, 4), "is_test": grey(5)}, r"'images' .*shape \(5, 4, 4\)"),
        ({"images": grey(5, 4, 3), "is_test": grey(6)}, r"'is_test' .*shape \(6,\)"),
        ({"images": grey(5, 4, 3), "is_test": np.zeros(5)}, "dtype float64"),
        ({"images": np.array([print]), "is_test": grey(5)}, "allow_pickle=False"),
    ],
)
def test_what_is_no_such_npz_is_refused(arrays: dict[str, np.ndarray], message: str):
    with pytest.raises(DomainError, match=message):
        _formats.parse_npz(npz(**arrays), HERE, MEMBERS)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_npz_packed_in_another_way_is_refused(method: int):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("images.npy", b"")
    with pytest.raises(DomainError, match=f"packed by method {method}"):
        _formats.parse_npz(stream.getvalue(), HERE, MEMBERS)


def test_npz_with_an_impossibly_large_array_is_refused():
    stream, member = io.BytesIO(), io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (2**60,)}
    np.lib.format.write_array_header_1_0(member, header)
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("images.npy", member.getvalue())
    with pytest.raises(DomainError, match="cannot be read"):
        _formats.parse_npz(stream.getvalue(), HERE, MEMBERS)


def test_no_zip_at_all_is_refused():
    with pytest.raises(DomainError, match="no zip archive"):
        _formats.parse_npz(b"<html>404</html>", HERE, MEMBERS)


# Downloads -----------------------------------------------------------------------------------

WHOLE = idx(grey(300, 28, 28))
FILE = DataFile("mnist/file.gz", sha256(WHOLE), (300, 28, 28))


class Handler(BaseHTTPRequestHandler):
    """Serves `server.routes`: path to (body, promised length); pauses halfway if told to."""

    def do_GET(self):
        self.server.requests.append(self)
        if self.path not in self.server.routes:
            self.send_error(404)
            return
        body, promised = self.server.routes[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        half = len(body) // 2
        try:
            self.wfile.write(body[:half])
            self.wfile.flush()
            self.server.gate.wait(30)
            self.wfile.write(body[half:])
        except OSError:
            pass  # the client was killed

    def log_message(self, format: str, *args: object):
        pass


@pytest.fixture
def server(cache: Path) -> Iterator[SimpleNamespace]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        http.requests, http.gate, http.routes = [], threading.Event(), {}
        http.gate.set()
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        http.routes.update(
            {
                "/right": (WHOLE, len(WHOLE)),
                "/wrong": (WHOLE[::-1], len(WHOLE)),
                "/short": (WHOLE[:-100], len(WHOLE) - 100),
                "/cut": (WHOLE[:-100], len(WHOLE)),
                "/empty": (b"", 0),
            }
        )
        yield SimpleNamespace(http=http, url=f"http://127.0.0.1:{http.server_address[1]}")
        http.gate.set()
        http.shutdown()
        thread.join()


def mirrored(server: SimpleNamespace, *routes: str) -> DataFile:
    return dataclasses.replace(FILE, mirrors=tuple(server.url + route for route in routes))


def test_the_right_bytes_arrive_once(server: SimpleNamespace, cache: Path):
    file = mirrored(server, "/right")
    for _ in range(2):
        assert fetch(file, cache).read_bytes() == WHOLE
    assert len(server.http.requests) == 1
    assert server.http.requests[0].headers["Accept-Encoding"] == "identity"
    assert files_below(cache) == [FILE.path]


@pytest.mark.parametrize(
    ("routes", "error", "message"),
    [
        (["/wrong"], DomainError, FILE.sha256),
        (["/short"], DomainError, sha256(WHOLE[:-100])),
        (["/empty"], DomainError, sha256(b"")),
        (["/cut"], ConfigError, "IncompleteRead"),
        (["/404"], ConfigError, "404"),
        (["/wrong", "/404"], DomainError, "404"),
        ([], ConfigError, "It has no public mirror"),
    ],
)
def test_a_failed_download_leaves_nothing(
    routes: list[str], error: type[Exception], message: str, server: SimpleNamespace, cache: Path
):
    with pytest.raises(error, match=message) as caught:
        fetch(mirrored(server, *routes), cache)
    for part in (*routes, FILE.path, FILE.sha256, "GRADTHROUGH_DATA"):
        assert part in str(caught.value)
    assert files_below(cache) == []


def test_a_server_that_does_not_answer_is_named(cache: Path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: refuses
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/right"
        with pytest.raises(ConfigError, match="ConnectionError") as caught:
            fetch(dataclasses.replace(FILE, mirrors=(url,)), cache)
    assert url in str(caught.value)
    assert files_below(cache) == []


def test_mirrors_are_tried_in_order(server: SimpleNamespace, cache: Path):
    file = mirrored(server, "/404", "/wrong", "/cut", "/right", "/empty")
    assert fetch(file, cache).read_bytes() == WHOLE
    assert [r.path for r in server.http.requests] == ["/404", "/wrong", "/cut", "/right"]
    assert files_below(cache) == [FILE.path]


def test_a_damaged_file_in_the_cache_is_replaced(server: SimpleNamespace, cache: Path):
    (cache / "mnist").mkdir(parents=True)
    (cache / FILE.path).write_bytes(WHOLE[:1000])
    with pytest.raises(ConfigError, match="404"):
        fetch(mirrored(server, "/404"), cache)
    assert fetch(mirrored(server, "/right"), cache).read_bytes() == WHOLE


def test_load_downloads_what_the_folder_lacks(
    server: SimpleNamespace, contents: dict[str, bytes], cache: Path
):
    for key in ("mnist train", "mnist test"):
        file = FILES[key]
        server.http.routes[f"/{file.path}"] = (contents[file.path], len(contents[file.path]))
        FILES[key] = dataclasses.replace(file, mirrors=(f"{server.url}/{file.path}",))
    assert isinstance(load("mnist"), ImageData)
    assert files_below(cache) == ["mnist/t10k-images-idx3-ubyte.gz", MNIST_TRAIN]
    assert torch.equal(load("mnist").train[:10], load("mnist").test)
    assert len(server.http.requests) == 2


def test_the_target_appears_by_a_rename_within_its_folder(cache: Path):
    places: list[Path] = []

    def downloader(url: str, output_file: str, pooch: object, /) -> None:
        places.append(Path(output_file).parent)
        Path(output_file).write_bytes(WHOLE)
        assert not (cache / FILE.path).exists()

    file = dataclasses.replace(FILE, mirrors=("http://any",))
    assert fetch(file, cache, downloader=downloader).read_bytes() == WHOLE
    assert places == [cache / "mnist"]


def test_an_interrupted_download_leaves_nothing(cache: Path):
    def downloader(url: str, output_file: str, pooch: object, /) -> None:
        Path(output_file).write_bytes(WHOLE[:1000])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(dataclasses.replace(FILE, mirrors=("http://any",)), cache, downloader=downloader)
    assert files_below(cache) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_download_leaves_no_half_file_under_the_name(server: SimpleNamespace, cache: Path):
    server.http.gate.clear()
    file = mirrored(server, "/right")
    code = (
        "from pathlib import Path; from gradthrough.bench._files import DataFile, fetch; "
        f"fetch(DataFile{dataclasses.astuple(file)!r}, Path({str(cache)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 60
        while not any(p.stat().st_size for p in cache.rglob("*") if p.is_file()):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.kill()
    assert not (cache / FILE.path).exists()
    server.http.gate.set()
    assert fetch(file, cache).read_bytes() == WHOLE


# The published files -------------------------------------------------------------------------


def test_the_table_of_files_is_sound():
    assert len({file.path for file in FILES.values()}) == len(FILES)
    for file in FILES.values():
        assert len(file.sha256) == 64
        assert set(file.sha256) <= set("0123456789abcdef")
        for url in file.mirrors:
            assert url.startswith(("https://", "http://"))
            assert url.endswith("/" + Path(file.path).name)
    assert [key for key, file in FILES.items() if not file.mirrors] == ["omniglot small"]


real = pytest.mark.skipif(not REAL, reason="$GRADTHROUGH_DATA is not set")


@real
@pytest.mark.parametrize(
    ("name", "train", "test", "mean", "std"),
    [
        ("mnist", 60_000, 10_000, 0.1307, 0.3081),
        ("fashion-mnist", 60_000, 10_000, 0.2860, 0.3530),
        ("omniglot", 24_345, 8_115, 0.0808, 0.2343),
    ],
)
def test_the_published_files(name: str, train: int, test: int, mean: float, std: float):
    found = load(name)
    assert found.shape == (28, 28)
    assert found.train.shape == (train, 784)
    assert found.test.shape == (test, 784)
    assert float(found.train.mean(dtype=torch.float64)) == pytest.approx(mean, abs=5e-5)
    assert float(found.train.double().std()) == pytest.approx(std, abs=5e-5)


@real
def test_omniglot_from_the_published_drawings(tmp_path: Path):
    (tmp_path / "omniglot").mkdir()
    for name in ("images_background.npz", "images_evaluation.npz"):
        (tmp_path / "omniglot" / name).symlink_to(Path(str(REAL), "omniglot", name).resolve())
    ours, shrunk = load("omniglot"), load("omniglot", root=tmp_path)
    assert torch.equal(ours.train, shrunk.train)
    assert torch.equal(ours.test, shrunk.test)
