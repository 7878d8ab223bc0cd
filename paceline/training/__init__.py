"""Recipes that train a target, or distil a draft from one; they know data files and checkpoints, not the engine."""
