"""Confining a swap to the calls made inside of one module."""

from __future__ import annotations

import os
import sys
import uuid
import weakref
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch.autograd import graph

from .._errors import UnsupportedError

_OPTIMIZED = 1  # a frame whose locals are no dict, but looked up into one: that of a function
_BACKWARD = graph.__file__  # whose frames are on the stack of all that a backward calls
_TORCH = os.path.dirname(torch.__file__) + os.sep
# A name for each model, so that code compiled for one is not taken for another's.
_NAMES: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


class Scope:
    """Whether the call in progress is made inside of a module.

    It is if a frame on the stack has the module, or a part of it, for its `self`. Where activation
    checkpointing runs a plain function of the module again there is none: the function is known
    from the first time. A compiler that traces has no stack; for it hooks keep the same in plain
    attributes.

    Args:
        model: the module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._ids: frozenset[int] = frozenset()
        self._replicas: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._codes: dict[CodeType, set[bool]] = {}
        self._handles: list[Any] = []
        self._name = _NAMES.setdefault(model, uuid.uuid4().hex)
        self._depth = self._traced = 0
        self._entered = False

    def open(self) -> None:
        """Put the hooks on."""
        parts = [m for m in self._model.modules() if not isinstance(m, torch.jit.ScriptModule)]
        self._ids = frozenset(map(id, parts))
        for part in parts:
            self._handles.append(part.register_forward_pre_hook(self._in, prepend=True))
            self._handles.append(part.register_forward_hook(self._out, always_call=True))

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._codes.clear()
        self._depth, self._traced, self._entered = 0, 0, False

    def holds(self) -> bool:
        """Return whether the call in progress is made inside of the module."""
        if torch.compiler.is_dynamo_compiling():
            return bool(self._name) and (self._entered or self._traced > 0)
        return self._on_stack()

    def _on_stack(self) -> bool:
        ids = self._ids.union(map(id, self._replicas))
        codes, again = list[CodeType](), False
        frame: FrameType | None = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
        while frame is not None:
            if id(_self_of(frame)) in ids:
                self._note(codes, True)
                return True
            name = frame.f_code.co_filename
            again = again or name == _BACKWARD
            if not again and not name.startswith(_TORCH):
                codes.append(frame.f_code)
            frame = frame.f_back
        if again:
            return self._was_inside(codes)
        self._note(codes, False)
        return False

    def _note(self, codes: list[CodeType], inside: bool) -> None:
        for code in codes:
            self._codes.setdefault(code, set()).add(inside)

    def _was_inside(self, codes: list[CodeType]) -> bool:
        """Return where the same functions were called from when they ran first."""
        seen = [self._codes.get(code, set[bool]()) for code in codes]
        if {True} in seen:
            return True
        if {False} in seen or not any(seen):
            return False
        raise UnsupportedError(
            "a checkpoint runs a function again that was called inside of the model and outside, "
            "and nothing tells which of the two this is. Checkpoint a module or a method, or swap "
            "without model=."
        )

    def _in(self, module: nn.Module, args: object) -> None:
        if torch.compiler.is_dynamo_compiling():
            self._traced += 1
            return
        if id(module) not in self._ids:  # made of it for another device, hooks and all
            self._replicas.add(module)
        self._depth += 1
        self._entered = True

    def _out(self, module: nn.Module, args: object, out: object) -> None:
        if torch.compiler.is_dynamo_compiling():
            self._traced -= 1
            return
        self._depth -= 1
        self._entered = self._depth > 0

    # A module takes its hooks along when it is copied or saved; there they do nothing.
    def __reduce__(self) -> tuple[type[Scope], tuple[nn.Module]]:
        return Scope, (nn.Identity(),)


def _self_of(frame: FrameType) -> object:
    code = frame.f_code
    if "self" not in code.co_varnames[: code.co_argcount] and "self" not in code.co_freevars:
        return None
    found = frame.f_locals
    one = found.get("self")
    if sys.version_info < (3, 13) and code.co_flags & _OPTIMIZED:
        found.clear()  # a copy that the frame would keep, and all that the function has let go of
    return one
