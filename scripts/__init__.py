"""What run.py and CI use; not part of the package."""
