"""`python -m routing`."""

from __future__ import annotations

import sys

from .console import interruptible


def _main() -> int:
    from .cli import main

    return main()


if __name__ == "__main__":
    sys.exit(interruptible(_main))
