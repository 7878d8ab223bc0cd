"""The errors users meet. A message's first line is the cause, its second the option to change."""

from __future__ import annotations

import reprlib


class PacelineError(Exception):
    """Base of every error that Paceline raises on purpose."""


class InvalidRequestError(PacelineError, ValueError):
    """A request that cannot be served as asked. ``param`` names the field, ``code`` is OpenAI's error code, if any."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class UnknownFieldError(InvalidRequestError, TypeError):
    """A keyword that there is not; a TypeError too, as Python raises one."""


class ConfigError(PacelineError, ValueError):
    """An engine option, or a combination of options, that cannot work."""


class CheckpointError(PacelineError, ValueError):
    """A model directory that is incomplete, corrupt, unsupported or unsafe; the message names the file."""


class EngineDeadError(PacelineError, RuntimeError):
    """The engine has stopped, and what it was generating is lost.

    ``retry_after`` is the number of seconds after which another attempt makes sense; None if it stays dead.
    """

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineStalledError(EngineDeadError):
    """A step of the engine does not end, so that it answers nobody; what it is generating is not lost yet."""


class _Shortened(reprlib.Repr):
    def repr_int(self, value: int, level: int) -> str:
        # Python itself refuses to write out integers of more than 4300 digits.
        return super().repr_int(value, level) if value.bit_length() <= 128 else f"{value.bit_length()}-bit integer"


_shortened = _Shortened()
_shortened.maxstring = _shortened.maxother = 80


def shown(value: object) -> str:
    """A value as error messages show it: shortened, and never an error itself."""
    text = _shortened.repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def out_of_range(field: str, value: object, allowed: str) -> InvalidRequestError:
    """The error for a sampling parameter outside its range: names the field, the value and the range."""
    return InvalidRequestError(f"{field} must be {allowed}, got {shown(value)}", param=field)
