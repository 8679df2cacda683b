"""The other samples are the baseline: RLOO, and VarGrad."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import ANY, AbstractScore, Draw, Estimate, Traits, learning_signal, send_score


class _AbstractLeaveOneOut(AbstractScore):
    """REINFORCE with the mean of the other samples as baseline."""

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Send (f_n - mean of the others) times the score to every latent."""
        n = values.shape[0]
        numbers = learning_signal(values)
        signal = (numbers - numbers.mean(0)) * (n / (n - 1))
        return Estimate(send_score(draws, values, signal))


@dataclass(frozen=True)
class RLOO(_AbstractLeaveOneOut):
    """REINFORCE leave-one-out: the other samples are the baseline. Unbiased for every f.

    ``1/(N-1) sum_n (f_n - mean f) d log p(z_n) / d theta``; with N = 2 samples
    ``1/2 (f_1 - f_2)(z_1 - z_2)``.

    Raises:
        DomainError: fewer than 2 samples.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: z.argmax(-1).float()  # no gradient of f is needed
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.RLOO(), samples=4).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Kool, van Hoof, Welling, 2019, "Buy 4 REINFORCE samples, get a baseline for free!";
        Salimans, Knowles, 2014, arXiv:1401.1022.
    """

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=ANY,
        reference="Kool et al., ICLR workshop 2019",
        exact_for="all",
        min_samples=2,
        many_draws=True,
    )


@dataclass(frozen=True)
class VarGrad(_AbstractLeaveOneOut):
    """VarGrad: the gradient of the log-variance loss. Unbiased for every f.

    As an estimator of E f it is RLOO: the gradient of ``1/2 Var_n[f(z_n)]`` through log p(z_n)
    alone, with the unbiased sample variance, is ``1/(N-1) sum_n (f_n - mean f) d log p(z_n)``.
    The loss itself, for an f = log q(z) - log p(x, z), is `gradthrough.vargrad`.

    Raises:
        DomainError: fewer than 2 samples.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: z.argmax(-1).float()  # no gradient of f is needed
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.VarGrad(), samples=4).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Richter, Boustati, Nuesken, Ruiz, Akyildiz, NeurIPS 2020, arXiv:2010.10436.
    """

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=ANY,
        reference="Richter et al., NeurIPS 2020, arXiv:2010.10436",
        exact_for="all",
        min_samples=2,
        many_draws=True,
    )
