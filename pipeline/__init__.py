"""Everything about the model: checkpoint, optimise, distil, package. No HTTP, no traffic.

- `animation`: `ImageAnimationPipeline`, a still picture and a prompt to a clip.
- `families`, `guidance`: how checkpoints of each kind are conditioned, and how branches are combined.
- `clips`, `train`: generated clips, and the training of the embedded teacher on them.
- `store`, `engine`: packaged models, and what a server needs to run one.
- `images`, `video`: pictures in, clips out.

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
