"""Private copies of gumbel_softmax in well-known libraries, each replaced when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._errors import BackendError, ConfigError
from .active import Code, responsible


@dataclass(frozen=True)
class Copy:
    """A function of another library, and what stands in for it.

    Args:
        module: where it is.
        name: of the function.
        instead: see `Code`.
    """

    module: str
    name: str
    instead: Callable[..., object]

    def find(self) -> object:
        """Return the function."""
        return getattr(importlib.import_module(self.module), self.name)


def _groupvit(logits: Any, tau: Any = 1, hard: Any = False, dim: Any = -1) -> Any:
    from gradthrough.swapping.copies import gumbel_softmax

    return gumbel_softmax(logits, tau, hard, dim)


def gumbel_softmax(logits: Tensor, tau: Any, hard: bool, dim: int) -> Tensor:
    """Stand in for GroupViT's copy, which draws its Gumbels by way of torch.distributions."""
    swap = responsible()
    if swap is None:
        return PATCHES["groupvit"].stock(logits, tau, hard, dim)
    return swap.draw(logits, hard=hard, tau=tau, dim=dim)


def _torchrl(logits: Any, unimix: Any = 0.0, uniform: Any = None) -> Any:
    from gradthrough.swapping.copies import straight_through

    return straight_through(logits, unimix, uniform)


def straight_through(logits: Tensor, unimix: float, uniform: Tensor | None) -> Tensor:
    """Stand in for that of torchrl: a share `unimix` of the law is uniform."""
    swap = responsible()
    if swap is None:
        return PATCHES["torchrl"].stock(logits, unimix, uniform)
    if unimix:
        logits = ((1.0 - unimix) * logits.softmax(-1) + unimix / logits.shape[-1]).log()
    return swap.draw(logits, hard=True, uniform=uniform)


def _vector_quantize(
    logits: Any,
    temperature: Any = 1.0,
    stochastic: Any = False,
    straight_through: Any = False,
    dim: Any = -1,
    training: Any = True,
    topk: Any = None,
) -> Any:
    from gradthrough.swapping.copies import gumbel_sample

    return gumbel_sample(logits, temperature, stochastic, straight_through, dim, training, topk)


def gumbel_sample(
    logits: Tensor,
    temperature: float,
    stochastic: bool,
    straight_through: bool,
    dim: int,
    training: bool,
    topk: int | None,
) -> tuple[Tensor, Tensor]:
    """Stand in for that of vector-quantize-pytorch, whose law is softmax(logits / temperature)."""
    swap = responsible()
    random = training and stochastic and straight_through and temperature > 0 and topk is None
    if swap is None or not random:
        stock = PATCHES["vector_quantize_pytorch"].stock
        return stock(logits, temperature, stochastic, straight_through, dim, training, topk)
    z = swap.draw(logits / temperature, hard=True, dim=dim)
    return z.detach().argmax(dim), z


COPIES: dict[str, Copy] = {
    "groupvit": Copy("transformers.models.groupvit.modeling_groupvit", "gumbel_softmax", _groupvit),
    "torchrl": Copy(
        "torchrl.modules.models.model_based", "_straight_through_categorical", _torchrl
    ),
    "vector_quantize_pytorch": Copy(
        "vector_quantize_pytorch.vector_quantize_pytorch", "gumbel_sample", _vector_quantize
    ),
}
PATCHES = {name: Code(copy.find, copy.instead) for name, copy in COPIES.items()}


def check_names(names: Iterable[str]) -> None:
    """Refuse names that no copy has."""
    for name in names:
        if name not in COPIES:
            raise ConfigError(f"also={name!r} is not known. Known: {', '.join(COPIES)}.")


def patches(names: Iterable[str]) -> list[Code]:
    """Return what replaces the copies of these names."""
    for name in names:
        copy = COPIES[name]
        package = copy.module.split(".")[0]
        try:
            copy.find()
        except ImportError as error:
            raise BackendError(
                f"also={name!r} needs {package}, which cannot be imported: {error}. Install it, or "
                "leave the name out."
            ) from error
        except AttributeError as error:
            raise BackendError(
                f"also={name!r}: this version of {package} has no {copy.name} in {copy.module}. "
                "Leave the name out."
            ) from error
    return [PATCHES[name] for name in names]
