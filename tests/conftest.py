"""What all tests share: no network, a model store of their own, one thread for tiny tensors."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

# Set before any of our modules is imported, and inherited by the programs that tests start.
_HOME = tempfile.mkdtemp(prefix="stillmotion-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ["BENTOML_HOME"] = _HOME
os.environ["BENTOML_DO_NOT_TRACK"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from hypothesis import settings  # noqa: E402  # the environment comes first

# Examples of hypothesis are the same in each run, so that a failure on one machine is one on all.
settings.register_profile("stillmotion", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("stillmotion")
