"""Knows how the engine runs in a process of its own: the messages, the child, and the parent that looks after it."""
