"""Who takes part in the timing of the kernels: the estimators, their peers, and the shapes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.nn.functional as F
from torch import Tensor

import gradthrough as gt

Forward = Callable[[Tensor], Tensor]
Shape = tuple[int, ...]

SHAPES: tuple[Shape, ...] = (
    (100, 4, 8), (100, 30, 10), (512, 128, 2), (4096, 64), (1000, 200, 2), (8, 128_000),
    (64, 32_000),
)  # fmt: skip
CUDA_SHAPES: tuple[Shape, ...] = ((65_536, 1024), (64, 1_048_576), (4096, 32_000))
DIRECT_SHAPES: tuple[Shape, ...] = ((100, 30, 10), (512, 128, 2))  # where K copies fit anywhere

# At temperature 1 some code need not divide; so ReinMax, whose default that is, is there twice.
OURS: dict[str, Callable[..., Tensor]] = {
    "st": partial(gt.straight_through, tau=1.4),
    "stgs": partial(gt.gumbel_softmax, tau=0.5, hard=True),
    "gumbel_softmax": partial(gt.gumbel_softmax, tau=0.5, hard=False),
    "gst": partial(gt.gapped_straight_through, tau=0.5),
    "reinmax": partial(gt.reinmax, tau=1.0),
    "reinmax tau=1.3": partial(gt.reinmax, tau=1.3),
    "gumbel_rao k=10": partial(gt.gumbel_rao, tau=0.5, k=10),
    "gumbel_rao k=100": partial(gt.gumbel_rao, tau=0.5, k=100),
}
SOFTMAX, TORCH, PYPI = "softmax", "torch_gumbel_softmax", "pypi_reinmax"
DIRECT, STREAMED = "gumbel_rao_direct", "gumbel_rao k=100"
HEAVY = {"gumbel_rao k=10": 1, STREAMED: 2, DIRECT: 2}
PYPI_VERSION = "0.1.0"


@dataclass(frozen=True)
class Contestant:
    """A function that draws a sample from logits, and the name and backend it runs under."""

    name: str
    backend: str  # "" for a peer
    forward: Forward

    @property
    def rank(self) -> int:
        """Return its place in the queue: when time is short, what takes long goes last."""
        after = {"": 0, "auto": 0, "triton": 10}  # to compile takes seconds for each shape
        return after.get(self.backend, 20) + HEAVY.get(self.name, 0)

    @property
    def other_backend(self) -> bool:
        """Return whether it runs under a backend that is not the default."""
        return self.backend not in ("", "auto")


def pypi_reinmax() -> Forward:
    """Return the reinmax of PyPI, or end with how to install it."""
    try:
        found = version("reinmax")
    except PackageNotFoundError:
        found = "none"
    if found != PYPI_VERSION:
        raise SystemExit(
            f"The benchmark compares with `reinmax` {PYPI_VERSION} of PyPI; installed: {found}. "
            "Install it with the extra `peers`:\n"
            "    python -m pip install -c constraints.txt -e '.[bench,peers]'\n"
            "`make bench` does that, and then runs the benchmark."
        )
    from reinmax import reinmax

    return lambda logits: reinmax(logits, 1.3)[0]


def peers() -> dict[str, Forward]:
    """Return what everyone is paired with, by name."""
    return {
        SOFTMAX: lambda logits: logits.softmax(-1),
        TORCH: lambda logits: F.gumbel_softmax(logits, tau=0.5, hard=True),
        PYPI: pypi_reinmax(),
    }


def available(backends: Iterable[str], device: torch.device) -> list[str]:
    """Return the backends that run on a device, and say which do not."""
    out: list[str] = []
    for backend in backends:
        try:
            gt.straight_through(torch.zeros(2, 3, device=device), backend=backend)
            out.append(backend)
        except gt.BackendError as error:
            print(f"backend {backend} left out: {error}", flush=True)
    return out


def contestants(shape: Shape, backends: Iterable[str]) -> list[Contestant]:
    """Return all that are timed at a shape."""
    out = [Contestant(name, "", forward) for name, forward in peers().items()]
    for backend in backends:
        out += [Contestant(n, backend, partial(f, backend=backend)) for n, f in OURS.items()]
    if shape in DIRECT_SHAPES:
        out.append(Contestant(DIRECT, "", direct()))
    return out


def direct() -> Forward:
    """Return the direct Gumbel-Rao with the settings of the streamed one."""
    return partial(gumbel_rao_direct, tau=0.5, k=100)


def gumbel_rao_direct(
    logits: Tensor,
    tau: float,
    k: int,
    *,
    index: Tensor | None = None,
    inner: Tensor | None = None,
) -> Tensor:
    r"""Gumbel-Rao as its formula is written: K copies of the rows, and autograd through them.

    Args:
        logits: (\*rows, C).
        tau: temperature.
        k: number of copies.
        index: the class drawn (\*rows), instead of a draw.
        inner: Exp(1) draws (k, \*rows, C), instead of draws.
    """
    x = logits.float()
    with torch.no_grad():
        p = x.softmax(-1)
        if index is None:
            index = p.flatten(0, -2).multinomial(1).view(p.shape[:-1])
        at = index.unsqueeze(-1)
        if inner is None:
            inner = torch.empty((k, *p.shape), device=p.device).exponential_()
        # Given the class drawn, its perturbed logit is -log E_D and the others lie below it.
        first = inner.gather(-1, at.expand(k, *at.shape))
        perturbed = -(inner / p + first).log()
        perturbed = perturbed.scatter(-1, at.expand(k, *at.shape), -first.log())
        gumbels = perturbed - x
        hard = torch.zeros_like(p).scatter(-1, at, 1.0)
    relaxed = ((x + gumbels) / tau).softmax(-1).mean(0)
    return (hard + (relaxed - relaxed.detach())).to(logits.dtype)
