"""The command line's options: those of all estimators, and those of a task beside others."""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any, cast

from .bench.task import AbstractTask
from .bench.typed import typed_options
from .estimators import ESTIMATORS

_PLAIN = "_plain"


def estimator_options() -> type:
    """Return a dataclass with every option of every estimator, all of them unset."""
    import tyro

    members: dict[str, list[object]] = {}  # of one name, every type that some estimator takes
    users: dict[str, list[str]] = {}
    for key, kind in ESTIMATORS.items():
        for name, found in typed_options(kind).items():
            members[name] = list(dict.fromkeys((*members.get(name, ()), *found)))
            users.setdefault(name, []).append(key)
    fields = [
        (
            name,
            Annotated[
                typing.Union[(*found, None)],
                tyro.conf.arg(help=f"option of {', '.join(users[name])}"),
            ],
            None,
        )
        for name, found in members.items()
    ]
    return dataclasses.make_dataclass("EstimatorOptions", fields)


def named_apart(kind: type[AbstractTask], *others: type) -> type[AbstractTask]:
    """Return a task's class whose flags are nobody else's: ``--task.tau`` where tau is taken.

    Only the flags differ: `plain_task` gives the task itself. No field has a dot in its name, so
    no other flag can be ``--task.tau``.

    Args:
        kind: of the task.
        others: classes whose fields are flags of the same command.
    """
    import tyro

    taken = {f.name for other in others for f in dataclasses.fields(cast("Any", other))}
    own = {f.name: f for f in dataclasses.fields(cast("Any", kind)) if f.name in taken}
    if not own:
        return kind
    hints = typing.get_type_hints(kind)
    fields = [
        (name, Annotated[hints[name], tyro.conf.arg(name=f"task.{name}")], _again(field))
        for name, field in own.items()
    ]
    namespace = {"__doc__": kind.__doc__, _PLAIN: kind}
    return dataclasses.make_dataclass(
        kind.__name__, fields, bases=(kind,), namespace=namespace, frozen=True
    )


def plain_task(task: AbstractTask) -> AbstractTask:
    """Return a task that `named_apart` named as one of its own class."""
    kind = getattr(task, _PLAIN, type(task))
    return kind(**{f.name: getattr(task, f.name) for f in dataclasses.fields(cast("Any", task))})


def _again(field: dataclasses.Field[Any]) -> Any:  # noqa: ANN401 - what dataclasses.field returns
    return dataclasses.field(
        default=field.default, default_factory=field.default_factory, metadata=field.metadata
    )
