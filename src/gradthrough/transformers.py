"""Callbacks for a Trainer of Hugging Face transformers, imported when one is made, not before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ._callbacks import AbstractCallback, HoldsMonitor, HoldsSwap, StepsTemperatures, Target
from ._errors import ConfigError
from .estimators.base import AbstractEstimator
from .monitoring.monitor import Monitor
from .nn.temperature import Schedule, Temperature


class _State(Protocol):
    @property
    def global_step(self) -> int: ...


# A Trainer passes args, state and control by place, the model and all else by name.
class _TrainerCallback(AbstractCallback):
    _packages = ("transformers",)
    _base_name = "TrainerCallback"
    _instead = (
        "Install it (pip install transformers); in a loop of your own, write gradthrough.swap(...)"
        ", gradthrough.nn.step_temperatures(model) and monitor.step(q, loss=loss)."
    )


class MonitorCallback(_TrainerCallback, HoldsMonitor):
    r"""A `Monitor` in the loop of a Hugging Face Trainer.

    A Trainer hands its callbacks no output of the model. So the law of the latents is heard from
    a module inside of the model whose output are logits, by a forward hook that is there for the
    steps that are looked at; or a callable tells it. The loss is what the model returns as its
    own. Where gradients are accumulated, both are those of the last batch. Gradients are read in
    ``on_pre_optimizer_step``: accumulated, unscaled, and *clipped*, for a Trainer calls nobody
    before it clips. With ``max_grad_norm=0`` it does not clip. Evaluations are not looked at.

    Args:
        monitor: what watches. Its rows and warnings are where they always are.
        q: the name of a module of the model, as in ``model.get_submodule``; if it is called more
            than once, the last call counts. Or a callable from the model to a law or logits, for
            the steps that are looked at, without gradients; it should draw nothing. Under
            ``torch_compile=True`` hooks may not run: pass a callable.
        law: from the output of the named module to a law or logits, if it is not the logits
            (\*batch, C) of one variable itself.

    Raises:
        BackendError: transformers cannot be imported.
        ConfigError: law beside a callable q; raised by the hooks: the model has no such module,
            or it was not called.

    Example:
        >>> import gradthrough as gt
        >>> def callback(model):  # a Wav2Vec2ForPreTraining; for Trainer(callbacks=[...])
        ...     quantizer = model.quantizer
        ...     shape = quantizer.num_groups, quantizer.num_vars
        ...     return gt.transformers.MonitorCallback(
        ...         gt.Monitor(quantizer.weight_proj, every=50, tau=quantizer.temperature),
        ...         "quantizer.weight_proj",
        ...         law=lambda out: gt.Categorical(out.unflatten(-1, shape), event_dims=1),
        ...     )
    """

    def __init__(
        self,
        monitor: Monitor,
        q: str | Callable[[Any], object],
        *,
        law: Callable[[Any], object] | None = None,
    ) -> None:
        super().__init__(monitor)
        if law is not None and not isinstance(q, str):
            raise ConfigError(
                "law came beside a callable q, which returns a law itself. Leave law out."
            )
        self._q, self._law = q, law
        self._handles: list[RemovableHandle] = []
        self._heard: dict[str, Any] = {}

    def on_step_begin(
        self, args: object, state: object, control: object, *, model: nn.Module, **_: object
    ) -> None:
        """Listen, if the step is looked at."""
        self._deafen()
        if self.monitor.due:
            self._handles = [model.register_forward_hook(self._hear_loss)]
            if isinstance(self._q, str):
                heard = _submodule(model, self._q)
                self._handles.append(heard.register_forward_hook(self._hear_output))

    def on_pre_optimizer_step(
        self, args: object, state: object, control: object, *, model: nn.Module, **_: object
    ) -> None:
        """Count a step, and look at it if it is due."""
        heard = self._deafen()
        q = self._law_of(model, heard) if self.monitor.due else None
        self.monitor.step(q, loss=heard.get("loss"), training=True)

    def _law_of(self, model: nn.Module, heard: Mapping[str, Any]) -> object:
        with torch.no_grad():
            if not isinstance(self._q, str):
                return self._q(model)
            if "output" not in heard:
                raise ConfigError(
                    f"q={self._q!r} was not called in this step, or in compiled code, which runs "
                    "no hooks. Name a module that the model calls, or pass a callable for q."
                )
            return heard["output"] if self._law is None else self._law(heard["output"])

    def _deafen(self) -> dict[str, Any]:
        for handle in self._handles:
            handle.remove()
        heard, self._handles, self._heard = self._heard, [], {}
        return heard

    def _hear_output(self, module: object, args: object, output: object) -> None:
        # Copied: what follows may change it in place.
        self._heard["output"] = output.detach().clone() if isinstance(output, Tensor) else output

    def _hear_loss(self, module: object, args: object, output: object) -> None:
        loss: object = None
        if isinstance(output, Mapping):
            loss = cast("Mapping[str, object]", output).get("loss")
        elif isinstance(output, tuple) and output:  # as a Trainer reads it
            loss = cast("tuple[object, ...]", output)[0]
        if isinstance(loss, Tensor):
            self._heard["loss"] = loss.detach()


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        last = name.rpartition(".")[2]
        named = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
        everything = [one for one, _ in named if one]
        near = [one for one in everything if one.endswith(last)]
        raise ConfigError(
            f"q={name!r} names no module of the {type(model).__name__}. There are: "
            f"{', '.join((near or everything)[:8])}."
        ) from error


class TemperatureCallback(_TrainerCallback, StepsTemperatures):
    """Temperatures that follow the steps of the optimizer, in the loop of a Hugging Face Trainer.

    After each step of the optimizer it calls `gradthrough.nn.step_temperatures` on the model, so
    that its layers follow their own schedules; targets get ``tau = schedule(state.global_step)``
    before each step. So the first step of the optimizer sees schedule(0), however many batches
    are accumulated for it. A run that is taken up from a checkpoint goes on at the same tau: the
    steps of layers travel with the weights, those of targets are the Trainer's. Use one callback
    for all targets, and do not step the temperatures yourself as well.

    Args:
        schedule: tau of the targets: a number, a callable from the number of steps to tau, or the
            `gradthrough.nn.Temperature` of a layer of the model, whose value the targets get.
        targets: what gets it: a callable that takes tau, such as
            ``model.set_gumbel_temperature``, a `Swap` with a tau of its own, a `Monitor`, a
            `SwapCallback` or `MonitorCallback` that the Trainer has; one or several.

    Raises:
        BackendError: transformers cannot be imported.
        ConfigError: a schedule without targets, or targets without one; raised by the hooks:
            nothing to step, a swap whose estimator has no tau or takes that of each call.
        DomainError: the schedule returns no temperature.
        UnsupportedError: something else for a target.

    Example:
        >>> import gradthrough as gt
        >>> def callback(model):  # a Wav2Vec2ForPreTraining; for Trainer(callbacks=[...])
        ...     anneal = lambda step: max(0.5, 2.0 * 0.999995**step)
        ...     targets = model.set_gumbel_temperature
        ...     return gt.transformers.TemperatureCallback(anneal, targets)
    """

    def __init__(
        self,
        schedule: Schedule | Temperature | None = None,
        targets: Target | Iterable[Target] = (),
    ) -> None:
        super().__init__(schedule, targets)

    def on_train_begin(
        self, args: object, state: _State, control: object, *, model: nn.Module, **_: object
    ) -> None:
        """See that there is something to do."""
        self._seen = None  # of the run before
        self._begin(model, state.global_step)

    def on_step_begin(self, args: object, state: _State, control: object, **_: object) -> None:
        """Give the targets their tau."""
        self._before(state.global_step)

    def on_step_end(
        self, args: object, state: _State, control: object, *, model: nn.Module, **_: object
    ) -> None:
        """Step the layers."""
        self._after(model, state.global_step)


class SwapCallback(_TrainerCallback, HoldsSwap):
    """A `gradthrough.swap` that is on while a Hugging Face Trainer trains.

    It is turned on in ``on_train_begin`` and off in ``on_train_end``. A Trainer tells its
    callbacks nothing of an exception: after one, the swap stays on until ``close()``, or until
    the next training begins. ``with gradthrough.swap(..., model=model): trainer.train()`` ends
    with the block, whatever happens. Evaluation within the training is swapped with the rest: a
    hard sample has torch's values, so what is measured is the same.

    Args:
        estimator: a key of ``ESTIMATORS``, or a pathwise estimator, as for `gradthrough.swap`.
        model: only calls made inside of this module; "trained": the model of the Trainer; None:
            all calls in the process.
        also: private copies in other libraries, as for `gradthrough.swap`.
        options: of the estimator.

    Raises:
        BackendError: transformers cannot be imported; at the start of a training: a copy whose
            package cannot be imported.
        ConfigError, UnsupportedError: as `gradthrough.swap`.

    Example:
        >>> import gradthrough as gt
        >>> def callbacks():  # for Trainer(callbacks=...)
        ...     return [gt.transformers.SwapCallback("reinmax", tau=1.0)]
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

    def on_train_begin(
        self, args: object, state: object, control: object, *, model: nn.Module, **_: object
    ) -> None:
        """Turn the swap on."""
        self._enter(model)

    def on_train_end(self, args: object, state: object, control: object, **_: object) -> None:
        """Turn it off."""
        self._leave()
