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

# %%

# %% [markdown]
# # 2. Optimise
#
# The same model, faster: each optimisation is measured on its own, in one run, against the rung it
# stands on and against diffusers' own pipeline. What pays on this machine is kept, judged again, and
# saved for the stages that follow. No training yet: these gains are free.

# %% tags=["parameters"]
checkpoint = ""  # folder or hub id; empty: the one of this run's 01_teacher, else the shipped teacher
run_folder = "runs/notebook"  # results go to its folder 02_optimize
rungs = "diffusers,teacher,precision,context,prepare,solver,torchscript,8 x 1"  # empty: all, compilers too
repeats = 1  # timed requests a rung
solver_steps = 15  # of DPM-Solver++ on the log-SNR grid; never more than the checkpoint's own
convergence_clips = 2  # clips on which the solvers are compared; 0 leaves that out
convergence_steps = "8,15"  # of each; DDIM takes twice the last too, Euler does not
reference_steps = 64  # of the solution that counts as exact there
judged_on = (
    ""  # "generated" clips, "photographs" or a folder; empty: the first for the shipped teacher, else the second
)
evaluation_clips = 16  # how many of these the result is judged on; 0 leaves that out
seed = 0  # of the noise, and of generated clips

# %%
from pipeline.quiet import quiet_libraries

quiet_libraries()  # before anything imports them

# %%
from dataclasses import asdict

import torch

from pipeline.bench import bench, write
from pipeline.bench.convergence import compared_samplers, convergence, latent_sampler, reference_latents
from pipeline.bench.ladder import use_solver
from pipeline.bench.plots import plot_convergence, plot_ladder
from pipeline.bench.report import markdown
from pipeline.console import news
from pipeline.machine import machine, versions
from pipeline.model.diffusers_folder import save_changed
from pipeline.model.solver import solver_problem
from pipeline.optimise.base import Applied
from pipeline.optimise.precision import choose, set_precision
from pipeline.optimise.prepared import prepare_once
from pipeline.runs.display import show_rows
from pipeline.runs.held_out import HeldOut
from pipeline.runs.results import Row, StageFolder
from pipeline.serve.engine import Animator
from pipeline.serve.sources import open_checkpoint
from pipeline.serve.store import describe

stage = StageFolder(run_folder, "02_optimize", "The same model, faster")
before = {}
if not checkpoint:
    checkpoint = stage.read("01_teacher", "source") or ""
    before = stage.read("01_teacher", "evaluation") or {}
animator = open_checkpoint(checkpoint)
pipe = animator.pipe
held_out = HeldOut.of(judged_on, animator.name, evaluation_clips, seed)
print(f"{animator.name}: {animator.info.passes} passes of {type(pipe.network).__name__}")

# %% [markdown]
# ## The ladder
#
# All rungs take turns, so that a drift of the machine hits them alike; the first turn warms up and is
# where memory, operations and frames are looked at. A rung in red is kept by the ones after it. Half
# precision is tried on this very machine: on a GPU it is the largest gain, most CPUs only emulate it.

# %%
names = [name.strip() for name in rungs.split(",")] if rungs else None
result = bench(pipe, animator.name, "notebook", stage.path, names, repeats, tell=news)
write(result, stage.path)
ladder = plot_ladder(result.rungs)
stage.picture("ladder", "The ladder", "Seconds of a request; red rungs are kept by those after them.", ladder)
ladder

# %%
print(markdown(result))

# %% [markdown]
# What each precision does to one pass of the network and one decoded frame. The solver's arithmetic and the
# latents between steps are float32 in any case.

# %%
show_rows(
    [
        Row(name=f"{t.component}, {t.dtype}", value=1000 * t.seconds, unit="ms", note=f"{t.psnr_db} dB to float32")
        for t in result.trials
    ]
)

# %% [markdown]
# ## Fewer steps for the same error
#
# A diffusion model defines a curve from noise to clip, and a solver follows it in steps. Against a fine
# reference from the same noise, the error of three of them. Of schedules with betas these are DDIM, and
# DPM-Solver++ on timesteps that are uniform and on a grid uniform in log-SNR; of flow matching, which the
# shipped teacher has, Euler's method, UniPC, and DPM-Solver++ on that grid. Noise levels that neither betas
# nor a shift give (Stable Video Diffusion, CogVideoX 1.0) keep their own solver.

# %%
points = []
prepared = Applied()
prepared.fits(lambda: prepare_once(pipe))
own_solver = solver_problem(pipe.scheduler)
if own_solver:
    print(own_solver)
if convergence_clips and not own_solver:
    images, captions = held_out.batch(pipe, convergence_clips)
    sample = latent_sampler(pipe, images, captions, seed=seed)
    exact = reference_latents(sample, pipe.scheduler, reference_steps)
    samplers = compared_samplers(pipe.scheduler)
    few = [int(steps) for steps in convergence_steps.split(",")]
    for name, scheduler in samplers.items():
        points += convergence(sample, {name: scheduler}, [*few, 2 * few[-1]] if name == "DDIM" else few, exact)
    picture = plot_convergence(points)
    count = f"{convergence_clips} held-out clip{'s' if convergence_clips > 1 else ''}"
    words = f"Latents of {count} against {reference_steps} steps, same noise."
    stage.picture("convergence", "Error of the solvers", words, picture)
show_rows([Row(name=f"{p.sampler}, {p.steps} steps", value=round(p.rmse, 4)) for p in points])

# %% [markdown]
# ## What is kept
#
# The solver goes into the saved pipeline, whose weights are those of the checkpoint and are not written
# again; the precision goes into the package that 04_package makes of it. What is computed once a
# request needs no saving: the engine does it for every packaged model.

# %%
prepared.undo()
if not own_solver:
    use_solver(pipe, min(solver_steps, animator.info.steps))
figures = {r.name: r for r in result.rungs}
precision = choose(result.trials, pipe.device).get("network", torch.float32)
tried = figures.get("precision")
if tried is not None and not tried.partial and tried.speedup is not None and tried.speedup < 1:
    precision = torch.float32  # a pass gained, a whole request did not
model = stage.path / "model"
save_changed(pipe, model, pipe.name_or_path, ("scheduler",))
set_precision(pipe, precision)
optimised = Animator(pipe, describe(pipe, animator.name, {}), animator.name)
prepared.fits(lambda: prepare_once(pipe))
evaluation = held_out.evaluate(optimised)

teacher, best = figures.get("teacher"), figures.get("solver")
if teacher is not None and best is not None and best.speedup is not None:
    note = f"{best.passes} passes instead of {teacher.passes}, no training"
    stage.row("Faster than the teacher", best.speedup, "x", note, headline=True)
for r in result.rungs:
    if r.skipped is None:
        ratio = f"{r.speedup:.2f}x the teacher; " if r.speedup is not None and r is not teacher else ""
        stage.row(r.name, r.median_s, "s", f"{ratio}{r.passes} passes; {r.note}")
    else:
        stage.row(r.name, None, "", f"not applied: {r.skipped}")
context, prepare = figures.get("context"), figures.get("prepare")
if teacher is not None and teacher.flops:
    if context is not None and context.flops:
        stage.row("Operations left out by the context", 100 * (1 - context.flops / teacher.flops), "%", "once a clip")
    if prepare is not None and prepare.flops:
        share = 100 * (1 - prepare.flops / teacher.flops)
        stage.row("Operations left out by preparing", share, "%", "what is constant once a request")
if evaluation is not None:
    stage.result.rows.extend(held_out.compared_rows(evaluation, before))
show_rows(stage.result.rows)

# %%
summary = f"{animator.name}: {optimised.info.passes} passes a request instead of {animator.info.passes}, same weights."
done = stage.finish(
    summary,
    {
        "source": str(model),
        "precision": str(precision).removeprefix("torch."),
        "bench": result.to_dict(),
        "convergence": [asdict(p) for p in points],
        "evaluation": None if evaluation is None else evaluation.to_dict(),
        "machine": machine(),
        "versions": versions(),
    },
)
done.summary
