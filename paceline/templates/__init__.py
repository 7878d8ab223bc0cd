"""Knows how a model's Jinja chat template is rendered within bounds; knows nothing of tokens."""

from paceline.templates.chat_template import ChatTemplate

__all__ = ["ChatTemplate"]
