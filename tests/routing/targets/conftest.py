"""Schemas of the resources that targets write, made strict."""

import pytest
import yaml


@pytest.fixture(scope="session")
def check(custom_resources):
    """`check(manifest)`: it is as the schema of its kind has it, down to the last field."""
    assert set(custom_resources) >= {"DestinationRule", "VirtualService", "HTTPRoute", "BackendTrafficPolicy"}

    def check_one(manifest):
        # As a cluster would read it.
        manifest = yaml.safe_load(yaml.safe_dump(manifest))
        found = custom_resources[manifest["kind"]].iter_errors(manifest)
        errors = [f"{'.'.join(map(str, e.path))}: {e.message}" for e in found]
        assert not errors, errors

    return check_one
