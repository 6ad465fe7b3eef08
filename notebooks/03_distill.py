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
# # 3. Distil
#
# The teacher needs many steps, with two or three guided passes in each. A student starts from its weights
# and learns to land, in one step of one pass, where the teacher lands after several guided ones
# (`pipeline/distill/algorithm.py` derives the target). It is trained along its own path, from pure
# noise, on what it will meet when it is served. Then it is judged: a student that falls short of its
# gates is not packaged.

# %% tags=["parameters"]
checkpoint = ""  # the teacher, folder or hub id; empty: the one of this run's 01_teacher, else the shipped one
run_folder = "runs/notebook"  # results go to its folder 03_distill
student_steps = 8  # of one pass each
teacher_steps = 0  # of the teacher while it teaches; 0: its own
trained = ""  # a student that `pipeline distill` trained elsewhere: a folder that is judged here; empty: train one
start = ""  # a student that training goes on from; "shipped": the shipped one, where the teacher is; empty: the teacher
updates = 170  # of the student's weights
batch = 4  # clips an update
learning_rate = 4e-4  # its peak
trajectory = "backward"  # the student's own path; "forward": clips with noise added
shifted_reconstruction = False  # Imagine Flash's loss instead of the landing
noise_correction = False  # Imagine Flash's first step
guidance_range = ""  # of U-Nets, "1,4": a request chooses its guidance scale within these; empty: it is built in
fewer_steps = ""  # further students, such as "4,2:75,1:50", judged the same way; after a colon, other `updates`
ablations = ""  # further students of `student_steps`, such as "forward,shifted" ("noise": with betas alone)
data = ""  # folder of videos or pictures with captions; empty: generated clips
mixed_precision = "no"  # bf16 or fp16 on a GPU
lora_rank = 0  # train additions of this rank instead of all weights
gradient_checkpointing = False  # compute activations again instead of keeping them
sample_every = 0  # updates between pictures of what the student makes; 0: none are drawn
pictures = 6  # of the samples, animated by teacher and student
judged_on = (
    ""  # "generated" clips, "photographs" or a folder; empty: the first for the shipped teacher, else the second
)
evaluation_clips = 16  # how many of these it is judged on
diversity = 1  # clips of a photograph from different seeds; from 2 on it is judged whether they differ
gates = "default"  # file of limits; "default": the project's, of its own teacher or on photographs; empty: none
seed = 0  # of training, clips and noise

# %%
from pipeline.quiet import quiet_libraries

quiet_libraries()  # before anything imports them

# %%
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.bench.plots import plot_losses, plot_students
from pipeline.console import Counter, news
from pipeline.distill.checkpoint import read_losses
from pipeline.distill.data import GeneratedSource
from pipeline.distill.folders import open_folder
from pipeline.distill.student import SampleGrid, grid_problem
from pipeline.distill.trainer import Distiller, DistillSettings, Trajectory
from pipeline.errors import StageSkipped, StillmotionError
from pipeline.judge.gates import load_gates
from pipeline.machine import machine, versions
from pipeline.media.images import decode
from pipeline.media.video import sheet
from pipeline.model.diffusers_folder import save_changed
from pipeline.optimise.precision import choose, in_precision, precision_trials
from pipeline.runs.display import show_clips, show_rows
from pipeline.runs.held_out import Compared, HeldOut, require
from pipeline.runs.results import Row, StageFolder
from pipeline.serve.engine import Animator
from pipeline.serve.sources import EMBEDDED_STUDENT, EMBEDDED_TEACHER, embedded_teacher, name_of, open_checkpoint
from pipeline.serve.store import describe

stage = StageFolder(run_folder, "03_distill", "The student")
checkpoint = checkpoint or stage.read("01_teacher", "source") or ""
teacher = open_checkpoint(checkpoint)
if problem := grid_problem(teacher.pipe):
    raise StageSkipped(f"no student is trained of the {teacher.info.family} family so far ({problem})")
judged_here = open_checkpoint(trained) if trained else None
if judged_here is not None:
    student_steps = judged_here.info.steps
held_out = HeldOut.of(judged_on, teacher.name, evaluation_clips, seed, diversity)
if gates == "default" and held_out.pictures is None and teacher.name != name_of(EMBEDDED_TEACHER):
    gates = ""
    print(
        "gates: the project's limits on generated clips are of its own teacher; `-p gates FILE` sets some for this one"
    )
if gates:
    held_out.check_file(load_gates(gates), student_steps)  # refused now, not after the training
passes = teacher.info.sampling
print(f"{teacher.name}: {passes} passes; the student: {student_steps}")

# %% [markdown]
# ## Training
#
# Nothing is stored: pictures and captions are drawn, the student samples from noise to a step of its
# own, the teacher takes its guided steps from there, and the student's prediction is moved towards
# where they land. Interrupted, the notebook goes on from the last checkpoint when it is run again.

# %%
frames, (height, width) = teacher.info.frames, teacher.pipe.default_size
if not data and judged_here is None and max(height, width) > 128:
    raise StillmotionError(
        f"data: is needed for a teacher of {width}x{height} pixels; generated clips are for small ones"
    )
if data:
    clips = DistillSettings.clips_per_video
    source = open_folder(data, frames=frames, height=height, width=width, batch=batch, seed=seed, clips_per_video=clips)
else:
    source = GeneratedSource(min(height, width, 128), frames, batch, seed=seed + 1)
if start == "shipped":
    start = str(EMBEDDED_STUDENT) if teacher.name == name_of(EMBEDDED_TEACHER) else ""
print(f"the student begins with the weights of {name_of(start) if start else 'the teacher'}")
base = DistillSettings(
    student_steps=student_steps,
    start=start,
    teacher_steps=teacher_steps,
    updates=updates,
    learning_rate=learning_rate,
    trajectory=Trajectory(trajectory),
    shifted_reconstruction=shifted_reconstruction,
    noise_correction=noise_correction,
    guidance_range=tuple(float(scale) for scale in guidance_range.split(",")) if guidance_range else None,
    mixed_precision=mixed_precision,
    lora_rank=lora_rank,
    gradient_checkpointing=gradient_checkpointing,
    sample_every=sample_every,
    seed=seed,
)


def train(name: str, settings: DistillSettings) -> tuple[Animator, list[float]]:
    """A student, and its losses."""
    training = stage.path / "training"
    own = training / name.replace(" ", "-")
    distiller = Distiller(teacher.pipe, source, settings, own, encoded=training / "encoded")
    print(f"{name}: from {distiller.grid.teacher_steps} steps of the teacher")
    drawn = SampleGrid(teacher.pipe, source[10 * updates], stage.path / "samples" / name.replace(" ", "-"), seed)
    said = Counter(f"{name}: update", news, times=5)
    made = distiller.train(lambda done, total, _loss: said(done, total), on_sample=drawn)
    distiller.close()
    return Animator(made, describe(made, teacher.name, {}), f"student, {name}"), distiller.losses


def save(made: Animator, folder: Path) -> None:
    """Keep a student; of what it has in common with its teacher the weights are not written again."""
    pipe = made.pipe
    save_changed(pipe, folder, teacher.pipe.name_or_path, (*pipe.family.networks, "scheduler"))


if judged_here is None:
    student, losses = train(f"{student_steps} x 1", base)
else:
    info = describe(judged_here.pipe, teacher.name, {})
    student, losses = (
        Animator(judged_here.pipe, info, f"student, {student_steps} x 1"),
        read_losses(Path(trained).parent),
    )
curve = plot_losses({f"{student_steps} x 1": losses}) if losses else None
if curve is not None:
    stage.picture("losses", "Loss", "Mean squared error of v, a point an update; the line is a running mean.", curve)
curve

# %%
sketches = sorted((stage.path / "samples").rglob("update-*.png"))
for path in sketches[:: max(1, len(sketches) - 1)]:  # the first and the last
    stage.picture(
        path.stem, f"After {path.stem.replace('-', ' ')}", "Rows in pairs: teacher, student.", Image.open(path)
    )
print(f"{len(sketches)} sample grids" if sketches else "no sample grids were asked for")

# %% [markdown]
# ## Side by side
#
# The same pictures, prompts and noise; on the left the teacher, on the right the student.

# %%
chosen = held_out.samples("", pictures)
first = decode(chosen[0].path)
student.animate(first, chosen[0].request(student.info), last_image=student.info.ending(first))  # warms up
seconds: dict[str, list[float]] = {"teacher": [], "student": []}
shown, rows = [], []
for sample in chosen:
    picture, request = decode(sample.path), sample.request(student.info)
    both, end = (("teacher", teacher), ("student", student)), student.info.ending(picture)
    made = {name: one.animate(picture, request, last_image=end) for name, one in both}
    for name, animation in made.items():
        seconds[name].append(animation.compute_s)
    pair = [animation.clip for animation in made.values()]
    rows += pair
    together = np.concatenate(pair, axis=2)  # (frames, height, 2 * width, 3)
    path = stage.clip(sample.name, sample.name, f"{sample.prompt}: teacher, student", together, student.info.fps)
    shown.append((sample.prompt, path))
show_clips(shown, width=384)

# %%
contact = sheet(rows, frame_height=72)
stage.picture("side_by_side", "Teacher and student", "Two rows a clip: first the teacher, then the student.", contact)
contact

# %% [markdown]
# ## Fewer steps still, and what each part does
#
# Students of fewer steps, and students trained without one of the parts or with another loss, if asked
# for. An update of a student of one step takes eight times as many passes of the teacher as one of eight
# steps. The noise correction is of schedules with betas, and changes nothing where they end in pure noise;
# flow matching, which the shipped teacher has, begins with noise and needs none.

# %%
main = f"{student_steps} x 1"
students, curves = {main: student}, {main: losses}
changes = {
    "forward": {"trajectory": Trajectory.FORWARD},
    "shifted": {"shifted_reconstruction": True},
    "noise": {"noise_correction": True},
}
wanted = {}
for steps, _, other in (text.partition(":") for text in fewer_steps.split(",") if text):
    wanted[f"{int(steps)} x 1"] = {"student_steps": int(steps), "updates": int(other or updates)}
wanted |= {f"{main}, {name.strip()}": changes[name.strip()] for name in ablations.split(",") if name}
for name, change in wanted.items():
    students[name], curves[name] = train(name, replace(base, **change))
    folder = name.replace(" x 1", "").replace(", ", "-")
    save(students[name], stage.path / "students" / folder)
if wanted:
    stage.picture("all_losses", "Losses", "Of all students.", plot_losses(curves))
print(f"students: {'; '.join(students)}")

# %% [markdown]
# ## Is it as good?
#
# All on the same pictures, from the same noise: the teacher in full, the teacher with as few steps and all
# its branches, the teacher with as few passes as the student, and the students. Of the shipped teacher they
# are the first frames of held-out generated clips, whose motion the judge reads back; of any other they are
# photographs, and what counts is what users see: the first frame, how much moves, and whether colours drift.


# %%
# The student is judged in the precision that it is packaged in, which is chosen on it and not on the teacher.
def judge(dtype: torch.dtype) -> dict[str, Compared]:
    """All students in a precision, each beside its teacher."""
    cast = {name: Animator(in_precision(one.pipe, dtype), one.info, one.name) for name, one in students.items()}
    return held_out.compare(cast, teacher, Counter("judged: clip", news, times=5))


precision = choose(precision_trials(student.pipe), student.pipe.device)["network"]
compared = judge(precision)
if gates and precision is not torch.float32:
    missed = [one.name for one in held_out.held_against(compared[main], load_gates(gates)) if not one.passed]
    if missed:  # a pass or a frame shows little of what roundings add up to over all steps
        news(f"in {precision} the student misses {', '.join(missed)}; it is judged and packaged in float32")
        precision = torch.float32
        compared = judge(precision)
comparison = compared[main]
others = {name: each for name, each in compared.items() if name != main}
judged = {
    "teacher": comparison.teacher,
    "few steps": comparison.undistilled_guided,
    "few passes": comparison.undistilled,
    "student": comparison.student,
}
if others:
    picture = plot_students({name: held_out.bars(one) for name, one in compared.items()})
    stage.picture("students", "Students", "PSNR to the teacher in full; grey: the teacher with as few passes.", picture)
table = {**judged, **{name: one.student for name, one in others.items()}}
show_rows([held_out.row(name, one) for name, one in table.items()])

# %% [markdown]
# ## Gates
#
# The student is saved before it is judged, so that one that fails can be looked at; but a failed gate
# ends the run here, and nothing is packaged.

# %%
model = stage.path / "model"
save(student, model)
figures = comparison.student
request_s = {name: float(np.median(taken)) for name, taken in seconds.items()}
stage.row("Passes", f"{teacher.info.passes} to {student.info.passes}", "", passes, headline=True)
note = f"{request_s['teacher']:.2f} to {request_s['student']:.2f} s, median of {len(chosen)}"
stage.row("Whole request, faster", request_s["teacher"] / request_s["student"], "x", f"{note}, both in plain PyTorch")
stage.row(
    "Student to the teacher",
    figures.psnr_to_teacher_db,
    "dB",
    f"PSNR, {held_out.words}; undistilled {comparison.undistilled.psnr_to_teacher_db:.1f} dB",
    headline=True,
)
stage.row("The same, SSIM", figures.ssim_to_teacher)
for name, one in judged.items():
    stage.result.rows.append(held_out.row(name, one))
stage.row("First frame against the picture", figures.first_frame_psnr_db, "dB", "PSNR")
stage.row("Flicker", figures.flicker, "of 255", f"the teacher {comparison.teacher.flicker:.2f}")
for name, c in others.items():
    stage.result.rows.append(held_out.row(name, c.student))
results = held_out.held_against(comparison, load_gates(gates)) if gates else []
for gate in results:
    stage.row(f"Gate: {gate.name}", round(gate.value, 3), "", f"{'passed' if gate.passed else 'FAILED'}: {gate.limit}")
show_rows([Row(name=g.name, value=round(g.value, 3), note=f"limit {g.limit}: {g.passed}") for g in results])

# %%
require(comparison, results)
here = f"trained from the teacher in this run, {updates} updates of {batch} clips"
summary = (
    f"{student.info.passes} passes instead of {teacher.info.passes}, "
    f"{request_s['teacher'] / request_s['student']:.1f}x faster; {f'trained in {trained}' if trained else here}."
)
done = stage.finish(
    summary,
    {
        "source": str(model),
        "precision": str(precision).removeprefix("torch."),
        "teacher": checkpoint or str(embedded_teacher()),
        "passes": {"teacher": teacher.info.passes, "student": student.info.passes},
        "request_s": request_s,
        "losses": losses,
        "evaluation": figures.to_dict(),
        "comparison": comparison.to_dict(),
        "students": {name: c.to_dict() for name, c in others.items()},
        "gates": [{"name": g.name, "value": g.value, "limit": g.limit, "passed": g.passed} for g in results],
        "machine": machine(),
        "versions": versions(),
    },
)
done.summary
