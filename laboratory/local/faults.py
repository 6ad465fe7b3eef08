"""What may be made to go wrong with a stand-in, for tests of everything around it."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import Field

from routing.errors import InputError
from routing.schema import Count, Number, Positive, Strict, validated


class Faults(Strict):
    """What is wrong now.

    Attributes:
        ready: whether `/readyz` says so, and jobs are taken.
        slowness: factor of the time that jobs take.
        admission: jobs that are taken at once. They are computed one after the other all the same, so that above 1
            some wait at a server that seems to have taken them.
        down_s: the stand-in is gone for so long once, its connections cut; 0: it is not.
    """

    ready: bool = True
    slowness: Annotated[Positive, Field(le=1000)] = 1.0
    admission: Annotated[Count, Field(ge=1, le=100)] = 1
    down_s: Annotated[Number, Field(le=3600)] = 0.0


def parse(text: bytes, now: Faults) -> Faults:
    """Read faults as JSON has them, such as `{"slowness": 2}`; what it leaves out stays as it is, but for `down_s`.

    Raises:
        InputError: with what is wrong.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"is no JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError("give an object")
    return validated(Faults, {**now.model_dump(), "down_s": 0.0, **content})
