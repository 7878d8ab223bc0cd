"""Knows the one error that native code written in Rust raises beside Python's own: a panic."""

from __future__ import annotations


def is_panic(error: BaseException) -> bool:
    """Whether native code gave up, as tokenizers does when its regular expressions reach their limits.

    It is no ``Exception``, so ``except Exception`` lets it pass, and whatever thread it was raised on would end.
    """
    # PyO3, with which such bindings are made, puts the class where nobody can import it.
    return type(error).__module__ == "pyo3_runtime"
