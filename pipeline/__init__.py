"""Everything about the model: checkpoint, optimise, distil, package. No HTTP, no traffic.

- `model`: what a checkpoint is and how it is sampled; `media`: pictures in, clips out.
- `optimise`: undoable changes; `serve`: a packaged model and the engine that runs it.
- `clips`, `train`: generated clips, and the teacher that is trained on them; `distill`: students of a teacher.
- `judge`: is it good; `bench`: is it fast; `packaging`: from a checkpoint to a model in the store.
- `runs`: the notebooks in order; `commands`: the command line.

`from pipeline import ImageAnimationPipeline` is the whole public surface for code that brings its own checkpoint.
`LogSNRDPMSolverScheduler` is there too, to put into pipelines of diffusers' own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model.animation import ImageAnimationPipeline, ImageAnimationPipelineOutput
    from .model.solver import LogSNRDPMSolverScheduler

__all__ = ["ImageAnimationPipeline", "ImageAnimationPipelineOutput", "LogSNRDPMSolverScheduler"]


def __getattr__(name: str) -> Any:
    # Importing diffusers takes ten seconds, which most commands do not need.
    if name == "LogSNRDPMSolverScheduler":
        from .model import solver

        return getattr(solver, name)
    if name in __all__:
        from .quiet import accept_missing_torchvision

        accept_missing_torchvision()
        from .model import animation

        return getattr(animation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
