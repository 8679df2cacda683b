"""Callbacks for a Lightning Trainer, which is imported when one is made and not before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, cast

from torch import nn
from torch.optim import Optimizer

from ._callbacks import AbstractCallback, HoldsMonitor, HoldsSwap, StepsTemperatures, Target
from ._errors import ConfigError
from .estimators.base import AbstractEstimator
from .monitoring.monitor import Monitor
from .nn.temperature import Schedule, Temperature


class _Trainer(Protocol):
    @property
    def global_step(self) -> int: ...


# The names and orders of arguments are those of Lightning, which passes some by name.
class _LightningCallback(AbstractCallback):
    _packages = ("lightning.pytorch", "pytorch_lightning")
    _base_name = "Callback"
    _instead = (
        "In a loop of your own, write gradthrough.swap(...), gradthrough.nn.step_temperatures("
        "model) and monitor.step(q, loss=loss)."
    )


class MonitorCallback(_LightningCallback, HoldsMonitor):
    """A `Monitor` in the loop of a Lightning Trainer.

    ``training_step`` feeds it by what it returns: ``{"loss": loss, "q": q}``, and "z" if there
    is a sample. A step is one of the optimizer that trains the watched parameters: its gradients
    are read in ``on_before_optimizer_step``, where they are accumulated, unscaled and not yet
    clipped, the rest in ``on_train_batch_end``. In validation and test an output with a "q" is
    looked at as an evaluation. What is made is a ``Callback`` of ``lightning.pytorch`` or of
    ``pytorch_lightning``, whichever is in use.

    Args:
        monitor: what watches. Its rows and warnings are where they always are.

    Raises:
        BackendError: neither package can be imported.
        ConfigError: raised by the hook: training_step returned no "q".

    Example:
        >>> import gradthrough as gt
        >>> def callbacks(model):  # for Trainer(callbacks=...)
        ...     monitor = gt.Monitor(model.encoder, every=50, tau=1.0)
        ...     return [gt.lightning.MonitorCallback(monitor)]
    """

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(monitor)
        self._stepped = False

    def on_before_optimizer_step(
        self, trainer: object, pl_module: object, optimizer: Optimizer, *_: object
    ) -> None:
        """Read the gradients, if the optimizer is that of the watched parameters."""
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(p) in trained for p in self.monitor.parameters):
            self._stepped = True
            self.monitor.hold()

    def on_train_batch_end(
        self, trainer: object, pl_module: object, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Count a step, unless the batch was one of several whose gradients are accumulated."""
        if not self._stepped:
            return
        self._stepped = False
        found = _mapping(outputs)
        if "q" not in found:
            came = sorted(found) or f"a {type(outputs).__name__}"
            raise ConfigError(
                'MonitorCallback needs training_step to return {"loss": loss, "q": q}, but what '
                f"came is {came}. Add the law that the latents are drawn from."
            )
        self._step(found, training=True)

    def on_validation_batch_end(
        self,
        trainer: object,
        pl_module: object,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at an evaluation that tells its law."""
        if "q" in _mapping(outputs):
            self._step(_mapping(outputs), training=False)

    on_test_batch_end = on_validation_batch_end

    def _step(self, outputs: Mapping[str, Any], *, training: bool) -> None:
        loss, z = outputs.get("loss"), outputs.get("z")
        self.monitor.step(outputs["q"], loss=loss, z=z, training=training)


def _mapping(x: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", x) if isinstance(x, Mapping) else {}


class TemperatureCallback(_LightningCallback, StepsTemperatures):
    """Temperatures that follow the steps of the optimizer, in the loop of a Lightning Trainer.

    After each step of the optimizer it calls `gradthrough.nn.step_temperatures` on the module, so
    that its layers follow their own schedules; targets get ``tau = schedule(trainer.global_step)``
    before each batch. So the first step of the optimizer sees schedule(0), however many batches
    are accumulated for it. A run that is taken up from a checkpoint goes on at the same tau: the
    steps of layers travel with the weights, those of targets are the trainer's. Use one callback
    for all targets, and do not step the temperatures yourself as well.

    Args:
        schedule: tau of the targets: a number, a callable from the number of steps to tau, or the
            `gradthrough.nn.Temperature` of a layer of the model, whose value the targets get.
        targets: what gets it: a `Swap` with a tau of its own, a `Monitor`, a `SwapCallback` or
            `MonitorCallback` that the trainer has, or a callable that takes tau; one or several.

    Raises:
        BackendError: no Lightning package can be imported.
        ConfigError: a schedule without targets, or targets without one; raised by the hooks:
            nothing to step, a swap whose estimator has no tau or takes that of each call.
        DomainError: the schedule returns no temperature.
        UnsupportedError: something else for a target.

    Example:
        >>> import gradthrough as gt
        >>> def callbacks(model):  # for Trainer(callbacks=...)
        ...     swap = gt.lightning.SwapCallback("reinmax", tau=2.0)
        ...     anneal = lambda step: max(1.0, 2.0 * 0.9999**step)
        ...     return [swap, gt.lightning.TemperatureCallback(anneal, targets=swap)]
    """

    def __init__(
        self,
        schedule: Schedule | Temperature | None = None,
        targets: Target | Iterable[Target] = (),
    ) -> None:
        super().__init__(schedule, targets)

    def setup(self, trainer: object, pl_module: object, stage: str) -> None:
        """Forget the run before; a checkpoint is loaded after this."""
        self._seen = None

    def on_train_start(self, trainer: _Trainer, pl_module: nn.Module) -> None:
        """See that there is something to do."""
        self._begin(pl_module, trainer.global_step)

    def on_train_batch_start(self, trainer: _Trainer, *_: object) -> None:
        """Give the targets their tau."""
        self._before(trainer.global_step)

    def on_train_batch_end(self, trainer: _Trainer, pl_module: nn.Module, *_: object) -> None:
        """Step the layers, if the optimizer has stepped."""
        self._after(pl_module, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps the layers have followed."""
        return {"steps": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up."""
        self._seen = state_dict["steps"]


class SwapCallback(_LightningCallback, HoldsSwap):
    """A `gradthrough.swap` that is on while a Lightning Trainer fits.

    It is turned on in ``on_fit_start``, and off in ``on_fit_end`` and on an exception. Validation
    within a fit, also the check before it, is swapped with the rest: a hard sample has torch's
    values, so what is measured is the same. ``trainer.validate`` and ``trainer.test`` are not.

    Args:
        estimator: a key of ``ESTIMATORS``, or a pathwise estimator, as for `gradthrough.swap`.
        model: only calls made inside of this module; "trained": the module that is fitted, its
            ``training_step`` too; None: all calls in the process.
        also: private copies in other libraries, as for `gradthrough.swap`.
        options: of the estimator.

    Raises:
        BackendError: no Lightning package can be imported; at the start of a fit: a copy whose
            package cannot be imported.
        ConfigError, UnsupportedError: as `gradthrough.swap`.

    Example:
        >>> import gradthrough as gt
        >>> def callbacks():  # for Trainer(callbacks=...)
        ...     return [gt.lightning.SwapCallback("reinmax", tau=1.0)]
    """

    def __init__(
        self,
        estimator: str | AbstractEstimator,
        *,
        model: nn.Module | Literal["trained"] | None = "trained",
        also: str | Iterable[str] = (),
        **options: object,
    ) -> None:
        super().__init__(estimator, model=model, also=also, **options)

    def on_fit_start(self, trainer: object, pl_module: nn.Module) -> None:
        """Turn the swap on."""
        self._enter(pl_module)

    def on_fit_end(self, trainer: object, pl_module: object) -> None:
        """Turn it off."""
        self._leave()

    def on_exception(self, trainer: object, pl_module: object, exception: BaseException) -> None:
        """Turn it off."""
        self._leave(type(exception))

    def teardown(self, trainer: object, pl_module: object, stage: str) -> None:
        """Turn it off where a fit ends without `on_fit_end`, as a tuner's does."""
        self.close()
