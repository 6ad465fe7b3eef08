"""The command line, `python -m pipeline`; one module a command. What goes wrong is a `StillmotionError`, on a line."""
