"""Paths, and what stands for them in metrics and redirects."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.paths import is_ours, template_of, without_slash

PATHS = st.one_of(
    st.text(max_size=40),
    st.builds("/{}/{}".format, st.sampled_from(["ui", "animate", "livez", "", "other"]), st.text(max_size=20)),
)
TEMPLATES = {
    *("/", "/animate", "/animate/stream", "/livez", "/healthz", "/readyz", "/metrics", "/docs.json", "/schema.json"),
    *("/ui/", "/ui/{file}", "other"),
}


@given(PATHS)
def test_whatever_is_asked_for_there_are_a_dozen_labels(path):
    assert template_of(path) in TEMPLATES
    assert (template_of(path) == "other") == (not is_ours(path))


@given(PATHS)
def test_a_redirect_never_names_a_host(path):
    target = without_slash(path)
    assert target is None or not target.startswith(("/", "http", "\\"))


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/ui", "ui/"),
        ("/animate/", "../animate"),
        ("/animate/stream/", "../stream"),
        ("/livez/", "../livez"),
        ("//", None),
        ("/animate//", None),
        ("//example.org/", None),
        ("/nothing/", None),
    ],
)
def test_a_slash_too_many_or_too_few_leads_to_the_path_that_is_meant(path, target):
    assert without_slash(path) == target
