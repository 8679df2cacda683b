"""The errors of gradthrough: one base and five kinds, each also the builtin one would catch."""


class GradthroughError(Exception):
    """Base of every error that gradthrough raises on purpose."""


class ShapeError(GradthroughError, ValueError):
    """A tensor has the wrong shape."""


class DomainError(GradthroughError, ValueError):
    """A number or the content of a tensor or file is outside what is allowed."""


class UnsoundLogitsError(DomainError):
    """A row of logits has no distribution: NaN, +inf, or every class masked."""


class UnsupportedError(GradthroughError, TypeError):
    """A dtype, or something that the chosen estimator cannot do."""


class BackendError(GradthroughError, RuntimeError):
    """A device or a kernel cannot do what was asked for."""


class ConfigError(GradthroughError, ValueError):
    """An unknown name or an option that does not fit."""
