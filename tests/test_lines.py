"""Exports as lines, to standard output or a file."""

from __future__ import annotations

import errno
import io
import math
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from helpers import channel_of, one
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_statskeeper import (
    Endpoint,
    EventMetrics,
    StatsKeeper,
    _pacing,
    _sinks,
    fan_out,
)
from trio_statskeeper._event_metrics import unchecked_event_metrics
from trio_statskeeper.lines import from_json, to_json, write_lines

LINE = "1519084040 labels=dst=a total={}\n"

# Longer than what a pipe holds, and than a batch.
LONG = EventMetrics(1519084040, 0, {"dst": "a"}, {"page": "x" * 200_000})


def export(total=1, dst="a"):
    return EventMetrics(1519084040, 0, {"dst": dst}, {"total": total})


def lines(*totals):
    return "".join(LINE.format(total) for total in totals)


async def until(condition):
    """Wait until something has been done, but fail after some time."""
    with trio.fail_after(10):
        while True:
            await trio.lowlevel.checkpoint()
            if condition():
                return


def descriptors(path):
    """Return the descriptors by which this process has `path` open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if entry.readlink() == path:
                found.append(int(entry.name))
    return found


def read_all(descriptor):
    with os.fdopen(descriptor, encoding="utf-8") as file:
        return file.read()


def reader_of(fifo):
    """Open a FIFO for reading, without waiting for who writes."""
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.log"


@pytest.fixture
def fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.fixture
def clock():
    return MockClock(autojump_threshold=0)


@pytest.fixture
def written(monkeypatch):
    """What each call of `os.write` was given."""
    calls = []
    write = os.write

    def noted(descriptor, data):
        calls.append(bytes(data))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", noted)
    return calls


# Standard output


async def test_each_export_is_a_line_on_standard_output(capsys):
    await write_lines(channel_of(export(1), export(2)))
    assert capsys.readouterr().out == lines(1, 2)


async def test_each_export_is_an_object_of_json_if_wanted(capsys):
    await write_lines(channel_of(export(1), export(2)), json=True)
    first, second = capsys.readouterr().out.splitlines()
    assert [from_json(first), from_json(second)] == [export(1), export(2)]


async def test_standard_output_is_flushed(monkeypatch):
    inner = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(inner, encoding="utf-8"))
    await write_lines(channel_of(export(1)))
    assert inner.getvalue().decode() == lines(1)


@pytest.mark.parametrize("name", ["metrics.log", None])
async def test_it_has_started_when_the_file_is_open(tmp_path, name, nursery):
    path = name and tmp_path / name
    _, receive = trio.open_memory_channel[EventMetrics](0)
    await nursery.start(write_lines, receive, path)
    assert path is None or path.exists()


async def test_standard_output_is_what_it_is_at_each_write(monkeypatch):
    first, second = io.StringIO(), io.StringIO()
    send, receive = trio.open_memory_channel[EventMetrics](0)
    monkeypatch.setattr(sys, "stdout", first)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_lines, receive)
        await send.send(export(1))
        await until(first.getvalue)
        monkeypatch.setattr(sys, "stdout", second)
        await send.send(export(2))
        send.close()
    assert first.getvalue() == lines(1)
    assert second.getvalue() == lines(2)


@pytest.mark.parametrize("dst", ["\u00e9", "\u2603", "\U0001f600", "\ud83d"])
async def test_what_standard_output_cannot_encode_is_escaped_and_reads_back(
    monkeypatch, dst
):
    inner = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(inner, encoding="ascii"))
    await write_lines(channel_of(export(dst=dst)))
    assert EventMetrics.parse(inner.getvalue().decode("ascii")).labels == {"dst": dst}


@pytest.fixture
def closed_pipe():
    read, write = os.pipe()
    os.close(read)
    # Closing it fails, too: it still has what could not be written.
    with suppress(BrokenPipeError), os.fdopen(write, "w") as pipe:
        yield pipe


async def test_a_closed_pipe_is_an_error_that_names_standard_output(
    closed_pipe, monkeypatch
):
    monkeypatch.setattr(sys, "stdout", closed_pipe)
    with pytest.raises(BrokenPipeError) as caught:
        await write_lines(channel_of(export()))
    assert str(caught.value) == "[Errno 32] Broken pipe: 'standard output'"


async def test_a_missing_standard_output_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OSError) as caught:
        await write_lines(channel_of(export()))
    assert caught.value.errno == errno.EBADF
    assert caught.value.filename == "standard output"


# Files


@pytest.mark.parametrize("kind", [str, Path])
async def test_each_export_is_a_line_of_the_file(path, kind):
    await write_lines(channel_of(export(1), export(2)), kind(path))
    assert path.read_text() == lines(1, 2)


async def test_a_file_can_have_json(path):
    await write_lines(channel_of(export(1)), path, json=True)
    assert path.read_text() == to_json(export(1)) + "\n"


async def test_the_file_is_utf_8(path):
    await write_lines(channel_of(export(dst="\u2603")), path)
    assert "dst=\u2603" in path.read_bytes().decode()


async def test_a_file_is_appended(path):
    for total in (1, 2):
        await write_lines(channel_of(export(total)), path)
    assert path.read_text() == lines(1, 2)


async def test_exports_are_written_without_waiting_for_the_next(path):
    send, receive = trio.open_memory_channel[EventMetrics](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_lines, receive, path)
        await send.send(export(1))
        await until(lambda: path.exists() and path.read_text() == lines(1))
        await send.send(export(2))
        await until(lambda: path.read_text() == lines(1, 2))
        send.close()


async def test_the_file_is_created_before_the_first_export(path):
    send, receive = trio.open_memory_channel[EventMetrics](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_lines, receive, path)
        await until(path.exists)
        send.close()
    assert path.read_text() == ""


async def test_a_torn_line_does_not_spoil_the_next(path):
    path.write_text("1519084040 labels=dst=a to")
    await write_lines(channel_of(export(1)), path)
    assert path.read_text() == "1519084040 labels=dst=a to\n" + lines(1)


async def test_partial_writes_are_completed(path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))
    await write_lines(channel_of(export(1), export(2)), path)
    assert path.read_text() == lines(1, 2)


async def test_an_error_when_the_file_is_closed_is_logged(path, caplog):
    send, receive = trio.open_memory_channel[EventMetrics](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_lines, receive, path)
        await send.send(export())
        await until(lambda: path.exists() and path.read_text())
        await wait_all_tasks_blocked()
        (descriptor,) = descriptors(path)
        os.close(descriptor)
        send.close()
    assert caplog.messages == [
        f"{path}: Bad file descriptor when closed; the last lines may be lost"
    ]


async def test_a_missing_directory_is_an_error_before_any_export(tmp_path):
    path = tmp_path / "missing" / "metrics.log"
    _send, receive = trio.open_memory_channel[EventMetrics](0)
    with pytest.raises(FileNotFoundError) as caught:
        await write_lines(receive, path)
    assert str(caught.value) == f"[Errno 2] No such file or directory: '{path}'"


async def test_a_directory_is_an_error(tmp_path):
    with pytest.raises(IsADirectoryError) as caught:
        await write_lines(channel_of(), tmp_path)
    assert caught.value.filename == str(tmp_path)


async def test_a_file_that_cannot_be_read_is_appended_as_it_is(path, monkeypatch):
    path.write_text(lines(1) + "torn? ")
    opened = Path.open

    def unreadable(self, mode="r", **options):
        if mode == "rb":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", unreadable)
        await write_lines(channel_of(export(2)), path)
    assert path.read_text() == lines(1) + "torn? " + lines(2)


# Rotation


async def rotated(path, rotate):
    """Write 1, rotate, and write 2 and 3."""
    send, receive = trio.open_memory_channel[EventMetrics](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_lines, receive, path)
        await send.send(export(1))
        await until(lambda: path.exists() and path.read_text() == lines(1))
        rotate()
        await send.send(export(2))
        await until(lambda: path.exists() and lines(2) in path.read_text())
        await send.send(export(3))
        send.close()


async def test_a_file_that_was_renamed_is_followed_by_a_new_one(path):
    old = path.with_suffix(".old")
    await rotated(path, lambda: path.rename(old))
    assert (old.read_text(), path.read_text()) == (lines(1), lines(2, 3))


async def test_a_file_that_was_replaced_is_left(path):
    old = path.with_suffix(".old")

    def rotate():
        path.rename(old)
        path.write_text("begun")

    await rotated(path, rotate)
    assert (old.read_text(), path.read_text()) == (lines(1), "begun\n" + lines(2, 3))


async def test_a_file_that_was_deleted_is_created_again(path):
    await rotated(path, path.unlink)
    assert path.read_text() == lines(2, 3)


async def test_a_file_that_was_emptied_is_written_from_its_beginning(path):
    await rotated(path, lambda: os.truncate(path, 0))
    assert path.read_text() == lines(2, 3)


async def test_a_file_that_was_rotated_away_is_closed(path):
    old = path.with_suffix(".old")
    send, receive = trio.open_memory_channel[EventMetrics](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_lines, receive, path)
        await send.send(export(1))
        await until(lambda: path.exists() and path.read_text())
        path.rename(old)
        await send.send(export(2))
        await until(lambda: path.exists() and path.read_text())
        assert not descriptors(old)
        send.close()


# Outages


class Disk:
    """A disk that has so much room, or refuses to work."""

    def __init__(self):
        self.room = math.inf
        self.fault = errno.ENOSPC
        self.attempts = []
        self._write = os.write

    def write(self, file, data):
        if not self.room:
            self.attempts.append(trio.current_time())
            raise OSError(self.fault, os.strerror(self.fault))
        taken = int(min(self.room, len(data)))
        self.room -= taken
        return self._write(file, data[:taken])


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr(os, "write", disk.write)
    return disk


@asynccontextmanager
async def writing(path):
    """Write what is sent, in the background, until the block is left."""
    send, receive = trio.open_memory_channel[EventMetrics](0)
    async with trio.open_nursery() as nursery:
        await nursery.start(write_lines, receive, path)
        with send:
            yield send


@pytest.mark.parametrize(
    "fault", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EBADF]
)
async def test_an_outage_loses_all_but_the_newest_and_is_logged_once(
    path, disk, caplog, clock, fault
):
    disk.fault = fault
    async with writing(path) as send:
        await send.send(export(1))
        await trio.sleep(1)
        disk.room = 0
        for total in range(2, 42):
            await send.send(export(total))
            if total < 5:
                await send.send(export(total, "soon stale"))
            if total > 20:
                await send.send(export(total, "b"))
            await trio.sleep(1)
        disk.room = math.inf
        await trio.sleep(30)
        await send.send(export(42))
    newest = [str(export(41)), str(export(41, "b"))]
    assert path.read_text().splitlines() == [str(export(1)), *newest, str(export(42))]
    assert caplog.messages == [
        f"{path}: {os.strerror(fault)}; retrying",
        f"{path}: recovered; {40 + 3 + 21 - 2} exports were lost",
    ]


async def test_the_delay_between_attempts_grows_to_half_a_minute(path, disk, clock):
    disk.room = 0
    async with writing(path) as send:
        await send.send(export())
        await trio.sleep(120)
        pauses = [later - sooner for sooner, later in pairwise(disk.attempts)]
        assert pauses == pytest.approx([1, 2, 4, 8, 16, 30, 30])


async def test_a_disk_that_fills_up_within_a_line_loses_no_other_line(
    path, disk, caplog, clock
):
    caplog.set_level("INFO", "trio_statskeeper")
    path.write_text("torn")
    disk.room = 55
    async with writing(path) as send:
        for each in (export(1), export(2, "b"), export(3, "c")):
            await send.send(each)
        await trio.sleep(5)
        disk.room = math.inf
    before = f"torn\n{export(1)}\n{export(2, 'b')}"[: len("torn") + 55]
    assert path.read_text() == f"{before}\n{export(2, 'b')}\n{export(3, 'c')}\n"
    assert caplog.messages == [
        f"{path}: No space left on device; retrying",
        f"{path}: recovered",
    ]


async def test_after_an_outage_the_newest_of_many_targets_is_written(path, disk, clock):
    disk.room = 0
    exports = [export(1, f"host{number}") for number in range(350)]
    async with writing(path) as send:
        for each in exports:
            await send.send(each)
        await trio.sleep(0.5)
        disk.room = math.inf
        await trio.sleep(10)
        assert path.read_text().splitlines() == list(map(str, exports))


async def test_an_outage_ends_even_if_most_exports_are_stale(path, disk, clock):
    disk.room = 0
    async with writing(path) as send:
        for number in range(1_500):
            await send.send(export(1, f"host{number}"))
        await trio.sleep(100)
        await send.send(export(2, "host0"))
        disk.room = math.inf
        await trio.sleep(100)
        await send.send(export(3, "host0"))
        await trio.sleep(1)
        assert path.read_text().splitlines()[-1] == str(export(3, "host0"))


def swap_in_a_directory(path):
    path.unlink()
    path.mkdir()
    return path.rmdir


def swap_in_a_loop(path):
    path.unlink()
    path.symlink_to(path)
    return path.unlink


def swap_in_a_fifo(path):
    path.unlink()
    os.mkfifo(path)
    return path.unlink


def remove_the_directory(path):
    shutil.rmtree(path.parent)
    return path.parent.mkdir


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (swap_in_a_directory, errno.EISDIR),
        (swap_in_a_loop, errno.ELOOP),
        (swap_in_a_fifo, errno.ENXIO),
        (remove_the_directory, errno.ENOENT),
    ],
)
async def test_a_path_that_is_damaged_for_a_while_is_written_again(
    tmp_path, caplog, clock, damage, fault
):
    caplog.set_level("INFO", "trio_statskeeper")
    path = tmp_path / "logs" / "metrics.log"
    path.parent.mkdir()
    async with writing(path) as send:
        await send.send(export(1))
        await trio.sleep(1)
        repair = damage(path)
        await send.send(export(2))
        await trio.sleep(5)
        repair()
        await trio.sleep(30)
        await send.send(export(3))
    assert path.read_text() == lines(2, 3)
    assert caplog.messages == [
        f"{path}: {os.strerror(fault)}; retrying",
        f"{path}: recovered",
    ]


async def test_another_cause_in_the_same_outage_is_logged_too(path, disk, caplog, clock):
    disk.room = 0
    async with writing(path) as send:
        await send.send(export())
        for fault in (errno.EIO, errno.ENOSPC, errno.EIO):
            await trio.sleep(20)
            disk.fault = fault
    assert [message.rpartition(": ")[2] for message in caplog.messages] == [
        "No space left on device; retrying",
        "Input/output error; retrying",
        "not recovered; 1 exports were lost",
    ]


@pytest.mark.parametrize("how", ["end", "cancellation"])
@pytest.mark.parametrize("room", [0, math.inf])
async def test_an_outage_ends_with_one_last_attempt(  # noqa: PLR0913, PLR0917
    path, disk, clock, caplog, how, room
):
    disk.room = 0
    with trio.CancelScope() as scope:
        async with writing(path) as send:
            await send.send(export(1))
            await trio.sleep(20)
            await send.send(export(2))
            await send.send(export(3, "b"))
            disk.room = room
            if how == "cancellation":
                scope.cancel()
                await trio.lowlevel.checkpoint()
    written = f"{export(2)}\n{export(3, 'b')}\n" if room else ""
    assert path.read_text() == written
    end = "recovered; 1 exports were lost" if room else "not recovered; 3 exports were lost"
    assert caplog.messages[-1] == f"{path}: {end}"


def test_a_keyboard_interrupt_ends_an_outage(path, monkeypatch, caplog):
    def full(file, data):
        signal.raise_signal(signal.SIGINT)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    _send, receive = trio.open_memory_channel[EventMetrics](1)
    _send.send_nowait(export())
    with pytest.raises(KeyboardInterrupt):
        trio.run(write_lines, receive, path)
    assert caplog.messages[-1] == f"{path}: not recovered; 1 exports were lost"


# Files that are not regular


async def test_a_fifo_can_be_written(fifo):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_lines, channel_of(export(1)), fifo)
        assert await trio.to_thread.run_sync(fifo.read_text) == lines(1)


async def test_a_fifo_without_a_reader_does_not_block_the_loop(fifo):
    go = threading.Event()

    def read():
        # Otherwise this test would wait forever if the loop were blocked.
        return go.wait(10), fifo.read_text()

    async def release():
        await wait_all_tasks_blocked()
        go.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_lines, channel_of(export(1)), fifo)
        nursery.start_soon(release)
        assert await trio.to_thread.run_sync(read) == (True, lines(1))


async def test_waiting_for_the_reader_of_a_fifo_can_be_cancelled(fifo):
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_lines, channel_of(export(1)), fifo)
            await wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    # The thread waits on; what it opens is closed at once.
    assert await trio.to_thread.run_sync(fifo.read_text) == ""


async def test_a_file_that_opens_only_after_a_cancellation_is_closed_and_left_as_it_was(
    tmp_path, monkeypatch
):
    path = tmp_path / "metrics.log"
    path.write_text("torn")
    go, opened = threading.Event(), []

    def slowly(*args, **options):
        go.wait()
        opened.append(io.FileIO(*args, **options))
        return opened[-1]

    monkeypatch.setattr(_sinks, "FileIO", slowly)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_lines, channel_of(export(1)), path)
            await wait_all_tasks_blocked()
            scope.cancel()
    go.set()
    await until(lambda: opened and opened[0].closed)
    assert path.read_bytes() == b"torn"


async def test_a_fifo_that_lost_its_reader_is_a_broken_pipe(fifo):
    reader = reader_of(fifo)
    send, receive = trio.open_memory_channel[EventMetrics](0)
    with pytest.RaisesGroup(BrokenPipeError) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_lines, receive, fifo)
            await send.send(export(1))
            os.close(reader)
            await send.send(export(2))
    (error,) = caught.value.exceptions
    assert str(error) == f"[Errno 32] Broken pipe: '{fifo}'"


async def test_a_link_to_a_descriptor_can_be_written(tmp_path):
    read, write = os.pipe()
    await write_lines(channel_of(export(1)), f"/dev/fd/{write}")
    os.close(write)
    assert await trio.to_thread.run_sync(read_all, read) == lines(1)


# Batches


@pytest.fixture
def last_pass():
    """Return a keeper that makes one pass over fifty targets, and its arguments."""
    endpoints = [Endpoint(f"host{number}") for number in range(50)]
    send, results = trio.open_memory_channel(50)
    for endpoint in endpoints:
        send.send_nowait(one(endpoint.key))
    send.close()
    return StatsKeeper("http", "homepage", lambda: endpoints).run, results


@pytest.mark.parametrize("buffer", [0, 10, math.inf])
async def test_a_pass_of_the_keeper_is_one_write(path, written, last_pass, clock, buffer):
    send, exports = trio.open_memory_channel[EventMetrics](buffer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_lines, exports, path)
        await until(path.exists)
        await wait_all_tasks_blocked()
        nursery.start_soon(*last_pass, send)
    assert [data.count(b"\n") for data in written] == [50]


async def test_a_pass_through_fan_out_is_one_write(path, written, last_pass, clock):
    send, exports = trio.open_memory_channel[EventMetrics](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fan_out, exports, partial(write_lines, path=path))
        await until(path.exists)
        await wait_all_tasks_blocked()
        nursery.start_soon(*last_pass, send)
    assert [data.count(b"\n") for data in written] == [50]


class Watched(int):
    """A value that calls a function when its line is made."""

    def __new__(cls, call):
        watched = super().__new__(cls, 1)
        watched.call = call
        return watched

    def __str__(self):
        self.call()
        return "1"


def watched(call):
    metrics = {"total": Watched(call)}
    return unchecked_event_metrics(1519084040, 0, {"dst": "a"}, metrics, 1, 10)


@pytest.fixture
def working_time(monkeypatch):
    """A clock that moves only where a test moves it: `working_time[0] += seconds`."""
    now = [0.0]
    monkeypatch.setattr(_pacing, "perf_counter", lambda: now[0])
    return now


async def test_formatting_lines_pauses_within_a_millisecond(path, working_time, clock):
    turns, turn = [], 0

    def work():
        turns.append(turn)
        working_time[0] += 0.000_1

    async with trio.open_nursery() as nursery:
        exports = channel_of(*[watched(work) for _ in range(50)])
        nursery.start_soon(write_lines, exports, path)
        while len(turns) < 50:
            await trio.lowlevel.checkpoint()
            turn += 1
    # Trio runs tasks in any order: two steps may come between two turns of this task.
    assert max(Counter(turns).values()) < 2 * 10


async def test_in_a_busy_loop_a_pass_of_two_thousand_targets_takes_less_than_a_second(
    path, written, working_time, clock
):
    def work():
        working_time[0] += 0.000_02

    async def keep_busy():
        while True:
            clock.jump(0.01)
            await trio.lowlevel.checkpoint()

    async def send_in_turn():
        for each in exports:
            await send.send(each)

    exports = iter([watched(work) for _ in range(2_000)])
    send, receive = trio.open_memory_channel[EventMetrics](0)
    async with trio.open_nursery() as busy:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_lines, receive, path)
            await until(path.exists)
            busy.start_soon(keep_busy)
            start = trio.current_time()
            async with trio.open_nursery() as senders:
                for _ in range(100):
                    senders.start_soon(send_in_turn)
            send.close()
        assert trio.current_time() - start < 1
        busy.cancel_scope.cancel()
    assert sum(data.count(b"\n") for data in written) == 2_000
    assert len(written) <= 20


async def test_a_batch_is_bounded(path, written):
    export = EventMetrics(0, 0, {}, {"page": "x" * 10_000})
    await write_lines(channel_of(*[export] * 30), path)
    assert [data.count(b"\n") for data in written] == [14, 14, 2]


async def test_a_stuck_disk_does_not_block_the_loop(fifo):
    reader = reader_of(fifo)
    go = threading.Event()

    def read():
        # Otherwise this test would wait forever if the loop were blocked.
        return go.wait(10), read_all(reader)

    exports = channel_of(LONG)

    async def release():
        await until(lambda: not exports.statistics().current_buffer_used)
        await wait_all_tasks_blocked()
        go.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_lines, exports, fifo)
        nursery.start_soon(release)
        assert await trio.to_thread.run_sync(read) == (True, f"{LONG}\n")


@pytest.mark.parametrize("to_file", [True, False])
async def test_a_mock_clock_does_not_jump_while_lines_are_written(
    path, clock, to_file, monkeypatch
):
    async def in_a_thread_that_is_slow(function, **options):
        await trio.sleep(1000)
        return function()

    run_sync = in_a_thread_that_is_slow
    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    began = trio.current_time()
    await write_lines(channel_of(export(1), export(2)), path if to_file else None)
    assert trio.current_time() == began


# The end


async def test_cancellation_waits_for_the_write_and_tears_no_line(fifo):
    reader = reader_of(fifo)
    exports = channel_of(export(1), LONG, export(3))
    ended = trio.Event()

    async def write():
        try:
            await write_lines(exports, fifo)
        finally:
            ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await until(lambda: exports.statistics().current_buffer_used == 1)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
            assert not ended.is_set()
            text = await trio.to_thread.run_sync(read_all, reader)
    assert text == f"{export(1)}\n{LONG}\n"


async def test_exports_received_before_a_cancellation_are_written(path):
    with trio.CancelScope() as scope:
        exports = channel_of(watched(scope.cancel), export(2), export(3))
        await write_lines(exports, path)
    assert scope.cancelled_caught
    assert path.read_text() == lines(1, 2, 3)


async def test_it_can_be_cancelled_while_it_waits(path):
    send, receive = trio.open_memory_channel[EventMetrics](0)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_lines, receive, path)
            await send.send(export(1))
            await until(lambda: path.exists() and path.read_text())
            scope.cancel()
    assert scope.cancelled_caught
    assert path.read_text() == lines(1)


def test_a_keyboard_interrupt_loses_no_export_that_was_received(path):
    async def main():
        interrupting = watched(lambda: signal.raise_signal(signal.SIGINT))
        await write_lines(channel_of(interrupting, export(2)), path)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert path.read_text() == lines(1, 2)
    assert not descriptors(path)


def test_a_keyboard_interrupt_waits_for_the_write(path, monkeypatch):
    write = os.write
    begun = []

    def interrupted(file, data):
        begun.append(bytes(data))
        signal.raise_signal(signal.SIGINT)
        trio.from_thread.run_sync(int)  # the loop has noticed
        return write(file, data)

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trio.run(write_lines, channel_of(export(1)), path)
    assert begun == [lines(1).encode()]
    assert path.read_text() == lines(1)


async def end(path):
    exports = channel_of(export())
    await write_lines(exports, path)
    return exports


async def be_cancelled(path):
    with trio.CancelScope() as scope:
        exports = channel_of(watched(scope.cancel))
        await write_lines(exports, path)
    assert scope.cancelled_caught
    return exports


async def fail_to_open(path):
    exports = channel_of(export())
    with pytest.raises(FileNotFoundError):
        await write_lines(exports, path / "missing")
    return exports


async def fail_to_write(path):
    path.symlink_to("/dev/full")
    exports = channel_of(export())
    await write_lines(exports, path)
    return exports


@pytest.mark.parametrize("way_out", [end, be_cancelled, fail_to_open, fail_to_write])
async def test_the_exports_and_the_file_are_closed_however_it_ends(path, way_out):
    exports = await way_out(path)
    assert exports.statistics().open_receive_channels == 0
    assert not descriptors(path.resolve())


@pytest.mark.parametrize("path", [b"metrics.log", 1])
async def test_the_exports_are_closed_even_if_the_path_is_none(path):
    exports = channel_of(export())
    with pytest.raises(TypeError):
        await write_lines(exports, path)
    assert exports.statistics().open_receive_channels == 0
