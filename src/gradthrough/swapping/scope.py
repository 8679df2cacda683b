"""Confining a swap to the calls made inside of one module."""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch
from torch import nn


class _Depth(threading.local):
    value: int = 0


class Scope:
    """Whether the call in progress is made inside of a module.

    Hooks count how deep a thread is in the module and its parts. Where activation checkpointing
    runs a function of the module again, no module is called: then the stack is looked through for
    a frame whose `self` is one of them. A compiler that traces has no stack and no threads: for
    it the same is kept in plain numbers.

    Args:
        model: the module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._ids: frozenset[int] = frozenset()
        self._depth = _Depth()
        self._handles: list[Any] = []
        self._entered, self._traced = False, 0

    def open(self) -> None:
        """Put the hooks on."""
        parts = list(self._model.modules())
        self._ids = frozenset(map(id, parts))
        for part in parts:
            self._handles.append(part.register_forward_pre_hook(self._in, prepend=True))
            self._handles.append(part.register_forward_hook(self._out, always_call=True))

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._depth, self._entered, self._traced = _Depth(), False, 0

    def holds(self) -> bool:
        """Return whether the call in progress is made inside of the module."""
        if torch.compiler.is_dynamo_compiling():
            return self._entered or self._traced > 0
        return self._depth.value > 0 or self._on_stack()

    def _on_stack(self) -> bool:
        frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        while frame is not None:
            if id(frame.f_locals.get("self")) in self._ids:
                return True
            frame = frame.f_back
        return False

    def _in(self, module: nn.Module, args: object) -> None:
        if torch.compiler.is_dynamo_compiling():
            self._traced += 1
        else:
            self._depth.value += 1
            self._entered = True

    def _out(self, module: nn.Module, args: object, out: object) -> None:
        if torch.compiler.is_dynamo_compiling():
            self._traced -= 1
        else:
            self._depth.value -= 1
            self._entered = self._depth.value > 0

    # A module takes its hooks along when it is copied or saved; there they do nothing.
    def __reduce__(self) -> tuple[type[Scope], tuple[nn.Module]]:
        return Scope, (nn.Identity(),)
