"""Tests of the model families and of the loader."""
