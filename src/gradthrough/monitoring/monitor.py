"""Monitor: a few lines in a training loop that say in words what goes wrong."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .._errors import DomainError
from ..estimators.base import AbstractEstimator
from ..estimators.checks import check_positive
from ..laws.base import Distribution
from ..laws.convert import as_discrete
from .illnesses import Finding, MonitorWarning, Symptom, Thresholds, judge, nonfinite
from .posterior import posterior_of
from .sample_checks import check_points, logits_of, of_jacobian, of_loss, of_slope, of_value
from .streaming import Loss, Statistics, watched


class Monitor:
    r"""Watch a training loop at low cost, and warn in words when a known illness shows.

    Every `every` steps, the first one too, `step` adds a row to `history`, and changes nothing.
    With p = q(z | x) of a latent of C classes, means over rows x and latents, in nats:

    * ``entropy``: mean of ``H(p) = -sum_c p_c log p_c``; ``max_prob``: mean of ``max_c p_c``.
    * ``kl``: mean of ``KL(p || prior)``, to the uniform law over the classes that are not masked
      unless a prior is given.
    * ``mutual_information``: ``H(mean_x p) - mean_x H(p)`` within the batch, mean over latents;
      NaN where a batch has a single row. ``mean_information`` is its running mean, and a latent
      is dead, ``dead_latents`` of ``latents``, if its own is below ``thresholds.dead_latent``.
    * ``dead_classes`` of ``classes``: those whose running mean of p_c is below
      ``thresholds.dead_class / C``. A class that is masked everywhere is not counted.
    * ``grad_norm``: ``||g||`` of the watched parameters, and its running mean ``mean_norm``;
      ``grad_variance``: trace of the running covariance of g; ``snr``: ``||E g||^2`` over that
      variance, noise-corrected, never below 0.
    * ``relative_gradient``: ``mean ||g|| ||w|| / |mean loss|``, which no unit of the loss or of
      the weights changes.
    * ``attenuation``: ``sum tr J_tau / sum tr J_1``, where ``tr J_tau = (1 - sum_c pi_c^2) / tau``
      with pi = softmax(logits / tau): how much of a sample's Jacobian the temperature leaves.
    * ``loss``, ``tau``; ``bad_rows`` of logits and ``bad_gradients`` of parameters, with NaN or
      inf. Such a step does not enter the running numbers.

    Running means weigh observed steps by ``decay^0, decay^1, ...`` from the newest back; the
    variance is unbiased. Kept are one copy of the parameters, and a row for each observed step.

    Each kind of illness is kept in `warnings`, and warned about once, by a `MonitorWarning`:
    vanishing_gradient (large tau), exploding_variance (small tau), posterior_collapse,
    dead_latents, unused_codes, soft_at_evaluation, nonfinite, and those of `check_sample`.

    Args:
        parameters: a module, a tensor, or tensors; those that require a gradient are watched. A
            module also says whether it is in evaluation mode.
        every: how many steps lie between two looks, >= 1. Other steps cost a comparison.
        tau: temperature, a number above 0, or an estimator, whose ``tau`` is read at each look.
            Set `monitor.tau` anew if it is annealed. None: unknown.
        prior: a distribution, or logits, that broadcasts to q. None: uniform.
        decay: of the running means, in (0, 1).
        thresholds: from where on a number is an illness.

    Raises:
        ConfigError: no parameter requires a gradient.
        DomainError: every, tau or decay out of range.
        UnsupportedError: parameters or a tau of another type.

    Example:
        >>> import torch, gradthrough as gt
        >>> from gradthrough.monitoring.monitor import Monitor
        >>> encoder, x = torch.nn.Linear(4, 3), torch.randn(8, 4)
        >>> monitor = Monitor(encoder, every=1, tau=0.7)
        >>> q = gt.Categorical(encoder(x))
        >>> z = gt.straight_through_gumbel_softmax(q.logits, tau=0.7)
        >>> loss = (z * torch.tensor([0.0, 1.0, 4.0])).sum(-1).mean()
        >>> monitor.check_sample(z, q, loss=loss)  # before backward: nothing is wrong
        []
        >>> loss.backward()
        >>> monitor.step(q, loss=loss)  # after backward, before the gradients are cleared
        >>> 0.0 < monitor.history[-1]["entropy"] < 1.1, monitor.warnings
        (True, [])

    Reference:
        Temperature: Jang, Gu, Poole, ICLR 2017, arXiv:1611.01144. Signal-to-noise: Rainforth et
        al., ICML 2018, arXiv:1802.04537. Posterior collapse: Bowman et al., CoNLL 2016,
        arXiv:1511.06349; Lucas et al., NeurIPS 2019, arXiv:1911.02469. Mutual information:
        Hoffman, Johnson, NIPS 2016 workshop. Codes: van den Oord et al., 2017, arXiv:1711.00937.
    """

    def __init__(
        self,
        parameters: nn.Module | Tensor | Iterable[Tensor],
        *,
        every: int = 50,
        tau: object = None,
        prior: object = None,
        decay: float = 0.9,
        thresholds: Thresholds | None = None,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DomainError(f"every must be an int >= 1, but is {every!r}.")
        if check_positive("decay", decay) >= 1.0:
            raise DomainError(f"decay must lie between 0 and 1, but is {decay}.")
        self.every, self.tau = every, tau
        self.history: list[dict[str, float]] = []
        self.warnings: list[Finding] = []
        self._prior = None if prior is None else as_discrete(prior)
        self._thresholds = thresholds or Thresholds()
        self._module = parameters if isinstance(parameters, nn.Module) else None
        self.parameters = watched(parameters)
        self._statistics = Statistics(self.parameters, decay)
        self._steps = self._evaluations = 0
        self._temperature()  # refused here, not fifty steps later

    @property
    def due(self) -> bool:
        """Whether the step in progress, the next one to be counted, is looked at."""
        return self._steps % self.every == 0

    @property
    def usage(self) -> Tensor | None:
        r"""Running mean of q, (\*event, C), over the rows where a class is allowed (NaN: never)."""
        return self._statistics.usage

    def step(
        self,
        q: object,
        *,
        loss: Loss = None,
        z: Tensor | None = None,
        training: bool | None = None,
    ) -> None:
        r"""Count a step, and look at it if it is due: after backward, before zero_grad.

        In evaluation nothing enters `history`; logits, loss and sample are looked at, once in
        `every` calls. With a GradScaler, call it after ``scaler.unscale_``.

        Args:
            q: law or logits (\*batch, C); for a vector of latents, ``gt.Categorical(logits,
                event_dims=1)``. Event shape and classes stay the same from step to step.
            loss: a number or a tensor, whose mean counts.
            z: the sample (..., \*batch, \*event[, C]). In evaluation it should be hard; in
                training it is searched for the sum trap after ``z.retain_grad()``.
            training: None: what the module says if one was given, else whether torch records
                gradients.

        Raises:
            ShapeError: the event shape or the classes changed, or the prior does not fit.
            UnsupportedError: q is no discrete distribution.
        """
        if training is None:
            module = self._module
            training = torch.is_grad_enabled() if module is None else module.training
        if training:
            count, self._steps = self._steps, self._steps + 1
        else:
            count, self._evaluations = self._evaluations, self._evaluations + 1
        if count % self.every == 0:
            look = self._look if training else self._evaluate
            with torch.no_grad():
                found = look(as_discrete(q), loss, z)
            self._statistics.gradients.release()
            self._tell(found, self._steps - training)

    def hold(self) -> None:
        """Keep the gradients for the coming `step`, if it is due: before they are clipped, say."""
        if self.due:
            self._statistics.gradients.hold()

    def check_sample(self, z: Tensor, q: object, *, loss: Tensor | None = None) -> list[Finding]:
        r"""Check a straight-through sample, and the loss that takes it, before backward.

        Is z one-hot (soft_value)? Does ``J^T v``, the gradient in the logits of z along a fixed
        direction v, exist (no_gradient), point along that of softmax(logits / tau) and not
        against it (reversed_gradient), and count once (doubled_gradient: found where J is a
        multiple of that Jacobian, and tau known)? Does the loss depend on z (unused_sample), and
        differently for each class (sum_trap)? A part of the backward pass runs: call it once, or
        ``if monitor.due``. Where torch records no gradient, only the value is checked.

        Args:
            z: the sample (..., \*batch, \*event[, C]).
            q: the law, with the logits that z was made from.
            loss: made from z.

        Returns:
            What was found, also what was warned about before.

        Raises:
            ShapeError: z does not end in the shape of the logits.
            UnsupportedError: z is not floating point, or q no discrete distribution.
        """
        law, recording = as_discrete(q), torch.is_grad_enabled()
        found = list(of_value(check_points(z, law), law, training=recording))
        if recording and z.numel():
            logits = logits_of(q, law)
            if logits is not None and logits.requires_grad:
                found += of_jacobian(z, logits, law, self._temperature())
            if loss is not None and z.requires_grad:
                found += of_loss(loss, z, law)
        return self._tell(found, self._steps)

    def __str__(self) -> str:
        head = f"Monitor: {self._steps} steps, {len(self.history)} observed"
        row = self.history[-1] if self.history else {}
        lines = [f"  {name:<18}  {x:.4g}" for name, x in row.items() if not math.isnan(x)]
        return "\n".join([head, *lines, *(f"{w.kind}: {w.text}" for w in self.warnings)])

    def _temperature(self) -> float:
        tau = self.tau
        if isinstance(tau, AbstractEstimator):
            tau = getattr(tau, "tau", None)  # not every estimator has a temperature
        tau = tau.detach() if isinstance(tau, Tensor) else tau
        return math.nan if tau is None else check_positive("tau", tau)

    def _look(self, q: Distribution, loss: Loss, z: Tensor | None) -> list[Symptom]:
        if not q.logits.numel():
            return []  # an empty batch says nothing
        self._statistics.check_event(q)
        tau = self._temperature()
        now = posterior_of(q, self._prior, tau)
        row = {"step": self._steps - 1, "tau": tau}
        row |= self._statistics.read(now, loss, gradients=True)
        found = list(nonfinite(row, loss is not None))
        if not found:
            self._statistics.run(row, now, self._thresholds)
            if self._statistics.gradients.count >= self._thresholds.warmup:
                found += judge(row, self._thresholds)
        self.history.append(row)
        if z is not None and (z.is_leaf or z.retains_grad) and z.grad is not None:
            found += of_slope(check_points(z, q).grad, q)
        return found

    def _evaluate(self, q: Distribution, loss: Loss, z: Tensor | None) -> list[Symptom]:
        found: list[Symptom] = []
        if q.logits.numel():
            now = posterior_of(q, None, math.nan)
            row = self._statistics.read(now, loss, gradients=False)
            found += nonfinite(row, loss is not None)
        if z is not None and z.is_floating_point():  # indices cannot be soft
            found += of_value(check_points(z, q), q, training=False)
        return found

    def _tell(self, found: Iterable[Symptom], step: int) -> list[Finding]:
        told = [Finding(s.kind, step, s.value, s.text) for s in found]
        new = [f for f in told if f.kind not in {w.kind for w in self.warnings}]
        self.warnings += new  # all of them before the first warns: a filter may make it an error
        for finding in new:
            warnings.warn(f"step {step}: {finding.text}", MonitorWarning, stacklevel=3)
        return told
