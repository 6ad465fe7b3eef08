"""Keeps what libraries say to their developers away from the people who use ours."""

from __future__ import annotations

import logging
import warnings


def accept_missing_torchvision() -> None:
    """Drop one message of transformers: without torchvision it takes the image processor that we want anyway."""
    logger = logging.getLogger("transformers.utils.import_utils")
    logger.addFilter(lambda record: "requires torchvision (not installed)" not in record.getMessage())


def quiet_libraries() -> None:
    """Let libraries report errors only, and draw no progress bars; ours are enough.

    Call it before a model is loaded. It imports the libraries, which takes seconds.
    """
    # tqdm, imported by all of them, asks for widgets in notebooks; no bar of theirs is ever drawn.
    warnings.filterwarnings("ignore", message="IProgress not found")
    # transformers says at import that torchvision is missing, through a logger of this name.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()  # type: ignore[no-untyped-call,unused-ignore]
        library.disable_progress_bar()  # type: ignore[no-untyped-call,unused-ignore]
    disable_progress_bars()
    # Commands and servers say by themselves when a prompt is read in part.
    logging.getLogger("pipeline.model.prompts").setLevel(logging.ERROR)
    # The published I2VGen-XL and PIA classes announce their own deprecation on each import.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(accelerate|diffusers|transformers|torch)\.")
