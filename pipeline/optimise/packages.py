"""Ahead-of-time packages: the step module exported and compiled into a file that loads in a blink.

A package holds machine code, made for one kind of device, one release of PyTorch and one set of
shapes. It holds no weights: it works on those of the loaded pipeline, so that they lie in memory
once. `programs.json` beside the packages says what each was made for. Loading one executes code, so
its SHA-256 is compared before it is opened.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from torch import Tensor, nn

from ..errors import ModelError, first_line
from ..machine import dtype_name, processor, sha256_of
from ..writing import write_atomically
from .base import Change, NotApplicable
from .prepared import prepared_denoisers
from .runtimes import Example, install
from .step_modules import Step, StepModule

if TYPE_CHECKING:
    from ..model.animation import ImageAnimationPipeline

PROGRAMS_FILE = "programs.json"
SUFFIX = ".pt2"


class Program(BaseModel):
    """One package.

    Attributes:
        file, sha256: beside `programs.json`.
        component: what it computes, "step" so far.
        device: what it was compiled for, as `device_key` names it.
        torch: release of PyTorch, build included.
        dtype: of latents and weights.
        shapes: of each input.
        weights: SHA-256 over names, shapes, strides and types of the model's weights, as `weights_key` gives it.
        build_s: how long compiling took.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    sha256: str
    component: str
    device: str
    torch: str
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    weights: str
    build_s: float

    @field_validator("file")
    @classmethod
    def _stay_in_the_folder(cls, file: str) -> str:
        if file in {"", ".", ".."} or "/" in file or "\\" in file:
            raise ValueError("not the name of a file beside programs.json")
        return file


class Programs(BaseModel):
    """Content of `programs.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    programs: tuple[Program, ...]

    @classmethod
    def read(cls, folder: Path) -> Programs:
        """Return programs of a folder.

        Raises:
            ModelError: the file is missing or damaged.
        """
        path = folder / PROGRAMS_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
        except ValidationError as error:
            raise ModelError(f"{path}: damaged ({error.error_count()} errors); package the model again") from error


def device_key(device: torch.device) -> str:
    """Return the kind of device that machine code fits: GPU and compute capability, or processor and vectors."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda {torch.cuda.get_device_name(device)} sm_{major}{minor}"
    return f"{device.type} {platform.machine()} {processor()} {torch.backends.cpu.get_cpu_capability()}"


def weights_key(weights: Mapping[str, Tensor]) -> str:
    """Return what a package needs of a model's weights: all but their values, as a SHA-256.

    AOTInductor compares names alone: it would read beyond the end of a smaller weight, and one whose
    memory is laid out in another way (`layout.channels_last`) in the wrong order.
    """
    lines = [
        f"{name} {tuple(weight.shape)} {weight.stride()} {weight.dtype}" for name, weight in sorted(weights.items())
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Return what a package works on: weights, and buffers that no checkpoint holds, such as rotary frequencies."""
    return {**module.state_dict(), **dict(module.named_buffers())}


@torch.no_grad()
def build(pipe: ImageAnimationPipeline, examples: Sequence[Example], folder: Path) -> Programs:
    """Export and compile the step module for the shapes of each example, into `folder`.

    A checkpoint of two networks has them alike: one program works on the weights of either.

    Raises:
        NotApplicable: the network cannot be compiled here.
    """
    module = prepared_denoisers(pipe)[0].module
    folder.mkdir(parents=True, exist_ok=True)
    made = [_build(module, example, folder / f"step{number or ''}{SUFFIX}") for number, example in enumerate(examples)]
    programs = Programs(programs=tuple(made))
    write_atomically(folder / PROGRAMS_FILE, programs.model_dump_json(indent=2) + "\n")
    return programs


def _build(module: StepModule, example: Example, path: Path) -> Program:
    began = time.perf_counter()
    with _without_reports():
        try:
            exported = torch.export.export(module, example.inputs, strict=False)
            torch._inductor.aoti_compile_and_package(  # noqa: SLF001  # the documented entry point
                exported,
                package_path=str(path),
                inductor_configs={
                    "aot_inductor.package_constants_in_so": False,
                },
            )
        except Exception as error:  # the compiler raises its own kinds, and the tool chain others
            path.unlink(missing_ok=True)
            raise NotApplicable(f"aot: the network cannot be compiled ahead of time: {first_line(error)}") from error
    return Program(
        file=path.name,
        sha256=sha256_of(path),
        component="step",
        device=device_key(example.inputs[0].device),
        torch=torch.__version__,
        dtype=dtype_name(example.dtype),
        shapes=example.shapes,
        weights=weights_key(weights_of(module)),
        build_s=round(time.perf_counter() - began, 2),
    )


@contextmanager
def _without_reports() -> Iterator[None]:
    """Keep the exporter's reports away: deprecations, and the whole graph where a line of it cannot be exported."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def load(pipe: ImageAnimationPipeline, folder: Path) -> Change:
    """Run the steps by the packages in `folder`.

    Raises:
        NotApplicable: one was made for another device, release of PyTorch or precision; the text says which.
        ModelError: a file is missing, or is not the one that was packaged, or was made for another model.
    """
    programs = [program for program in Programs.read(folder).programs if program.component == "step"]
    if not programs:
        raise ModelError(f"{folder / PROGRAMS_FILE}: no program for the network's step")
    modules = [one.module for one in prepared_denoisers(pipe)]
    for program in programs:
        _check(program, folder, pipe.network, modules)
    opened = {program.shapes: partial(_opened, folder / program.file) for program in programs}
    took, sizes = (
        sum(program.build_s for program in programs),
        f"{len(programs)} set{'s'[: len(programs) > 1]} of shapes",
    )
    detail = f"{sizes}, compiled ahead of time in {took:.0f} s"
    return install(pipe, opened, pipe.network.dtype, "aot", detail)


def _check(program: Program, folder: Path, network: Any, modules: Sequence[StepModule]) -> None:
    for what, made_for, here in (
        ("device", program.device, device_key(network.device)),
        ("PyTorch", program.torch, torch.__version__),
        # The precision of most weights: some that are kept in float32 may come first.
        ("precision", program.dtype, dtype_name(network.dtype)),
    ):
        if made_for != here:
            raise NotApplicable(f"aot: {program.file} was compiled for {what} {made_for}, and this is {here}")
    path = folder / program.file
    if any(program.weights != weights_key(weights_of(module)) for module in modules):
        raise ModelError(f"{path}: was compiled for a model with other weights than this; package the model again")
    if not path.is_file():
        raise ModelError(f"{path}: missing; package the model again")
    if sha256_of(path) != program.sha256:
        raise ModelError(f"{path}: has been changed or damaged since it was packaged (SHA-256 differs)")


def _opened(path: Path, module: StepModule) -> Step:
    return _open(path, weights_of(module))


def _open(path: Path, weights: dict[str, Tensor]) -> Step:
    """Open a package around weights that are in memory already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # What `torch._inductor.aoti_load_package` does, but for a look at the machine: that tries out with the C++
            # compiler which vectors it could build for, six seconds at a first start. `device_key` has told already.
            from torch.export.pt2_archive._package import AOTICompiledModel

            opened: Any = AOTICompiledModel(
                torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)  # noqa: FBT003, SLF001
            )
        except (OSError, RuntimeError) as error:
            raise ModelError(f"{path}: cannot be opened ({first_line(error)}); {_advice(str(error))}") from error
    wanted = opened.get_constant_fqns()
    if missing := sorted(set(wanted) - weights.keys()):
        raise ModelError(f"{path}: works on weights that the model does not have ({missing[0]})")
    return _Opened(opened, {name: weights[name] for name in wanted})


def _advice(error: str) -> str:
    # PyTorch unpacks a program into /tmp, whatever TMPDIR says, and the dynamic loader maps it from there.
    if "failed to map segment" in error:
        return "programs have to be allowed in /tmp: mount it without noexec (in a container, --tmpfs /tmp:rw,exec)"
    return "package the model again"


class _Opened:
    """A package and the weights that it points at, which have to live for as long as it does."""

    def __init__(self, program: Any, weights: dict[str, Tensor]) -> None:
        self._program, self._weights = program, weights
        program.load_constants(weights, check_full_update=True, user_managed=True)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return cast(Tensor, self._program(*inputs))
