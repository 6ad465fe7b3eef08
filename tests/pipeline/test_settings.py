import pytest

from pipeline.commands.cli import main
from pipeline.errors import StillmotionError
from pipeline.runs.settings import load_preset, preset_names


def test_every_preset_of_the_project_loads_and_its_notebooks_are_there():
    assert "tiny" in preset_names()
    for name in preset_names():
        preset = load_preset(name)
        assert all(preset.notebook(stage).is_file() for stage in preset.stages)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("title: x\nstages: [{notebook: a}]\ncolour: red\n", "colour"),
        ("title: x\nstages: [{notebook: a, speed: 3}]\n", "stages.0.speed"),
        ("title: x\nstages: []\n", "stages"),
        ("stages: [{notebook: a}]\n", "title"),
        ("title: x\nstages: [{notebook: ../a}]\n", "stages.0.notebook"),
        ("title: x\nstages: [{notebook: a, parameters: {b: [1]}}]\n", "stages.0.parameters.b"),
        ("just text", "(top)"),
    ],
)
def test_a_wrong_key_in_a_preset_is_named(tmp_path, text, key):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(StillmotionError, match=rf"own\.yaml: {key.replace('(', '[(]').replace(')', '[)]')}"):
        load_preset(str(path))


def test_a_file_that_is_no_yaml_is_one_line(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("a: [1,\nb: }")
    with pytest.raises(StillmotionError, match="cannot be read") as caught:
        load_preset(str(path))
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_is_wrong_use_and_the_known_ones_are_named(capsys):
    assert main(["run", "--preset", "huge"]) == 2
    assert "known are" in capsys.readouterr().err
