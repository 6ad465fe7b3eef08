"""A model that `bentoml build` takes, without weights, and programs that answer as container engines do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.serve.manifest import INFO_FILE, ModelInfo

INFO = ModelInfo(
    teacher="none",
    family="i2vgen-xl",
    steps=8,
    evaluations=8,
    passes=8,
    guidance_scale=None,
    image_guidance_scale=None,
    guidance_distilled=True,
    runtime="eager",
    precision={"default": "float32"},
    frames=8,
    least_frames=2,
    most_frames=8,
    sizes=((32, 32),),
    fps=8,
)


@pytest.fixture(scope="session")
def described_model(tmp_path_factory):
    """A store of its own with a model that can be described but not loaded; gives the store and the model's tag."""
    import bentoml
    from bentoml._internal.models import ModelStore

    home = tmp_path_factory.mktemp("home")
    (home / "models").mkdir()
    with bentoml.models.create("animator", _model_store=ModelStore(home / "models")) as model:
        Path(model.path, INFO_FILE).write_text(INFO.to_json())
    return home, str(model.tag)


@pytest.fixture
def engines(tmp_path):
    """Puts programs on a PATH that holds nothing else, and gives the environment with that PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def put(**programs: str) -> dict[str, str]:
        for name, text in programs.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        return {**os.environ, "PATH": str(folder)}

    return put
