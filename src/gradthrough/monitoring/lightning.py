"""The Monitor as a callback of Lightning, which is imported when one is made and not before."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
from typing import Any, Self, cast

from torch.optim import Optimizer

from .._errors import BackendError, ConfigError
from .monitor import Monitor

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


class MonitorCallback:
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
        >>> def callbacks(model):  # for Trainer(callbacks=...)
        ...     from gradthrough.monitoring.lightning import MonitorCallback
        ...     from gradthrough.monitoring.monitor import Monitor
        ...     return [MonitorCallback(Monitor(model.encoder, every=50, tau=1.0))]
    """

    def __new__(cls, monitor: Monitor) -> Self:
        """Make it a Callback of the package in use."""
        return object.__new__(_joined(cls, _base()))

    def __init__(self, monitor: Monitor) -> None:
        super().__init__()
        self.monitor = monitor
        self._stepped = False

    # The names and orders of arguments are those of Lightning, which passes some by name.
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


def _base() -> type:
    # A Trainer takes callbacks of its own package: the one that the program has imported.
    for name in sorted(_PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return cast(type, importlib.import_module(name).Callback)
        except ImportError:
            continue
    raise BackendError(
        f"MonitorCallback needs Lightning, but neither {' nor '.join(_PACKAGES)} can be imported. "
        "Without it, call monitor.step(q, loss=loss) in your own loop, after backward."
    )


@functools.cache
def _joined(cls: type, base: type) -> Any:  # noqa: ANN401 - a class made here
    if issubclass(cls, base):
        return cls
    return type(cls.__name__, (cls, base), {"__module__": cls.__module__, "__doc__": cls.__doc__})
