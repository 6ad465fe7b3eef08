"""What all tests share: no network, a model store of their own, one thread for tiny tensors."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

# A shell that starts the tests in the background lets them, and all that they start, ignore Ctrl-C. Programs whose
# answer to it is tested would not see it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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


GPU_TESTS = pytest.StashKey[int]()


def test_device():
    """Where tests marked `gpu` compute. STILLMOTION_TEST_DEVICE=cpu tries what they do where there is no GPU."""
    return os.environ.get("STILLMOTION_TEST_DEVICE", "cuda")


test_device.__test__ = False


SHARED = ("serving", "loadtests", "routing/proxies", "laboratory/local")
"""Folders whose tests share what takes long to start."""

COMPILED = ("laboratory/simulate", "laboratory/tune", "routing/odd", "routing/test_refusals.py")
"""What runs the simulator, on one process: on a fresh machine each would compile it first, for half a minute."""

FIRST = (
    "pipeline/test_notebooks.py",
    "serving/test_start_and_stop.py",
    "routing/odd/test_odd_files.py",
    "pipeline/test_sequence_parallel.py",
    "pipeline/test_distill_training.py",
    "pipeline/test_demo.py",
    "pipeline/test_bench.py",
    "routing/control/test_program.py",
    "loadtests/test_locust.py",
    "laboratory/local/test_floors.py",
    "routing/proxies/test_table.py",
    "pipeline/test_loading.py",
    "pipeline/test_evaluate.py",
    "pipeline/test_cli.py",
    "pipeline/test_layout.py",
    "pipeline/test_call_arguments.py",
)
"""Files that take longest, the longest first: started last, one of them keeps a process busy when the rest are done."""


def pytest_xdist_auto_num_workers():
    """Take a process more than there are cores, since tests wait for servers as often as they compute."""
    return min(4, (os.cpu_count() or 1) + 1)


def pytest_xdist_make_scheduler(config, log):
    """Keep what shares a server or a fleet on one process, else the tests of a file."""
    from xdist.scheduler import LoadFileScheduling

    class Sharing(LoadFileScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0]
            if path.startswith(tuple(f"tests/{name}" for name in COMPILED)):
                return "simulator"
            return next((folder for folder in SHARED if path.startswith(f"tests/{folder}/")), path)

    return Sharing(config, log)


def pytest_configure(config):
    """Let pytest-xdist take files in the order of collection; by itself it begins with those of most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)  # after -m and -k have chosen
def pytest_collection_modifyitems(config, items):
    """Put what takes longest first; leave out tests marked `gpu` where there is none, with one line for all of them."""
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(FIRST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting or test_device() != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        config.stash[GPU_TESTS] = len(wanting)
        config.hook.pytest_deselected(items=wanting)
        items[:] = [item for item in items if item not in wanting]


def pytest_terminal_summary(terminalreporter, config):
    if count := config.stash.get(GPU_TESTS, 0):
        terminalreporter.write_line(f"{count} tests marked gpu are left out: PyTorch finds no CUDA device here")


def strict(schema):
    """The schema, where an object takes no field that it does not list.

    Only where the schema describes values: a branch of `oneOf` and its like lists what it asks about, not all.
    """
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        closed.setdefault("additionalProperties", False)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            closed[name] = strict(schema[name])
    return closed


@pytest.fixture(scope="session")
def custom_resources():
    """Validators of custom resources of Kubernetes, strict down to the last field, by kind."""
    from jsonschema import Draft202012Validator

    found = {}
    for path in (Path(__file__).parent / "routing" / "schemas").glob("*.json"):
        schema = strict(json.loads(path.read_text()))
        Draft202012Validator.check_schema(schema)
        (kind,) = schema["properties"]["kind"]["enum"]
        found[kind] = Draft202012Validator(schema)
    return found
