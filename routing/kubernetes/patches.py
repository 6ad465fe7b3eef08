"""What of the base differs from region to region, as kustomize's patches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from math import ceil
from pathlib import Path, PurePosixPath
from typing import Any

