"""The fixtures of `tests/routing` that the laboratory's tests use as well."""

from ..routing.conftest import eventually, example_fleet, examples, fleet_file, fleet_of, free_port

__all__ = ["eventually", "example_fleet", "examples", "fleet_file", "fleet_of", "free_port"]
