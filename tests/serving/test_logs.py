"""Lines of JSON, and the id that they carry."""

import io
import json
import logging

import pytest

from pipeline.spans import listen, part
from serving.logs import ABOUT, EscapeControls, JsonFormatter, id_of, request_id
from serving.settings import Settings, SettingsError
from serving.tracing import Tracing, make_tracing


@pytest.fixture
def logger():
    """A logger, and what it has written."""
    made, written = logging.getLogger("test-of-logs"), io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter("us-east"))
    made.addHandler(handler)
    made.setLevel(logging.INFO)
    made.lines = lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    yield made
    made.removeHandler(handler)


def test_a_line_says_when_what_and_of_which_request(logger):
    token = request_id.set("abc-1")
    try:
        logger.info("job %s", "ok", extra={ABOUT: {"status": 200}})
    finally:
        request_id.reset(token)
    logger.warning("two\nlines, ü and \u2028")
    first, second = logger.lines()
    assert first | {"time": ""} == {
        "time": "",
        "level": "info",
        "logger": "test-of-logs",
        "region": "us-east",
        "message": "job ok",
        "request_id": "abc-1",
        "status": 200,
    }
    assert first["time"].endswith("+00:00")
    assert second["message"] == "two\nlines, ü and \u2028"
    assert "request_id" not in second


@pytest.mark.parametrize("odd", ["\x00", "\x1b[31m", "\r", "\x7f", "\x9b31m"])
def test_what_acts_on_a_terminal_is_escaped_in_a_text_log_and_lines_stay_lines(odd):
    logger, written = logging.getLogger("test-of-text"), io.StringIO()
    handler = logging.StreamHandler(written)
    handler.addFilter(EscapeControls())
    logger.addHandler(handler)
    logger.warning("asked for %s,\n\tof %d é", f"/a{odd}", 2)
    logger.removeHandler(handler)
    line = written.getvalue()
    assert line == f"asked for /a\\x{ord(odd[0]):02x}{odd[1:]},\n\tof 2 é\n"


def test_an_error_brings_where_it_was_raised(logger):
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("it failed")
    (line,) = logger.lines()
    assert line["level"] == "error"
    assert "ValueError: no" in line["exception"]


def test_an_id_is_taken_over_where_it_can_stand_in_a_log():
    assert id_of(b"ee4797d0-353d-477f-9391-4db488f10828") == "ee4797d0-353d-477f-9391-4db488f10828"
    for odd in (None, b"", b"a b", b'"}{', b"\xff", b"x" * 129, b"a\nb"):
        made = id_of(odd)
        assert len(made) == 36
        assert made != id_of(odd)


def test_who_does_not_listen_hears_nothing_and_who_does_hears_each_part_as_it_ends():
    heard = []

    class Heard:
        def __init__(self, name, about):
            self.text = (name, dict(about))

        def __enter__(self):
            heard.append(("begins", *self.text))

        def __exit__(self, *_):
            heard.append(("ends", *self.text))

    with part("step", step=1):
        pass
    with listen(Heard):
        with part("step", step=2):
            pass
        with pytest.raises(KeyError), part("step", step=3):
            raise KeyError
        with listen(None), part("step", step=4):
            pass
    with part("step", step=5):
        pass
    assert heard == [(when, "step", {"step": step}) for step in (2, 3) for when in ("begins", "ends")]


def test_without_a_collector_nothing_is_traced():
    tracing = make_tracing(Settings())
    assert type(tracing) is Tracing
    with tracing.request("POST", "/animate", {b"traceparent": b"00-1-2-01"}) as trace:
        with trace.part("receive"), trace.around("compute") as listener:
            assert listener is None
        trace.note(status=200)


@pytest.mark.parametrize("name", ["traces", "log"])
def test_a_setting_that_cannot_be_used_is_named(name):
    with pytest.raises(SettingsError, match=f"STILLMOTION_{name.upper()}='collector:4318'"):
        Settings.from_environment({f"STILLMOTION_{name.upper()}": "collector:4318"})
