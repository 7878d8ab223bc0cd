"""The command line: serve, chat, generate, demo."""
