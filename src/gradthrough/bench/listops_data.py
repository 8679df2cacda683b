"""ListOps expressions: read from the release, or drawn by its recipe.

The release has 1,000 expressions to validate on and 10,000 to test on, looked for in the folder
``$GRADTHROUGH_DATA`` as ``listops/valid.tsv.gz`` and ``listops/test.tsv.gz``, or the same unpacked.
Its training set is drawn anew: the script that made it sets no seed.
"""

import gzip
import hashlib
import os
import random
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from .._errors import ConfigError, DomainError
from . import _files
from ._files import DataFile, content, local

Source: TypeAlias = Literal["release", "generated"]
Expression: TypeAlias = bytes  # of tokens, which are places in SYMBOLS

SYMBOLS: tuple[str, ...] = ("", "[", "MIN", "MAX", "MED", "SM", "]", *"0123456789")
TRAIN = 89_000  # of the release
_OPEN, _MIN, _CLOSE, _ZERO = (SYMBOLS.index(x) for x in ("[", "MIN", "]", "0"))
_DEEPEST = 20  # where the root has depth 1
_RECIPE = "listops 1"  # whatever changes what is drawn changes this

# The two files of the release, packed by gzip and as they are published.
_SHA256 = {
    "valid.tsv.gz": "d094a8d69ea222a99f25b4788c179a39cbc6cadaab3b4cdfd76cf3c3d9e2e112",
    "test.tsv.gz": "b8fac99b3128f25ed172ad581a1ce164b6d09e73b06b41123d95f1751bb21014",
    "valid.tsv": "f9e96e70990dfd863e7652fb94c454b3ca9d08a10bf0a775a780ba485452725b",
    "test.tsv": "71335416e6896e8dd8dc69281c8ed9b37316382d05d3705d660461564e843840",
}
FILES: dict[str, DataFile] = {
    name: DataFile(f"listops/{name}", sha256, ()) for name, sha256 in _SHA256.items()
}


@dataclass(frozen=True, repr=False)
class ListOpsData:
    """Expressions in three splits that have none in common.

    Args:
        train: to learn from, in random order.
        valid: held out.
        test: held out.
    """

    train: tuple[Expression, ...]
    valid: tuple[Expression, ...]
    test: tuple[Expression, ...]

    def __repr__(self) -> str:
        sizes = (f"{split}={len(getattr(self, split))}" for split in ("train", "valid", "test"))
        return f"ListOpsData({', '.join(sizes)})"


def load_listops(
    source: Source = "release",
    *,
    train_size: int = TRAIN,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
) -> ListOpsData:
    """Load expressions to validate and test on, and draw some to train on.

    The recipe draws until it has so many different expressions, and splits them at random.

    * ``release``: the published expressions are held out. With them at the start the recipe draws
      to 100,000, and `train_size` of the new ones are taken at random.
    * ``generated``: all are drawn: 89 parts to train on, 1 to validate and 10 to test. A small set
      has shorter expressions than a large one, since what comes often is in it once.

    What was drawn is kept in the user's cache.

    Args:
        source: where the held-out expressions are from.
        train_size: how many to train on, up to 89,000.
        seed: of the draw.
        root: folder to look in, instead of ``$GRADTHROUGH_DATA``.

    Raises:
        ConfigError: an unknown source, a size out of range, or a file that is nowhere.
        DomainError: a file is damaged, or is not the published one.
    """
    if source not in get_args(Source):
        raise ConfigError(f"source is {source!r}, but must be 'release' or 'generated'.")
    if not 1 <= train_size <= TRAIN:
        raise ConfigError(f"train_size is {train_size}, but must be from 1 to {TRAIN}.")
    if source == "release":
        valid, test = (_released(f"{split}.tsv", root) for split in ("valid", "test"))
        train = _kept(TRAIN, seed, (*valid, *test))
        return ListOpsData(train[:train_size], valid, test)
    few, some = (max(1, round(train_size * parts / 89)) for parts in (1, 10))
    drawn = _kept(train_size + few + some, seed, ())
    end = train_size + few
    return ListOpsData(drawn[:train_size], drawn[train_size:end], drawn[end:])


def draw_expressions(
    size: int, seed: int, taken: Collection[Expression] = ()
) -> tuple[Expression, ...]:
    """Draw expressions by the recipe of the release until so many are new; in random order.

    A node is an operator with probability 1/4, else a digit, at depth 20 always. An operator has
    2 to 5 arguments. All that is drawn is uniform.

    Args:
        size: how many.
        seed: of the draw.
        taken: those that are not new.

    Example:
        >>> from gradthrough.bench.listops_data import draw_expressions, value, words
        >>> some = draw_expressions(50, seed=0)
        >>> words(some[2]), value(some[2])
        ('[ SM 9 0 7 5 7 ]', 8)
    """
    generator = random.Random(seed)
    uniform, seen = generator.random, set(taken)  # whose numbers no version of Python changes
    new: list[Expression] = []
    while len(new) < size:
        out = bytearray()
        _draw(uniform, 1, out)
        expression = bytes(out)
        if expression not in seen:
            seen.add(expression)
            new.append(expression)
    # What comes early is short.
    order = sorted(range(size), key=[uniform() for _ in range(size)].__getitem__)
    return tuple(new[i] for i in order)


def _draw(uniform: Callable[[], float], depth: int, out: bytearray) -> None:
    """Append the tokens of a tree whose root is at a depth."""
    if depth == _DEEPEST or uniform() >= 0.25:
        out.append(_ZERO + int(10 * uniform()))
        return
    arguments = 2 + int(4 * uniform())
    out.append(_OPEN)
    operator = len(out)
    out.append(_OPEN)
    for _ in range(arguments):
        _draw(uniform, depth + 1, out)
    out[operator] = _MIN + int(4 * uniform())
    out.append(_CLOSE)


def value(expression: Expression) -> int:
    """Return what an expression comes to, in [0, 9].

    The median of an even number of arguments is the mean of the two in the middle, rounded down;
    SM is the sum modulo 10.

    Raises:
        DomainError: it is not one whole expression.

    Example:
        >>> from gradthrough.bench.listops_data import parse_words, value
        >>> value(parse_words("[MED 3 8 [SM 7 9 ] 4 ]"))
        5
    """
    levels: list[list[int]] = [[]]
    try:
        for token in expression:
            if token >= _ZERO:
                levels[-1].append(token - _ZERO)
            elif token == _OPEN:
                levels.append([])
            elif token < _CLOSE:
                levels[-1].append(-token)  # below every digit
            else:
                operator, *arguments = levels.pop()
                if operator >= 0:
                    raise ValueError
                levels[-1].append(_APPLY[-operator - _MIN](_digits(arguments)))
        ((result,),) = map(_digits, levels)
    except (IndexError, ValueError) as error:
        raise DomainError(f"{words(expression)!r} is not one whole expression.") from error
    return result


def _digits(x: list[int]) -> list[int]:
    """Return some digits in order."""
    if min(x) < 0:
        raise ValueError
    return sorted(x)


def _median(x: list[int]) -> int:
    return (x[(len(x) - 1) // 2] + x[len(x) // 2]) // 2


_APPLY: tuple[Callable[[list[int]], int], ...] = (min, max, _median, lambda x: sum(x) % 10)


def words(expression: Expression) -> str:
    """Return an expression as text, with a blank between two tokens."""
    return " ".join(SYMBOLS[token] for token in expression)


def parse_words(text: str) -> Expression:
    """Return the expression of a text, whose round brackets do not count.

    Raises:
        DomainError: an unknown word.
    """
    known = text.replace("(", " ").replace(")", " ").replace("[", "[ ").split()
    try:
        return bytes(map(SYMBOLS.index, known))
    except ValueError as error:
        raise DomainError(f"{text!r} has a word that is not of ListOps: {error}.") from error


def _released(name: str, root: str | os.PathLike[str] | None) -> tuple[Expression, ...]:
    chosen = os.environ.get("GRADTHROUGH_DATA") if root is None else root
    folder = Path(chosen).expanduser() if chosen else None
    plain = local(FILES[name], folder)
    try:
        text = plain[0] if plain else gzip.decompress(content(FILES[f"{name}.gz"], folder)[0])
    except ConfigError as error:
        raise ConfigError(
            f"{error}\nIt may be unpacked: listops/{name}, SHA256 {FILES[name].sha256}. "
            "The one to test on is test_d20s.tsv of github.com/nyu-mll/spinn, branch "
            "listops-release. Or set source='generated', which needs no file."
        ) from error
    return tuple(parse_words(line.partition("\t")[2]) for line in text.decode().splitlines())


def _kept(size: int, seed: int, taken: Iterable[Expression]) -> tuple[Expression, ...]:
    """Return what `draw_expressions` does, from the cache if it is there and whole."""
    held = sorted(taken)
    name = repr((_RECIPE, size, seed, hashlib.sha256(b"\0".join(held)).hexdigest()))
    key = hashlib.sha256(name.encode()).hexdigest()[:12]
    path = _files.cache_folder() / "listops" / f"drawn-{key}.z"
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        stored = b""
    if hashlib.sha256(stored[32:]).digest() == stored[:32]:
        return tuple(zlib.decompress(stored[32:]).split(b"\0"))
    drawn = draw_expressions(size, seed, held)
    packed = zlib.compress(b"\0".join(drawn), 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(hashlib.sha256(packed).digest() + packed)
    os.replace(file.name, path)  # nobody meets a file that is half written
    return drawn
