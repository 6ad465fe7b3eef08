"""Pictures and videos, in a folder and in a real S3 server."""

from __future__ import annotations

import asyncio

import pytest

from jobs.errors import SettingsError, StorageError
from jobs.files import Files, part
from jobs.records import new_id


@pytest.fixture(params=["folder", "s3"])
def files(request, tmp_path):
    return Files(tmp_path.as_uri() if request.param == "folder" else request.getfixturevalue("s3").url)


def run(work):
    return asyncio.run(work)


def test_what_is_written_is_read_whole_or_in_part(files):
    async def work():
        await files.put("a", "video", b"0123456789")
        assert await files.get("a", "video") == b"0123456789"
        size, chunks = await files.open("a", "video")
        assert (size, b"".join([chunk async for chunk in chunks])) == (10, b"0123456789")
        _, chunks = await files.open("a", "video")
        assert b"".join([chunk async for chunk in part(chunks, 2, 5)]) == b"234"
        assert await files.get("a", "other") is None
        assert await files.open("b", "video") is None

    run(work())


def test_a_part_is_the_same_whatever_the_chunks():
    async def chunks(size):
        for start in range(0, 10, size):
            yield b"0123456789"[start : start + size]

    async def work():
        for size in (1, 3, 4, 10):
            for first, end in ((0, 10), (0, 1), (2, 5), (3, 6), (4, 8), (9, 10)):
                got = b"".join([piece async for piece in part(chunks(size), first, end)])
                assert got == b"0123456789"[first:end], (size, first, end)

    run(work())


def test_a_video_without_its_end_is_no_video(files):
    async def work():
        await files.put("a", "about.json", b'{"seed": "1"}')
        assert await files.saved_video("a") is None
        await files.save_video("a", b"data", {"seed": "2"})
        assert await files.saved_video("a") == {"seed": "2"}

    run(work())


def test_nothing_of_a_removed_job_is_left_and_nothing_of_another_is_touched(files):
    first, second = new_id("video"), new_id("video")

    async def work():
        for job in (first, second):
            await files.put(job, "image", b"x")
            await files.save_video(job, b"x", {})
        await files.remove(first)
        await files.remove(first)
        assert await files.old_ids(-60) == {second}
        assert await files.old_ids(60) == set()

    run(work())


def test_what_a_killed_process_left_of_a_write_goes_with_its_job(tmp_path):
    files, job = Files(tmp_path.as_uri()), new_id("video")
    (tmp_path / job).mkdir()
    (tmp_path / job / "video#1").write_bytes(b"ha")

    async def work():
        assert await files.saved_video(job) is None
        assert await files.old_ids(-60) == {job}
        await files.remove(job)

    run(work())
    assert list(tmp_path.iterdir()) == []


def test_what_lies_beside_the_jobs_is_none_of_theirs_and_files_belong_to_one_database(files):
    async def work():
        await files.put("reports", "2026.csv", b"x")
        assert await files.belong_to("database_1")
        assert await files.belong_to("database_1")
        assert not await files.belong_to("database_2")
        assert await files.old_ids(-60) == set()

    run(work())


def test_a_full_disk_is_an_error_and_leaves_no_half_file(small_disk):
    files = Files(small_disk.as_uri())

    async def work():
        with pytest.raises(StorageError, match="space"):
            await files.put("a", "video", b"x" * 2**21)
        assert await files.get("a", "video") is None
        await files.remove("a")
        await files.put("a", "video", b"x" * 2**10)

    run(work())


def test_a_store_that_refuses_is_an_error(s3, monkeypatch):
    async def work():
        with pytest.raises(StorageError):
            await Files("s3://no-such-bucket/").put("a", "video", b"x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        with pytest.raises(StorageError):
            await Files(s3.url).put("a", "video", b"x")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(StorageError):
            await Files(s3.url).get("a", "video")

    run(work())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SettingsError, match="files: "):
        Files((tmp_path / "file" / "folder").as_uri())
