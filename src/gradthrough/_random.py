"""Uniforms, and what is made of them. The only place that calls ``torch.rand``.

All randomness is a float64 tensor of uniforms in [0, 1). Float64, because the grid of float32
uniforms (2^-24) cannot draw a class of probability 1e-9, and because one meaning for every
estimator and backend lets two of them be given the same draw.
"""

import hashlib
import math
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, distributed

from ._errors import BackendError, DomainError, UnsupportedError
from ._types import NoiseKind

_GRID = 2.0**-53
_WORD = 0xFFFFFFFF


def noise_shape(kind: NoiseKind, variables: tuple[int, ...], classes: int) -> tuple[int, ...]:
    """Return the shape of the noise for variables of shape `variables`."""
    if kind == "variable":
        return variables
    if kind == "variable+seed":
        return (*variables, 2)
    if kind == "class-1":
        return (*variables, classes - 1)
    if kind == "class":
        return (*variables, classes)
    if kind == "class+variable":
        return (*variables, classes + 1)
    if kind == "class2":
        return (*variables, classes, 2)
    return (*variables[:1], 0)


def uniforms(
    shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Draw float64 uniforms in [0, 1) of the given shape."""
    _check_generator(generator, device)
    if generator is None and torch.compiler.is_compiling():
        return _words(shape, device).to(torch.float64) * _GRID
    return torch.rand(shape, dtype=torch.float64, device=device, generator=generator)


class Stream:
    """Uniforms that are drawn part by part, as they are asked for: the numbers of `uniforms`.

    They are never in memory all at once, where they would take twice what float32 logits do.

    Args:
        shape: of all together.
        device: where they are drawn.
        generator: their source.
    """

    def __init__(
        self, shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None
    ) -> None:
        _check_generator(generator, device)
        self._shape, self._device, self._generator = shape, device, generator

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Draw the next ones, a new tensor."""
        return torch.rand(
            shape, dtype=torch.float64, device=self._device, generator=self._generator
        )

    def all(self) -> Tensor:
        """Draw all at once."""
        return uniforms(self._shape, self._device, self._generator)


def _check_generator(generator: torch.Generator | None, device: torch.device) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UnsupportedError(
            f"generator must be a torch.Generator, but a {type(generator).__name__} came. For a "
            "seed: torch.Generator().manual_seed(seed)."
        )
    if generator is not None and generator.device.type != device.type:
        raise BackendError(
            f"generator lives on {generator.device}, but the logits on {device}. Make it there: "
            f"torch.Generator(device={str(device)!r})."
        )


def _words(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw 53 random bits in a graph of torch.compile, on CPU those of `torch.rand`.

    Inductor would take float32 uniforms for float64 ones; of integers it draws all bits.
    """
    if _recomputes():
        return _repeatable(shape, device)
    return torch.randint(2**53, shape, dtype=torch.int64, device=device)


def _recomputes() -> bool:
    """Return whether the backward of the graph that is traced may be told to draw again."""
    from torch._functorch import config
    from torch.fx import traceback

    noted = traceback.get_current_meta().get("custom", {})
    budget = noted.get("_region_activation_memory_budget", config.activation_memory_budget)
    allowed = config.aggressive_recomputation or not config.ban_recompute_not_in_allowlist
    torch.compiler.allow_in_graph(_repeatable)  # later stages call it, and the mark is set there
    return bool(budget < 1.0 or allowed)


# The tracer calls the function instead of reading it; as in _attach, where the reason is.
_recomputes.__dict__["_dynamo_marked_constant"] = True


def _repeatable(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw so that a backward that draws again starts where the forward started.

    Torch does that for random numbers within a checkpoint, so these are marked as such. A
    checkpoint itself cannot be traced under a transform of torch.func. Nor would torch.randint do:
    Inductor puts seeds of its own in its place, and those would not be marked.
    """
    from torch.fx import traceback
    from torch.fx.experimental.proxy_tensor import get_proxy_mode
    from torch.utils.checkpoint import CheckpointPolicy

    mode: Any = get_proxy_mode()
    inputs = mode.tracer.graph.find_nodes(op="placeholder") if mode else ()
    with traceback.preserve_node_meta():
        # A graph with no backward to split off has no tangents, and must have no such mark.
        if any("tangents" in str(node.target) for node in inputs):
            traceback.get_current_meta()["recompute"] = CheckpointPolicy.PREFER_RECOMPUTE
        empty = torch.empty(shape, dtype=torch.int64, device=device)
        return cast(Tensor, torch.ops.aten.random(empty, 2**53))


def generator(
    seed: int, *, rank: int | None = None, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Make a generator whose stream is this rank's own: of one seed, a stream for each rank.

    Seed and rank are mixed, not added: rank 1 of seed 0 has nothing to do with rank 0 of seed 1.
    No two ranks of one seed share a stream. ``get_state`` and ``set_state`` take a stream up
    where it was; keep the state of each rank in that rank's part of a checkpoint.

    Ranks that work on the same rows (tensor parallelism) need the same noise: give them the same
    rank, such as ``rank=mesh.get_local_rank("data")``.

    Args:
        seed: of the run, any int.
        rank: from 0 to 2^32 - 1; None: that of ``torch.distributed`` where it is initialised, else
            0.
        device: where the generator lives, that of the logits.

    Returns:
        A generator for ``generator=``.

    Raises:
        UnsupportedError: seed or rank is no int.
        DomainError: a rank outside that range.

    Example:
        >>> import torch, gradthrough as gt
        >>> g, h = gt.generator(0, rank=0), gt.generator(0, rank=1)
        >>> bool((torch.rand(3, generator=g) == torch.rand(3, generator=h)).any())
        False
        >>> state = g.get_state()  # for a checkpoint
        >>> z = gt.reinmax(torch.zeros(5, 3), generator=g)
        >>> _ = g.set_state(state)
        >>> bool((z == gt.reinmax(torch.zeros(5, 3), generator=g)).all())
        True
    """
    if rank is None:
        spread = distributed.is_available() and distributed.is_initialized()
        rank = distributed.get_rank() if spread else 0
    for name, number in (("seed", seed), ("rank", rank)):
        if isinstance(number, bool) or not isinstance(number, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UnsupportedError(f"{name} must be an int, but a {type(number).__name__} came.")
    if not 0 <= rank <= _WORD:
        raise DomainError(f"rank must be from 0 to 2^32 - 1, but is {rank}.")
    digest = hashlib.sha256(f"gradthrough generator {seed}".encode()).digest()
    high, first, second = (int.from_bytes(digest[i : i + 4], "big") for i in (0, 4, 8))
    # On CPU torch looks at the low 32 bits alone: there the ranks of a seed are permuted, by a
    # permutation of the seed's own, so that no two meet.
    low = _permuted(_permuted(rank ^ first) ^ second)
    return torch.Generator(device=device).manual_seed(high << 32 | low)


def _permuted(word: int) -> int:
    """Scramble a word of 32 bits, as `_mix` does: each step can be undone."""
    for _ in range(2):
        word = (word ^ word >> 16) * 0x45D9F3B & _WORD
    return word ^ word >> 16


def preserve(
    generator: torch.Generator,
) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """Make activation checkpointing draw the same noise again in its recompute.

    Args:
        generator: the generator that the checkpointed code draws from.

    Returns:
        A ``context_fn`` for ``torch.utils.checkpoint.checkpoint(..., use_reentrant=False)``. It
        notes the state in which the forward starts; the recompute starts there too, and leaves
        the generator as it found it.

    Example:
        >>> import torch, gradthrough as gt
        >>> from torch.utils.checkpoint import checkpoint
        >>> g = torch.Generator().manual_seed(0)
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> z = checkpoint(
        ...     lambda x: gt.reinmax(x, generator=g).square(),
        ...     logits,
        ...     use_reentrant=False,
        ...     context_fn=gt.preserve(g),
        ... )
        >>> z.sum().backward()
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        start: list[Tensor] = []

        @contextmanager
        def forward() -> Generator[None, None, None]:
            start.append(generator.get_state())
            yield

        @contextmanager
        def recompute() -> Generator[None, None, None]:
            now = generator.get_state()
            generator.set_state(start[0])
            try:
                yield
            finally:
                generator.set_state(now)

        return forward(), recompute()

    return contexts


def antithetic(noise: Tensor) -> Tensor:
    """Mirror uniforms on their grid: u = k/2^53 becomes (2^53 - 1 - k)/2^53, still in [0, 1)."""
    return (1.0 - _GRID) - noise


def exponentials(noise: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn uniforms into Exp(1) draws, -log1p(-u), finite and positive.

    In float64 throughout and rounded once, as ``Tensor.exponential_`` does on CPU: the same
    generator gives the same numbers, bit for bit.
    """
    return torch.log1p(-noise.clamp_min(_GRID / 2)).neg().to(dtype)


def gumbels(noise: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn uniforms into standard Gumbel draws, -log(-log1p(-u))."""
    return -exponentials(noise, dtype).log()


def normals(noise: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn uniforms into standard normal draws, finite throughout."""
    return cast(Tensor, torch.special.ndtri(noise.clamp(_GRID / 2, 1.0 - _GRID))).to(dtype)


def _mix(x: Tensor) -> Tensor:
    """Scramble words of 32 bits, in place: int32, or int64 that holds them from 0 up."""
    for _ in range(2):
        _fold(x).mul_(0x45D9F3B)
        if x.dtype == torch.int64:
            x.bitwise_and_(_WORD)
    return _fold(x)


def _fold(x: Tensor) -> Tensor:
    """Return x ^ (x >> 16), the shift filling up with zeros."""
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def _coprimes(points: int) -> int:
    """Return how many of 1 to `points` are coprime to it."""
    return sum(math.gcd(a, points) == 1 for a in range(1, points + 1))


class CounterExponentials:
    r"""Exp(1) draws that are a function of (seed of the row, k, class), so never stored.

    Asking again for the same k gives the same numbers, on every device: the backward recomputes
    what the surrogate saw.

    Args:
        seeds: uniforms in [0, 1), (\*rows).
        classes: C.
        dtype: of the draws.
        dim: where the classes go: -1 for draws (\*rows, C), 0 for (C, \*rows).
        points: 0 for independent draws; K for the points 0 to K - 1 of a randomly shifted lattice,
            folded: u_k = 1 - |2 v_k - 1|, v_k = frac(shift + k a / K), with a shift and an a
            coprime to K for each class of each row. Each point is uniform, and together they are
            spread evenly, and in mirrored pairs where it counts.
    """

    def __init__(
        self,
        seeds: Tensor,
        classes: int,
        dtype: torch.dtype,
        *,
        dim: int = -1,
        points: int = 0,
    ) -> None:
        bits = (seeds * 2.0**53).to(torch.int64)
        low, high = bits & _WORD, bits >> 32
        self._dim, self._dtype = dim, dtype
        self._row = _mix(high ^ 0x5BD1E995) ^ _mix(low ^ 0x2545F491)
        # Two keyed rounds: the class is mixed with the low word of the seed once, each k with the
        # high word; equal (k + class) never meet because each goes through its own scrambling.
        counter = torch.arange(1, classes + 1, device=seeds.device) * 0x9E3779B1 & _WORD
        counter = _mix(counter)
        if dim == 0:
            counter = counter.reshape(-1, *[1] * seeds.ndim)
        self._classes = self._narrow(_mix(counter ^ _mix(low).unsqueeze(dim)))
        self._stride = self._strides(points) if points else None

    def _strides(self, points: int) -> Tensor:
        # Made on the device: a table from the host would have to be waited for.
        a = torch.arange(1, points + 1, device=self._classes.device)
        coprime = torch.gcd(a, torch.full_like(a, points)) == 1
        coprimes = torch.where(coprime, a, points + 1).sort()[0]  # and then what is none
        which = _mix((self._classes.to(torch.int64) & _WORD) ^ 0x27D4EB2F) % _coprimes(points)
        strides = (coprimes[which] * 2**32 + points // 2) // points
        return self._narrow(strides & _WORD)

    @staticmethod
    def _narrow(words: Tensor) -> Tensor:
        # Half the memory. A compiler may take an overflow for impossible: there they stay wide.
        return words if torch.compiler.is_compiling() else words.to(torch.int32)

    def __call__(self, k: int) -> Tensor:
        r"""Return the k-th draw, a new tensor."""
        if self._stride is None:
            step = _mix(self._row ^ ((k + 1) * 0x85EBCA77 & _WORD)).unsqueeze(self._dim)
            words = _mix(self._classes ^ self._narrow(step)) >> 1
        else:
            words = self._classes + self._stride * k
            words = words ^ (words << 32 >> 63 if words.dtype == torch.int64 else words >> 31)
        # 31 bits, so that int32 holds them without a sign. Half a step off zero keeps the
        # exponential positive; float32 may round the top to 1.
        u = words.bitwise_and_(_WORD >> 1).to(self._dtype).add_(0.5).mul_(2.0**-31)
        return u.clamp_max_(1.0 - 2.0**-24).neg_().log1p_().neg_()
