"""The tiny float64 models of the invariance tests."""

from tests.invariance.conftest import llama

__all__ = ["llama"]
