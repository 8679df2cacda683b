"""Which swaps are on, and what is replaced while any of them is."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast


class Responds(Protocol):
    """What a swap has to say to a call."""

    def applies(self) -> bool:
        """Return whether the call in progress is one of its own."""
        ...


class Attribute:
    """A name that an owner, a module or a class, shall have another value under.

    Args:
        owner: a module or a class.
        name: of the attribute; a class may also inherit it.
        make: from what was there, what shall be there.
    """

    def __init__(self, owner: object, name: str, make: Callable[[Any], object]) -> None:
        self.owner, self.name, self.make = owner, name, make
        self.key = (id(owner), name)

    def install(self) -> None:
        """Put the new value there."""
        self._own = self.name in vars(self.owner)
        self._old = vars(self.owner)[self.name] if self._own else None
        self._new = self.make(getattr(self.owner, self.name))
        setattr(self.owner, self.name, self._new)

    def restore(self) -> None:
        """Put back what was there, unless somebody else has replaced ours meanwhile."""
        if vars(self.owner).get(self.name) is not self._new:
            return
        if self._own:
            setattr(self.owner, self.name, self._old)
        else:
            delattr(self.owner, self.name)


class Code:
    """The code of a function: whoever holds the function, under whatever name, has it replaced.

    Args:
        find: returns the function. It encloses nothing.
        instead: a function with the same arguments in the same order, that encloses nothing and
            reads no globals.
    """

    def __init__(self, find: Callable[[], Any], instead: Callable[..., object]) -> None:
        self._find = find
        self._new = cast("types.FunctionType", instead).__code__
        self.key = id(self)

    def install(self) -> None:
        """Put the new code there; what the old one did is `stock` from now on."""
        self._function: types.FunctionType = self._find()
        f, self._old = self._function, self._function.__code__
        self.stock = types.FunctionType(self._old, f.__globals__, f.__name__, f.__defaults__)
        f.__code__ = self._new

    def restore(self) -> None:
        """Put back what was there, unless somebody else has replaced ours meanwhile."""
        if self._function.__code__ is self._new:
            self._function.__code__ = self._old


Patch = Attribute | Code


class _State:
    """The swaps that are on, outermost first, and how many of them want each patch."""

    def __init__(self) -> None:
        self.swaps: tuple[Responds, ...] = ()
        self.patches: dict[object, tuple[Patch, int]] = {}
        self.lock = threading.Lock()


STATE = _State()


def enter(swap: Responds, patches: Iterable[Patch]) -> list[object]:
    """Turn a swap on; return the keys of its patches, for `leave`."""
    keys: list[object] = []
    with STATE.lock:
        try:
            for patch in patches:
                held, count = STATE.patches.get(patch.key, (patch, 0))
                if not count:
                    held.install()
                STATE.patches[patch.key] = (held, count + 1)
                keys.append(patch.key)
        except BaseException:
            _release(keys)
            raise
        STATE.swaps = (*STATE.swaps, swap)
    return keys


def leave(swap: Responds, keys: Iterable[object]) -> None:
    """Turn a swap off; what no other one wants is as it was."""
    with STATE.lock:
        at = max(i for i, one in enumerate(STATE.swaps) if one is swap)
        STATE.swaps = STATE.swaps[:at] + STATE.swaps[at + 1 :]
        _release(keys)


def _release(keys: Iterable[object]) -> None:
    for key in keys:
        held, count = STATE.patches[key]
        if count > 1:
            STATE.patches[key] = (held, count - 1)
        else:
            del STATE.patches[key]
            held.restore()


def responsible() -> Any:
    """Return the innermost swap that the call in progress belongs to, or None."""
    for swap in reversed(STATE.swaps):
        if swap.applies():
            return swap
    return None
