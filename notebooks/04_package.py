# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. Package
#
# A server should not have to know how a model was made. This notebook saves the model into the
# BentoML store as `animator:<version>`: weights, a description that the engine reads
# (`animator.json`, with the SHA-256 of each file), and a model card. Then it loads the model back from
# the store and proves that both make the same frames from the same seed.

# %% tags=["parameters"]
checkpoint = ""  # folder or hub id to package; empty: what this run has made so far, else the shipped teacher
runtime = "auto"  # the fastest here of what takes no compiler; "aot" compiles the network now, which takes minutes
requests = 5  # pictures, timed against the teacher: the project's samples, or photographs
run_folder = "runs/notebook"  # results go to its folder 04_package

# %%
from pipeline.quiet import quiet_libraries

quiet_libraries()  # before anything imports them

# %%
from dataclasses import asdict

import numpy as np

from pipeline.machine import machine, versions
from pipeline.media.images import decode
from pipeline.packaging.package import package
from pipeline.runs.display import show_rows
from pipeline.runs.held_out import HeldOut
from pipeline.runs.results import Row, StageFolder
from pipeline.serve.sources import embedded_teacher, name_of, open_checkpoint

stage = StageFolder(run_folder, "04_package", "The packaged model")
evaluation, precision = {}, ""
for earlier in ("03_distill", "02_optimize", "01_teacher"):  # the last word counts
    if not checkpoint and (found := stage.read(earlier, "source")):
        checkpoint, evaluation = found, stage.read(earlier, "evaluation") or {}
    precision = precision or stage.read(earlier, "precision")  # chosen on what is packaged, where it was distilled
source = open_checkpoint(checkpoint)
print(f"{source.name}: {source.info.passes} passes, {'judged' if evaluation else 'not judged'} in this run")

# %% [markdown]
# ## Save, load back, compare
#
# A model whose frames differ from the source's by more than two steps of 255 (roundings of compiled
# code; without it there is no difference on a CPU) is taken out of the store again, and the notebook
# fails.

# %%
packaged = package(source, evaluation, runtime, precision or "float32")
files = sorted(packaged.path.rglob("*"))
size = sum(file.stat().st_size for file in files if file.is_file())
stage.row("Tag in the store", packaged.tag)
tried = "; ".join(f"{way} {way.request_s:.2f} s" for way in packaged.ways)
stage.row("Runtime", str(packaged.ways[0]) if tried else packaged.animator.runtime, "", tried or "as asked for")
stage.row("Difference to the source", packaged.max_difference, "of 255", "largest, same seed, all frames")
stage.row("Files with a digest", len(packaged.info.files))
stage.row("Size", size / 1e6, "MB")
show_rows(stage.result.rows)

# %% [markdown]
# ## What was gained
#
# A whole request, from picture and prompt to frames: the model as a server loads it, and the teacher in
# plain PyTorch as 01_teacher timed it. Without that, the packaged checkpoint is its own teacher.

# %%
teacher_s, passes = stage.read("01_teacher", "baseline.request_s"), stage.read("01_teacher", "sampling.passes")
timed = {"packaged": packaged.animator} if teacher_s else {"teacher": source, "packaged": packaged.animator}
seconds: dict[str, list[float]] = {name: [] for name in timed}
teacher_name = name_of(stage.read("01_teacher", "source") or embedded_teacher())
for sample in HeldOut.of("", teacher_name, 0).samples("", requests):
    picture, request = decode(sample.path), sample.request(source.info)
    for name, animator in timed.items():
        seconds[name].append(animator.animate(picture, request, last_image=animator.info.ending(picture)).compute_s)
request_s = {"teacher": teacher_s, **{name: float(np.median(taken)) for name, taken in seconds.items()}}
faster = request_s["teacher"] / request_s["packaged"]
spans = f"{request_s['teacher']:.2f} to {request_s['packaged']:.2f} s"
note = f"{spans}, {passes or source.info.passes} to {source.info.passes} passes; median of {requests}"
stage.row("Whole request, faster than the teacher", faster, "x", note, headline=True)
show_rows(stage.result.rows[-1:])

# %% [markdown]
# ## What is in the package

# %%
show_rows([Row(name=name, value=f"{digest[:16]}…") for name, digest in packaged.info.files.items()])

# %% [markdown]
# The card that travels with it:

# %%
print((packaged.path / "README.md").read_text(encoding="utf-8"))

# %%
result = stage.finish(
    f"{packaged.tag} is in the store and makes the same frames as {source.name}.",
    {
        "tag": packaged.tag,
        "max_difference": packaged.max_difference,
        "size_bytes": size,
        "request_s": request_s,
        "ways": [asdict(way) for way in packaged.ways],
        "machine": machine(),
        "versions": versions(),
        "animator": packaged.info.model_dump(mode="json"),
    },
    model=packaged.tag,
)
print(packaged.tag)
