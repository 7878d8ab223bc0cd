"""Recipes that train a target, distil a draft from one, and measure both; nothing of the engine knows of them."""
