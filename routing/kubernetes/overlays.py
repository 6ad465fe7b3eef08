"""The files of all overlays: made in memory, and written when all of them could be made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dispatcher.files import texts
from ..errors import InputError, RoutingError
from ..files import write_atomically, yaml_text
from ..fleet import Fleet
from ..table import RoutingTable
from .patches import (
    CONTROL_PORT,
    control_patches,
    dispatcher_drain_s,
    dispatcher_patches,
    dispatcher_settings,
    edge_drain_s,
    edge_files,
    edge_patches,
    judge_patch,
