"""The step that all parts plug into, the worker thread around it, and the ``LLM`` that users hold."""
