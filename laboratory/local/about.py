"""What a running fleet is: `about.json` in its folder, written when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from routing.errors import InputError
from routing.files import read_json, write_atomically
from routing.jobs import Jobs
from routing.schema import Number, Strict, validated

NAME = "about.json"


class RegionAbout(Strict):
    """One region.

    Attributes:
        edge: where to send requests.
        edge_admin, dispatcher, dispatcher_admin: of its proxies; empty for a region without GPUs.
        gpu_servers: URL by name.
    """

    edge: str
    edge_admin: str
    dispatcher: str = ""
    dispatcher_admin: str = ""
    gpu_servers: Mapping[str, str]


class About(Strict):
    """A fleet on this machine.

    Attributes:
        fleet_file: that it was started from.
        servers: what its GPU servers are.
        service_time: of stand-ins.
        model: of real servers.
        started_at: with the time zone.
        path: that takes jobs.
        regions: by name.
        control, prometheus: URLs; empty where there is none.
        versions: of what it runs.
    """

    fleet_file: str
    servers: Literal["stand-in", "bentoml"]
    service_time: str = ""
    model: str = ""
    started_at: str
    path: str = Jobs().paths[0]
    regions: Mapping[str, RegionAbout]
    control: str = ""
    prometheus: str = ""
    service_time_s: Number = 0.0
    versions: Mapping[str, str] = {}

    def write(self, folder: Path) -> None:
        """Write it into the fleet's folder."""
        write_atomically(folder / NAME, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Of the fleet of a folder; None where there is no such file.

        Raises:
            InputError: it is damaged.
        """
        path = folder / NAME
        if not path.exists():
            return None
        try:
            return validated(cls, read_json(path))
        except InputError as error:
            text = f"is damaged ({error}); `fleet down --dir {folder}` ends what runs there"
            raise InputError(text, file=str(path)) from None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return self.model_dump(mode="json")
