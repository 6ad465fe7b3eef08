"""What a command says while it works: lines on stderr, since stdout is for results.

With `STILLMOTION_LOG=json` they are lines of JSON, as those of the GPU servers are.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime


def tell(line: str) -> None:
    """Write one line."""
    if os.environ.get("STILLMOTION_LOG") == "json":
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "logger": "routing", "message": line})
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
