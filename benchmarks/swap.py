"""What a swap costs: a training step of the 10 x 30 VAE in plain torch, swapped and not.

    python benchmarks/swap.py --out benchmarks/results/swap.csv

The loop calls ``F.gumbel_softmax(hard=True)`` and is the same for all; it enters the block anew for
each step. ``handler alone`` is plain torch beneath a TorchFunctionMode that does nothing, which is
what confining a swap to a model adds to every call of torch. Steps are taken in turn, as in
``vae_step.py``.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from vae_step import PEER, arguments, compare, plain

import gradthrough as gt


class _Through(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        return func(*args, **(kwargs or {}))


def within(block: AbstractContextManager[object], step: Callable[[], None]) -> Callable[[], None]:
    """Return a step that is taken within a block."""

    def run() -> None:
        with block:
            step()

    return run


def main() -> None:
    """Time, print and write."""
    options = arguments(__doc__)
    torch.set_num_threads(1)
    images = torch.rand(6000, 784)
    steps: dict[str, Callable[[], object]] = {PEER: plain(images)}
    for name, tau in (("stgs", None), ("reinmax", 1.0), ("gst", 0.5)):
        fixed = {} if tau is None else {"tau": tau}
        steps[f"swap {name}"] = within(gt.swap(name, **fixed), plain(images))
    steps["handler alone"] = within(_Through(), plain(images))
    compare(steps, options.rounds, options.out)


if __name__ == "__main__":
    main()
