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
# # 1. The teacher
#
# A teacher is a video diffusion model in its original form: slow, and the measure of everything that
# comes after it. This notebook loads one, animates pictures with it, looks at what its guidance
# branches do, and writes down its baseline figures. Later notebooks make it faster and compare.

# %% tags=["parameters"]
teacher = ""  # folder in diffusers format or hub id; empty: the small teacher that ships with the project
run_folder = "runs/notebook"  # results go to its folder 01_teacher
samples = ""  # YAML list of pictures and prompts; empty: the project's own in assets/, or photographs, as below
pictures = 6  # how many of them
judged_on = (
    ""  # "generated" clips, "photographs" or a folder; empty: the first for the shipped teacher, else the second
)
evaluation_clips = 16  # how many of these it is judged on; 0 leaves that out
seed = 0  # of the noise, and of generated clips

# %%
from pipeline.quiet import quiet_libraries

quiet_libraries()  # before anything imports them

# %%
from dataclasses import asdict

from pipeline.bench.baseline import baseline, branch_clips
from pipeline.machine import machine, versions
from pipeline.media.images import decode
from pipeline.media.video import sheet
from pipeline.model.example import seeded_request
from pipeline.model.guidance import Guidance
from pipeline.runs.display import show_clips, show_rows
from pipeline.runs.held_out import HeldOut
from pipeline.runs.results import Row, StageFolder
from pipeline.serve.sources import embedded_teacher, open_checkpoint

stage = StageFolder(run_folder, "01_teacher", "The teacher")
animator = open_checkpoint(teacher)
info = animator.info
branches = info.branches
held_out = HeldOut.of(judged_on, animator.name, evaluation_clips, seed)

show_rows(
    [
        Row(name="checkpoint", value=animator.name),
        Row(name="family", value=info.family),
        Row(name="clip", value=f"{info.frames} frames of {info.width} x {info.height} at {info.fps} per second"),
        Row(name="sampling", value=info.sampling),
    ]
)

# %% [markdown]
# ## Pictures in, clips out
#
# Each request is timed: its steps one by one, and the whole. A request of two steps comes first and is not
# counted: it warms the machine up (memory is allocated, kernels are chosen).

# %%
chosen = held_out.samples(samples, pictures)
images = [decode(sample.path) for sample in chosen]
requests = [sample.request(info) for sample in chosen]
seeded_request(animator.pipe, images[0], chosen[0].prompt, num_inference_steps=2, output_type="latent")
figures, made = baseline(animator, list(zip(images, requests, strict=True)))

shown = []
for sample, image, animation in zip(chosen, images, made, strict=True):
    path = stage.clip(sample.name, sample.name, sample.prompt, animation.clip, info.fps, image)
    shown.append((sample.prompt, path))
show_clips(shown)

# %% [markdown]
# The same clips as a contact sheet, one row a clip, time from left to right.

# %%
contact = sheet([animation.clip for animation in made])
stage.picture("contact_sheet", "Contact sheet", "One row a clip, time from left to right.", contact)
contact

# %% [markdown]
# ## What the guidance branches do
#
# At each step the network looks at the same noisy clip under two or three conditions: knowing nothing,
# knowing the picture, and knowing picture and prompt. The predictions become one:
#
#     eps = eps_uncond + g_image * (eps_image - eps_uncond) + g_text * (eps_full - eps_image)
#
# `g_image` pushes towards the picture, `g_text` towards the prompt. Written as a weighted sum, a branch
# whose weight comes to zero is not computed. Checkpoints without a `g_image`, such as the shipped one, have
# two branches: the picture with a negative prompt, and with the prompt. The weights of this checkpoint:

# %%
guidance = Guidance(info.guidance_scale, info.image_guidance_scale)
show_rows([Row(name=f"{name} branch", value=float(weight)) for name, weight in guidance.weights])

# %% [markdown]
# Below, each branch is left to make a clip alone, from the same noise; the last row is what they make
# together.

# %%
alone = branch_clips(animator, images[0], requests[0].prompt, chosen[0].seed)
clips = alone | {"guided": made[0].clip}
rows = sheet(list(clips.values()))
order = ", ".join(clips)
stage.picture("branches", "Guidance branches", f"“{chosen[0].prompt}”, from top to bottom: {order}.", rows)
print("from top to bottom:", order)
rows

# %% [markdown]
# ## Baseline figures

# %%
computer = machine()
stage.row("Passes", info.passes, "", info.sampling, headline=True)
stage.row(
    "Whole request", figures.request_s, "s", f"median of {figures.requests}, {computer['processor']}", headline=True
)
together = "in one batch" if animator.pipe.family.stacks_branches else "one after the other"
stage.row("One step", figures.step_s * 1000, "ms", f"{branches} guidance branches, {together}")
stage.row("One pass of the network", figures.pass_s * 1000, "ms", "a step over its branches")
stage.row("Encoders, decoder and the rest", figures.rest_s, "s", "a request without its steps")
stage.row("Peak memory", figures.peak_memory_mb, "MB", "GPU" if computer["accelerator"] != "none" else "process")
for name, count in figures.parameters.items():
    stage.row(f"Parameters: {name}", count / 1e6, "million")
show_rows(stage.result.rows)

# %% [markdown]
# ## Does it do what it should?
#
# Of the shipped teacher: the judge draws clips whose combination of colour, shape and motion was never
# trained on, sends their first frame with the caption, and reads the motion back out of the answer: where
# the sprite's centre goes and how its area changes.
#
# Of any other checkpoint, on photographs, where there is no true clip: whether a clip is of its own picture
# rather than another's, how much it moves, and whether it gets darker or changes colour.
#
# The first frame is compared with the picture that was sent; the autoencoder's own error bounds that figure.

# %%
evaluation = held_out.evaluate(animator)
before = len(stage.result.rows)
if evaluation is not None:
    stage.result.rows.extend(held_out.rows(evaluation))
show_rows(stage.result.rows[before:])

# %%
summary = (
    f"{animator.name}: {info.steps} steps x {branches} guidance branches, {figures.request_s:.2f} s a request "
    f"on {computer['accelerator'] if computer['accelerator'] != 'none' else 'the CPU'}."
)
result = stage.finish(
    summary,
    {
        "source": teacher or str(embedded_teacher()),
        "sampling": {"steps": info.steps, "branches": branches, "passes": info.passes},
        "baseline": asdict(figures),
        "evaluation": None if evaluation is None else evaluation.to_dict(),
        "machine": computer,
        "versions": versions(),
    },
)
result.summary
