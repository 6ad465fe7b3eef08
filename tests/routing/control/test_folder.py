import asyncio
import os

import pytest

from routing.control.publishing import Leader
from routing.errors import RoutingError


def test_one_has_it_at_a_time_and_the_other_says_who(tmp_path):
    with Leader(tmp_path) as first, Leader(tmp_path) as second:
        assert first.take()
        assert not second.take()
        assert second.holder() == f"process {os.getpid()}"
        first.release()
        assert second.take()


def test_who_waits_takes_over_or_is_stopped(tmp_path):
    async def go():
        stop = asyncio.Event()
        with Leader(tmp_path) as first, Leader(tmp_path) as second:
            assert first.take()
            waiting = asyncio.create_task(second.wait(stop))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            first.release()
            assert await asyncio.wait_for(waiting, 60)
            waiting = asyncio.create_task(first.wait(stop))
            await asyncio.sleep(0)
            stop.set()
            assert not await asyncio.wait_for(waiting, 60)

    asyncio.run(go())


def test_a_lock_file_with_rubbish_in_it_is_no_obstacle(tmp_path):
    (tmp_path / "control.lock").write_bytes(b"\xff\xfe")
    with Leader(tmp_path) as leader:
        assert leader.holder() == "another process"
        assert leader.take()


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(RoutingError, match=r"control\.lock: cannot be opened \(No such file"):
        Leader(tmp_path / "none").take()
