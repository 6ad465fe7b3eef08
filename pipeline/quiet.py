"""Keeps what libraries say to their developers away from the people who use ours."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Let libraries report errors only, and draw no progress bars; ours are enough.

    Call it before a model is loaded. It imports the libraries, which takes seconds.
    """
    # transformers says at import that torchvision is missing, through a logger of this name.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    import diffusers.utils.logging as diffusers_logging
    import huggingface_hub.utils as hub
    import transformers.utils.logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()  # type: ignore[no-untyped-call,unused-ignore]
        library.disable_progress_bar()  # type: ignore[no-untyped-call,unused-ignore]
    hub.disable_progress_bars()
    # The published I2VGen-XL and PIA classes announce their own deprecation on each import.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(diffusers|transformers|torch)\.")
