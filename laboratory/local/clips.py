"""The animations that stand-ins answer with: three frames of 16 x 16 pixels, as GIF."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Literal

Clip = Literal["moving", "still", "black"]

CLIPS: Mapping[Clip, bytes] = {
    # A bright square that moves to the right on a grey ground.
    "moving": base64.b64decode(
        "R0lGODlhEAAQAIEAAAAAADw8PD09Pf///yH/C05FVFNDQVBFMi4wAwEAAAAh+QQADAAAACwAAAAAEAAQAAAIKAADCBxIsKDBgwgTKlzIUOCA"
        "hw8XQoyocOIAiRMxQmzIsaPHjyA5BgQAIfkEAAwAAAAsAAAFAAoABQCBAAAAPDw8PT09////CBcAAwgUOKBgwYEEDQ5AGEDhQoQOGToMCAAh"
        "+QQADAAAACwFAAUACgAFAIEAAAA8PDw9PT3///8IFwADCBQ4oGDBgQQNDkAYQOFChA4ZOgwIADs="
    ),
    # The square stays where it is.
    "still": base64.b64decode(
        "R0lGODlhEAAQAIEAAAAAADw8PD09Pf///yH/C05FVFNDQVBFMi4wAwEAAAAh+QQADAAAACwAAAAAEAAQAAAIKAADCBxIsKDBgwgTKlzI8OCA"
        "hw8XQoyocOIAiRMxQmzIsaPHjyATBgQAIfkEAAwAAAAsAAAAAAEAAQCBAAAAPDw8PT09////CAQABQQEACH5BAAMAAAALAAAAAABAAEAgQAA"
        "ADw8PD09Pf///wgEAAMEBAA7"
    ),
    # Nothing is there, but for one pixel that is a little brighter now and then.
    "black": base64.b64decode(
        "R0lGODlhEAAQAIEAAAAAADw8PD09Pf///yH/C05FVFNDQVBFMi4wAwEAAAAh+QQADAAAACwAAAAAEAAQAAAIHQABCBxIsKDBgwgTKlzIsKHD"
        "hxAjSpxIsaLFgQEBACH5BAAMAAAALAAAAAABAAEAgQAAADw8PD09Pf///wgEAAMEBAAh+QQADAAAACwAAAAAAQABAIEAAAA8PDw9PT3///8I"
        "BAABBAQAOw=="
    ),
}
