"""Records: what a run leaves behind, one JSON line after another."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .._errors import ConfigError, DomainError

SCHEMA = 1
Kind = Literal["start", "metric", "end"]
Status = Literal["done", "diverged", "failed", "skipped"]


class LockedError(ConfigError):
    """Another process writes the same run, or leads the same search."""


@dataclass(frozen=True)
class Record:
    """One line of ``<results>/<experiment>/<key>.jsonl``.

    ``start`` holds the config and the environment, ``metric`` one number, ``end`` the status.
    A value that is not finite is written as null.

    ``seconds`` are those of training. ``together`` is how many seeds trained as one vectorised run,
    and is left out where a run was on its own. Of such a run each seed has its share of the
    seconds, the time that passed over how many trained: they add up to the time that passed.
    """

    kind: Kind
    key: str
    step: int = 0
    split: str = ""
    metric: str = ""
    value: float | None = None
    evaluations: int = 0
    seconds: float = 0.0
    config: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] | None = None
    status: Status | None = None
    reason: str | None = None
    together: int | None = None
    schema: int = SCHEMA

    def line(self) -> str:
        """Return the JSON line, with its newline."""
        data = asdict(self)
        if self.value is not None and not math.isfinite(self.value):
            data["value"] = None
        kept = {k: v for k, v in data.items() if v is not None or k == "value"}
        return json.dumps(kept, allow_nan=False, sort_keys=True) + "\n"


def parse(line: str) -> Record:
    """Read one line.

    Raises:
        DomainError: it is not a record, or of a schema that this version does not know.
    """
    try:
        data = json.loads(line)
        schema = data.get("schema")
    except (ValueError, AttributeError):
        raise DomainError(f"not a record: {line[:80]!r}. Wanted: one JSON object a line.") from None
    if schema != SCHEMA:
        raise DomainError(
            f"record of schema {schema!r}, but this version reads schema {SCHEMA}. Run the "
            "experiment again, or read it with the version that wrote it."
        )
    try:
        return Record(**data)
    except TypeError as error:
        raise DomainError(f"not a record: {line[:80]!r} ({error}).") from None


def read(path: Path) -> list[Record]:
    """Read a file of records; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return [parse(line) for line in lines]


def write(path: Path, records: Iterable[Record]) -> None:
    """Write a whole file at once or not at all."""
    replace(path, "".join(r.line() for r in records).encode())


def replace(path: Path, content: bytes) -> None:
    """Put content at path through a neighbour and a rename, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with neighbour.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        neighbour.replace(path)
    finally:
        with suppress(FileNotFoundError):
            neighbour.unlink()


def append(path: Path, records: Iterable[Record]) -> None:
    """Append lines and see them to the disk."""
    with path.open("ab") as file:
        file.write("".join(r.line() for r in records).encode())
        file.flush()
        os.fsync(file.fileno())


class Lock:
    """One writer for each run; the system lets go of it when the process ends, however it ends.

    Args:
        path: of the records; the lock lies beside them.

    Raises:
        LockedError: another process has it.
        ConfigError: the disk has no locks.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.with_suffix(".lock").open("w")
        try:
            import fcntl
        except ImportError:  # no such lock on Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise LockedError(
                f"another process writes {path}. Wait for it, or end it, then run this again; or "
                "write to another folder, with --out (out=...)."
            ) from None
        except OSError as error:
            self._file.close()
            raise ConfigError(
                f"{path} cannot be locked: {error}. Two processes could write it at once. Write "
                "to a disk that has such locks (flock), with --out (out=...)."
            ) from error

    def release(self) -> None:
        """Let go."""
        self._file.close()
