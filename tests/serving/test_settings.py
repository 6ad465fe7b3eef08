"""Settings from the environment."""

import pytest

from serving.settings import Settings, SettingsError


def test_an_empty_environment_gives_the_defaults():
    assert Settings.from_environment({}) == Settings()
    assert Settings.from_environment({"STILLMOTION_REGION": " "}) == Settings()


def test_values_are_read_by_their_names():
    settings = Settings.from_environment({"STILLMOTION_DEADLINE_S": "2.5", "STILLMOTION_REGION": "eu-1"})
    assert (settings.deadline_s, settings.region) == (2.5, "eu-1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STILLMOTION_DEADLINE_S", "soon"),
        ("STILLMOTION_DEADLINE_S", "nan"),
        ("STILLMOTION_DEADLINE_S", "-1"),
        ("STILLMOTION_REGION", "a region\r\nwith a header"),
        ("STILLMOTION_MAX_IMAGE_BYTES", "16MB"),
        ("STILLMOTION_MAX_PROMPT_CHARS", "0"),
    ],
)
def test_an_error_names_the_variable_and_its_value(name, value):
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


def test_variables_that_kubernetes_adds_are_left_alone():
    assert Settings.from_environment({"STILLMOTION_SERVICE_HOST": "10.0.0.1"}) == Settings()
