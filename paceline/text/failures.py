"""Knows what becomes of a text that the tokenizers library cannot take."""

from __future__ import annotations

from paceline.core.errors import InvalidRequestError
from paceline.core.panics import is_panic


def failing(error: BaseException, what: str, param: str) -> BaseException:
    """The error of a call whose text the library failed on; every other error, such as an interrupt, as it is.

    The library raises plain exceptions (no token for an unknown word), and panics where native code gives up.
    """
    if is_panic(error) or (isinstance(error, Exception) and not isinstance(error, MemoryError)):
        # Not the library's own message: it may quote the text.
        return InvalidRequestError(f"this model's tokenizer cannot {what}\nChange the text.", param=param)
    return error
