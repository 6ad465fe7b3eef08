"""The command line, `python -m pipeline`; one module a command."""
