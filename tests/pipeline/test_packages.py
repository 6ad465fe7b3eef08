"""Packages compiled ahead of time: what is refused before code is opened, and that the numbers stay the same."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline import ImageAnimationPipeline
from pipeline.errors import ModelError
from pipeline.optimise.base import NotApplicable
from pipeline.optimise.packages import (
    PROGRAMS_FILE,
    Program,
    Programs,
    build,
    device_key,
    load,
    weights_key,
    weights_of,
)
from pipeline.optimise.prepared import prepare_once
from pipeline.optimise.runtimes import example_of

ROOT = Path(__file__).parents[2]
CONTENT = b"code that would run when it is opened"


def animate(pipe: ImageAnimationPipeline, prompt: str = "a red ball", **kwargs: Any) -> Tensor:
    torch.manual_seed(0)
    picture = Image.linear_gradient("L").resize((24, 20)).convert("RGB")
    generator = torch.Generator().manual_seed(0)
    return pipe(picture, prompt, generator=generator, output_type="latent", **kwargs).frames


@pytest.fixture(scope="module")
def ready(one_level_i2vgen_parts) -> ImageAnimationPipeline:
    """As small as an I2VGen-XL can be, with a step module: one level, two frames."""
    parts = {
        **one_level_i2vgen_parts,
        "unet": copy.deepcopy(one_level_i2vgen_parts["unet"]),
    }  # tests change its weights
    pipe = ImageAnimationPipeline(
        **parts, image_latents_mode="mode", num_frames=2, guidance_scale=3.0, num_inference_steps=2
    )
    pipe.set_progress_bar_config(disable=True)
    prepare_once(pipe)
    return pipe


@dataclass(frozen=True)
class Folder:
    """A folder of packages whose only file is no package, so that opening it would fail in its own way."""

    path: Path
    weights: str

    def describe(self, **changes: Any) -> None:
        """Write `programs.json` for this machine, but for the changes."""
        (self.path / "step.pt2").write_bytes(CONTENT)
        described = {
            "file": "step.pt2",
            "sha256": hashlib.sha256(CONTENT).hexdigest(),
            "component": "step",
            "device": device_key(torch.device("cpu")),
            "torch": torch.__version__,
            "dtype": "float32",
            "shapes": [[2, 4, 2, 4, 4], [1]],
            "weights": self.weights,
            "build_s": 1.0,
            **changes,
        }
        (self.path / PROGRAMS_FILE).write_text(json.dumps({"programs": [described]}))


@pytest.fixture
def folder(tmp_path, ready) -> Folder:
    path = tmp_path / "packages"
    path.mkdir()
    return Folder(path, weights_key(weights_of(ready.denoiser.module)))


@pytest.fixture
def refuses(ready, folder):
    """See that a folder is refused in these words, and that the pipeline is as it was."""

    def check(kind: type[Exception], *words: str) -> None:
        denoiser, run = ready.denoiser, ready.denoiser.run
        with pytest.raises(kind) as caught:
            load(ready, folder.path)
        assert all(word in str(caught.value) for word in words), str(caught.value)
        assert ready.denoiser is denoiser
        assert ready.denoiser.run is run

    return check


@pytest.mark.parametrize(
    ("key", "what", "value", "here"),
    [
        ("device", "device", "cuda NVIDIA H100 sm_90", device_key(torch.device("cpu"))),
        ("torch", "PyTorch", "2.7.1+cu126", torch.__version__),
        ("dtype", "precision", "bfloat16", "float32"),
    ],
)
def test_a_package_for_another_machine_is_refused_and_both_are_named(folder, refuses, key, what, value, here):
    folder.describe(**{key: value})
    refuses(NotApplicable, f"aot: step.pt2 was compiled for {what} {value}, and this is {here}")


def test_another_machine_is_told_even_where_the_package_itself_is_missing(folder, refuses):
    """Nobody needs to mend what would not run anyway."""
    folder.describe(torch="2.7.1")
    (folder.path / "step.pt2").unlink()
    refuses(NotApplicable, "2.7.1")


def test_a_package_in_which_one_byte_has_changed_is_not_opened(folder, refuses):
    folder.describe()
    damaged = bytearray(CONTENT)
    damaged[7] ^= 1
    (folder.path / "step.pt2").write_bytes(damaged)
    refuses(ModelError, "step.pt2: has been changed or damaged since it was packaged")


def test_a_missing_package_is_named(folder, refuses):
    folder.describe()
    (folder.path / "step.pt2").unlink()
    refuses(ModelError, "step.pt2: missing")


def test_a_file_that_is_no_package_is_told_from_a_damaged_one(folder, refuses):
    folder.describe()
    refuses(ModelError, "step.pt2: cannot be opened")


def test_a_package_for_a_model_of_other_widths_is_not_opened(folder, refuses):
    """AOTInductor would take its weights, and read beyond their end."""
    folder.describe(weights=weights_key({"unet.conv_in.weight": torch.zeros(2, 2)}))
    refuses(ModelError, "step.pt2: was compiled for a model with other weights")


def test_the_weights_key_tells_names_shapes_and_types_apart_and_not_values():
    key = weights_key({"a": torch.zeros(2), "b": torch.zeros(3)})
    assert key == weights_key({"b": torch.ones(3), "a": torch.ones(2)})
    others = (
        {"a": torch.zeros(2)},
        {"a": torch.zeros(3), "b": torch.zeros(3)},
        {"a": torch.zeros(2), "c": torch.zeros(3)},
    )
    assert all(weights_key(other) != key for other in others)
    assert weights_key({"a": torch.zeros(2), "b": torch.zeros(3, dtype=torch.bfloat16)}) != key


def test_a_missing_list_of_programs_is_named(refuses):
    refuses(ModelError, f"{PROGRAMS_FILE}: cannot be read (No such file or directory)")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"programs": [{"file": "step.pt2"}]}', b"\xff\xfe"])
def test_a_damaged_list_of_programs_is_named(folder, refuses, content):
    (folder.path / PROGRAMS_FILE).write_bytes(content)
    refuses(ModelError, f"{PROGRAMS_FILE}: damaged", "package the model again")


@pytest.mark.parametrize("changes", [{"sha256": None}, {"shapes": [["wide"]]}, {"build_s": "long"}, {"further": 1}])
def test_a_list_with_an_odd_entry_is_damaged(folder, refuses, changes):
    folder.describe(**changes)
    refuses(ModelError, f"{PROGRAMS_FILE}: damaged (1 errors)")


@pytest.mark.parametrize("file", ["../step.pt2", "deeper/step.pt2", "/step.pt2", "..\\step.pt2", "..", ".", ""])
def test_a_package_outside_the_folder_is_not_looked_at(folder, refuses, file):
    for place in (folder.path.parent, folder.path / "deeper"):
        place.mkdir(exist_ok=True)
        (place / "step.pt2").write_bytes(CONTENT)  # its SHA-256 would be right
    folder.describe(file=file)
    refuses(ModelError, f"{PROGRAMS_FILE}: damaged")


def test_the_whole_path_of_a_package_elsewhere_is_refused_too(folder, refuses):
    elsewhere = folder.path.parent / "step.pt2"
    elsewhere.write_bytes(CONTENT)
    folder.describe(file=str(elsewhere))
    refuses(ModelError, f"{PROGRAMS_FILE}: damaged")


def test_programs_of_other_components_are_not_taken_for_the_step(folder, refuses):
    folder.describe(component="decoder")
    refuses(ModelError, "no program for the network's step")


def test_without_a_step_module_there_is_nothing_to_run(i2vgen, folder):
    folder.describe()
    with pytest.raises(NotApplicable, match=r"apply prepare_once first$"):
        load(i2vgen, folder.path)


def test_what_is_written_is_what_is_read(tmp_path):
    program = Program(
        file="step.pt2",
        sha256="0" * 64,
        component="step",
        device="cpu",
        torch="2",
        dtype="float32",
        shapes=((1, 2), (1,)),
        weights="1" * 64,
        build_s=1.5,
    )
    (tmp_path / PROGRAMS_FILE).write_text(Programs(programs=(program,)).model_dump_json())
    assert Programs.read(tmp_path).programs == (program,)


@torch.no_grad()
def test_what_is_exported_works_on_the_models_weights_alone(ready):
    """A package can be given no other tensors when it is loaded."""
    module, example = ready.denoiser.module, example_of(ready)
    exported = torch.export.export(module, example.inputs, strict=False)
    assert not exported.constants
    assert exported.state_dict.keys() <= module.state_dict().keys()
    assert float((exported.module()(*example.inputs) - module(*example.inputs)).abs().max()) < 1e-5


# ------------------------------------------------------------------ the real thing

LOAD_ELSEWHERE = """
import sys
from pathlib import Path
import torch
from PIL import Image
from pipeline import ImageAnimationPipeline
from pipeline.optimise.packages import load
from pipeline.optimise.prepared import prepare_once

model, packages, out = map(Path, sys.argv[1:])
torch.set_num_threads(1)
pipe = ImageAnimationPipeline.from_pretrained(model)
pipe.set_progress_bar_config(disable=True)
prepare_once(pipe)
load(pipe, packages)
picture = Image.linear_gradient("L").resize((24, 20)).convert("RGB")
generator = torch.Generator().manual_seed(0)
clip = pipe(picture, "a red ball", generator=generator, output_type="latent").frames
assert pipe.denoiser.run.misses == 0
torch.save(clip, out)
"""


@pytest.fixture(scope="module")
def built(ready, tmp_path_factory) -> tuple[Path, Program]:
    """A real package. One to two minutes: the compiler writes a C++ file, and a C++ compiler reads it."""
    folder = tmp_path_factory.mktemp("built")
    return folder, build(ready, [example_of(ready)], folder).programs[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_package_gives_the_same_clip_for_any_prompt_and_steps_aside_for_other_shapes(ready, built):
    folder, program = built
    assert program.shapes == example_of(ready).shapes
    assert program.build_s > 0
    requests = [{}, {"prompt": "a blue square"}, {"num_frames": 3}]
    plain = [animate(ready, **request) for request in requests]
    change = load(ready, folder)
    try:
        for request, expected in zip(requests, plain, strict=True):
            assert float((animate(ready, **request) - expected).abs().max()) < 1e-4
        assert ready.denoiser.run.misses == 2  # the steps of the longer clip
    finally:
        change.undo()
    assert torch.equal(animate(ready), plain[0])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_package_holds_no_weights_and_works_on_those_of_the_model(ready, built):
    folder, _ = built
    first = next(ready.unet.parameters())
    change = load(ready, folder)
    try:
        before = animate(ready)
        with torch.no_grad():
            first *= 1.5
        changed = animate(ready)
    finally:
        change.undo()
    expected = animate(ready)
    with torch.no_grad():
        first /= 1.5
    assert float((changed - before).abs().max()) > 1e-4
    assert float((changed - expected).abs().max()) < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_another_process_loads_the_package_and_gives_the_same_clip(ready, built, tmp_path):
    folder, _ = built
    ready.save_pretrained(tmp_path / "model")
    out = tmp_path / "clip.pt"
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE, str(tmp_path / "model"), str(folder), str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    change = load(ready, folder)
    try:
        assert torch.allclose(torch.load(out), animate(ready), atol=1e-5)
    finally:
        change.undo()


# What is mounted on its own stays as it is: the environment may lie in /tmp.
_ENVIRONMENT = shlex.quote(sys.prefix)
NOEXEC = f"mount --bind /tmp /tmp && mount --bind {_ENVIRONMENT} {_ENVIRONMENT} && mount -o remount,bind,noexec /tmp"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_folder_for_temporary_files_that_lets_nothing_run_is_named(ready, built, tmp_path):
    if subprocess.run(["unshare", "--mount", "sh", "-ec", NOEXEC], capture_output=True, check=False).returncode:
        pytest.skip("mounts cannot be changed here: not root, or no unshare")
    folder, _ = built
    ready.save_pretrained(tmp_path / "model")
    places = [str(tmp_path / "model"), str(folder), str(tmp_path / "clip.pt")]
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-ec",
            f'{NOEXEC} && exec "$@"',
            "sh",
            sys.executable,
            "-c",
            LOAD_ELSEWHERE,
            *places,
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode != 0
    assert "mount it without noexec" in done.stderr
