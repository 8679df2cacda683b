"""NATS-Bench: cells and names, the table, and official files, which run nothing when read."""

import bz2
import collections
import copyreg
import csv
import gzip
import hashlib
import io
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import gradthrough as gt
from gradthrough.bench import nas_tables, nats
from gradthrough.bench._files import DataFile
from gradthrough.bench.nas_tables import (
    CELLS,
    COLUMNS,
    EDGES,
    OPS,
    cell_name,
    cell_number,
    load_table,
    numbered_cell,
    parse_cell,
    random_cells,
)

REAL = os.environ.get("GRADTHROUGH_DATA")
real = pytest.mark.skipif(not REAL, reason="$GRADTHROUGH_DATA is not set")
NAME = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|none~0|nor_conv_3x3~1|avg_pool_3x3~2|"


# Cells ---------------------------------------------------------------------------------------


def test_names_numbers_and_cells_are_one_to_one():
    cells = [numbered_cell(number) for number in range(CELLS)]
    names = [cell_name(cell) for cell in cells]
    assert len(set(names)) == CELLS == 5**6
    assert [parse_cell(name) for name in names] == cells
    assert [cell_number(cell) for cell in cells] == list(range(CELLS))


def test_a_name_lists_the_edges_node_by_node():
    assert parse_cell(NAME) == (3, 3, 4, 0, 3, 4)
    assert EDGES == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


def test_the_number_is_the_place_in_the_support():
    support = gt.Categorical(torch.zeros(len(EDGES), len(OPS)), event_dims=1).support()
    for number in (0, 7, 3124, CELLS - 1):
        assert tuple(support[number].argmax(-1).tolist()) == numbered_cell(number)


@pytest.mark.parametrize(
    "name",
    [
        "",
        NAME[:-1],
        NAME.replace("~2", "~1"),
        NAME.replace("none", "nine"),
        NAME.replace("|+|", "||", 1),
        NAME + NAME,
        "|none~0|none~0|none~1|none~0|none~1|none~2|",
    ],
)
def test_what_is_no_name_of_a_cell_is_refused(name):
    with pytest.raises(gt.DomainError, match="no cell of NAS-Bench-201"):
        parse_cell(name)


@pytest.mark.parametrize("number", [-1, CELLS])
def test_numbers_out_of_range_are_refused(number):
    with pytest.raises(gt.DomainError, match="in \\[0, 15625\\)"):
        numbered_cell(number)


def test_random_cells_are_of_the_space_and_of_the_seed():
    cells = random_cells(0, 400)
    assert cells == random_cells(0, 400) != random_cells(1, 400)
    assert [parse_cell(cell_name(cell)) for cell in cells] == cells
    counts = torch.stack([torch.bincount(ops, minlength=5) for ops in torch.tensor(cells).T])
    chi2 = ((counts - 80.0).square() / 80.0).sum()
    assert chi2 < 24 + 5 * math.sqrt(2 * 24)  # 6 edges with 4 degrees of freedom each


# The table -----------------------------------------------------------------------------------


def table_file(numbers):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["index", "arch_str", *COLUMNS])
    # Another order than that of the numbers, as in the real file.
    for index, row in enumerate(numbers.tolist()):
        writer.writerow([index, cell_name(numbered_cell(CELLS - 1 - index)), *row])
    return gzip.compress(text.getvalue().encode(), 1)


@pytest.fixture(scope="module")
def numbers():
    generator = torch.Generator().manual_seed(0)
    return 100 * torch.rand(CELLS, len(COLUMNS), dtype=torch.float64, generator=generator)


@pytest.fixture(scope="module")
def raw(numbers):
    return table_file(numbers)


@pytest.fixture
def folder(raw, tmp_path, monkeypatch):
    digest = hashlib.sha256(raw).hexdigest()
    monkeypatch.setattr(nas_tables, "TABLE", DataFile(nas_tables.TABLE.path, digest, (1,)))
    path = tmp_path / nas_tables.TABLE.path
    path.parent.mkdir()
    path.write_bytes(raw)
    return tmp_path


def test_the_table_is_looked_up_by_cell(folder, numbers, monkeypatch):
    monkeypatch.setenv("GRADTHROUGH_DATA", str(folder))
    table = load_table()
    assert repr(table) == "AccuracyTable(15625 cells, 9 columns)"
    assert table.columns == tuple(COLUMNS)
    for cell in random_cells(3, 5):
        index = CELLS - 1 - cell_number(cell)
        assert table.index(cell) == index
        assert list(table.row(cell).values()) == numbers[index].tolist()


def test_one_random_cell_is_the_mean_over_all(folder, numbers):
    found = load_table(folder).random_search()
    mean, sd = (torch.tensor(x, dtype=torch.float64) for x in zip(*found.values(), strict=True))
    torch.testing.assert_close(mean, numbers.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(sd, numbers.std(0, correction=0), rtol=1e-12, atol=0)


def test_the_best_of_some_random_cells_is_that_of_all_their_pairs():
    names = tuple(cell_name(numbered_cell(i)) for i in range(4))
    accuracies = torch.tensor([[1.0, 5.0], [3.0, 2.0], [2.0, 8.0], [3.0, 6.0]]).double()
    table = nas_tables.AccuracyTable(names, ("by", "other"), accuracies)
    best = [max((i, j), key=lambda k: (accuracies[k, 0], k)) for i in range(4) for j in range(4)]
    chosen = accuracies[best]
    found = table.random_search(2, by="by")
    for column, (mean, sd) in enumerate(found.values()):
        assert mean == pytest.approx(float(chosen[:, column].mean()), rel=1e-14)
        assert sd == pytest.approx(float(chosen[:, column].std(correction=0)), rel=1e-14)
    with pytest.raises(gt.ConfigError, match="no column 'nine'"):
        table.random_search(2, by="nine")
    with pytest.raises(gt.DomainError, match="draws"):
        table.random_search(0, by="by")


def test_a_missing_and_a_wrong_table_are_refused(folder, tmp_path):
    (folder / nas_tables.TABLE.path).write_bytes(b"other")
    with pytest.raises(gt.DomainError, match="SHA256"):
        load_table(folder)
    with pytest.raises(gt.ConfigError, match="GRADTHROUGH_DATA"):
        load_table(tmp_path / "nowhere")


# Official files ------------------------------------------------------------------------------


def result(seed, epochs, splits, base):
    """Return one training in the layout of the official files."""
    curves = {f"{s}@{e}": base + e + 10.0 * i for i, s in enumerate(splits) for e in range(epochs)}
    return {
        "name": "x",
        "train_acc1es": {0: 1.0},
        "train_times": collections.OrderedDict([(0, 1.5)]),
        "params": np.float64(0.25),
        "flop": 7.5,
        "seed": f"{seed:04}",
        "epochs": epochs,
        "latency": [np.float64(0.01)],
        "eval_names": list(splits),
        "eval_acc1es": curves,
        "net_state_dict": None,
    }


def official(cls=collections.OrderedDict):
    short = {
        ("cifar10-valid", 777): result(777, 3, ("x-valid", "ori-test"), 20.0),
        ("cifar10-valid", 111): result(111, 3, ("x-valid", "ori-test"), 30.0),
        ("cifar100", 111): result(111, 3, ("x-test",), 5.0),
    }
    long = {("cifar100", 888): result(888, 4, ("x-test",), 50.0)}
    return cls(
        (epochs, {"arch_index": 11, "arch_str": NAME, "all_results": results})
        for epochs, results in (("03", short), ("4", long))
    )


@pytest.fixture
def write(tmp_path):
    def written(content, packed=True):
        path = tmp_path / "000011.pickle.pbz2"
        raw = content if isinstance(content, bytes) else pickle.dumps(content, protocol=4)
        path.write_bytes(bz2.compress(raw) if packed else raw)
        return path

    return written


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_an_official_file_is_read(write, protocol):
    found = nats.read_architecture(write(pickle.dumps(official(), protocol=protocol)))
    assert (found.index, found.name, len(found.trainings)) == (11, NAME, 4)
    first = found.trainings[0]
    assert (first.dataset, first.epochs, first.seed) == ("cifar10-valid", 3, 777)
    assert first.accuracies == {"x-valid": 22.0, "ori-test": 32.0}
    assert (first.parameters, first.flops) == (0.25, 7.5)
    assert all(type(t.parameters) is float for t in found.trainings)
    assert found.accuracy("cifar10-valid", "x-valid", 3) == 27.0
    assert found.accuracy("cifar100", "x-test", 4) == 53.0
    with pytest.raises(gt.ConfigError, match=r"no \('cifar100', 'x-test', 12\)"):
        found.accuracy("cifar100", "x-test", 12)


@pytest.mark.parametrize("number", [1.5, np.float32(1.5), np.int64(3), np.array(2.5)[()]])
def test_scalars_of_numpy_become_plain_numbers(write, number):
    content = official()
    content["4"]["all_results"]["cifar100", 888]["params"] = number
    size = nats.read_architecture(write(content)).trainings[-1].parameters
    assert size == number
    assert type(size) is float


def test_scalars_of_either_byte_order_are_read(write):
    swapped = np.array([0.75], dtype=">f8")[0]
    dtype = np.dtype(">f8")
    assert swapped == 0.75

    class Scalar:
        def __reduce__(self):
            return np._core.multiarray.scalar, (dtype, np.array(0.75, dtype=dtype).tobytes())

    content = official()
    content["4"]["all_results"]["cifar100", 888]["params"] = Scalar()
    assert nats.read_architecture(write(content)).trainings[-1].parameters == 0.75


def test_names_are_read(write):
    meta = {"meta_archs": [NAME, "b"], "total_archs": 2, "evaluated_indexes": set()}
    assert nats.read_names(write(meta)) == (NAME, "b")
    with pytest.raises(gt.DomainError, match="no list of names"):
        nats.read_names(write({"meta_archs": 3}))


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        (os.system, ("echo run > {}",), f"asks for {os.name}.*system"),
        (eval, ("open('{}', 'w')",), "asks for builtins.eval"),
        (getattr, (str, "format"), "asks for builtins.getattr"),
        (np.frombuffer, (b"abcd",), "asks for numpy.frombuffer"),
        (torch._utils._rebuild_parameter, (1, False, 2), "asks for torch._utils"),
        (collections.Counter, ("aa",), "asks for collections.Counter"),
    ],
)
def test_a_pickle_that_calls_anything_else_is_refused_and_nothing_runs(
    write, tmp_path, function, arguments, said
):
    trace = tmp_path / "trace"
    filled = [a.format(trace) if isinstance(a, str) else a for a in arguments]
    content = official()
    content["4"]["extra"] = Call(function, *filled)
    path = write(content)
    with pytest.raises(gt.DomainError, match=said):
        nats.read_architecture(path)
    with pytest.raises(gt.DomainError, match=said):
        nats.read_names(path)
    assert not trace.exists()
    pickle.loads(bz2.decompress(write({"a": Call(open, str(trace), "w")}).read_bytes()))[
        "a"
    ].close()
    assert trace.exists()  # what an ordinary unpickler would have done


def test_a_dotted_name_reaches_nothing(write):
    program = b"\x80\x04\x8c\x0bcollections\x8c\x20OrderedDict.__init__.__globals__\x93."
    with pytest.raises(gt.DomainError, match=r"OrderedDict\.__init"):
        nats.read_architecture(write(program))


def test_a_pickle_cannot_change_what_a_later_one_gets(write):
    # BUILD sets attributes: on the stand-in for numpy's scalar, and on dict.
    for place in (b"numpy._core.multiarray\nscalar\n", b"collections\nOrderedDict\n"):
        state = b"(dS'__defaults__'\n(I1\nI2\ntsS'mark'\nI1\ns"
        program = b"c" + place + b"(N" + state + b"tb."
        with pytest.raises(gt.DomainError):
            nats.read_architecture(write(program))
    assert not hasattr(dict, "mark")
    assert len(nats.read_architecture(write(official())).trainings) == 4


def test_registered_extensions_are_refused_too(write):
    copyreg.add_extension("builtins", "eval", 0x7A)
    try:
        with pytest.raises(gt.DomainError, match=r"asks for builtins\.eval"):
            nats.read_architecture(write(b"\x80\x02\x82\x7a."))
    finally:
        copyreg.remove_extension("builtins", "eval", 0x7A)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        b"\x80\x04.",
        pickle.dumps([1]),
        pickle.dumps({}),
        pickle.dumps({"12": 3}),
        pickle.dumps({"12": {"all_results": {}}}),
        pickle.dumps({"twelve": official()["4"]}),
        pickle.dumps(official())[:-20],
        pickle.dumps({"4": np.dtype("O")}),
        pickle.dumps({"4": np.dtype([("a", "f8")])}),
    ],
    ids=repr,
)
def test_other_content_is_refused(write, content):
    with pytest.raises(gt.DomainError, match="000011"):
        nats.read_architecture(write(content))


def test_what_cannot_be_unpacked_is_refused(write, tmp_path, monkeypatch):
    with pytest.raises(gt.DomainError, match="cannot be read"):
        nats.read_architecture(tmp_path / "nowhere")
    with pytest.raises(gt.DomainError, match="cannot be read"):
        nats.read_architecture(write(b"not bzip2", packed=False))
    whole = bz2.compress(pickle.dumps(official()))
    with pytest.raises(gt.DomainError, match="cut short"):
        nats.read_architecture(write(whole[:-30], packed=False))
    monkeypatch.setattr(nats, "_LARGEST", 1000)
    with pytest.raises(gt.DomainError, match="more than 1000 bytes"):
        nats.read_architecture(write(b"0" * 10_000))


# The published files -------------------------------------------------------------------------


@real
def test_the_published_optima_are_in_the_table():
    table = load_table()
    best = {name: table.accuracies[:, i].max(0) for i, name in enumerate(table.columns)}
    want = {
        "cifar10_test_200ep": (94.37, 6111),
        "cifar100_test_200ep": (73.51, 9930),
        "imagenet16_120_test_200ep": (47.31, 857),
    }
    for name, (accuracy, index) in want.items():
        assert float(best[name].values) == pytest.approx(accuracy, abs=5e-3)
        assert int(best[name].indices) == index


@real
@pytest.mark.parametrize("index", [0, 11, 284])
def test_official_files_agree_with_the_table(index):
    folder = Path(REAL) / "nats-bench-sample" / "NATS-tss-v1_0-3ffb9-simple"
    if not folder.is_dir():
        pytest.skip("the sample is not there")
    table = load_table()
    found = nats.read_architecture(folder / f"{index:06}.pickle.pbz2")
    assert found.index == index == table.index(parse_cell(found.name))
    assert nats.read_names(folder / "meta.pickle.pbz2") == table.names
    want = table.row(parse_cell(found.name))
    for column, place in COLUMNS.items():
        assert found.accuracy(*place) == pytest.approx(want[column], abs=1e-13)


@real
def test_the_size_space_has_the_same_layout():
    folder = Path(REAL) / "nats-bench-sample" / "NATS-sss-v1_0-50262-simple"
    if not folder.is_dir():
        pytest.skip("the sample is not there")
    found = nats.read_architecture(folder / "000011.pickle.pbz2")
    assert (found.index, found.name) == (11, "8:8:8:16:32")
    assert {t.epochs for t in found.trainings} == {1, 12, 90}
    assert len(nats.read_names(folder / "meta.pickle.pbz2")) == 32_768
