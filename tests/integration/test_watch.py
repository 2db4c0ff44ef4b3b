"""examples/watch.py, as a user runs it: in a terminal, and in none."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pyte
import pytest

from trio_statskeeper import EventMetrics

PROGRAM = Path(__file__).parents[2] / "examples/watch.py"
# A timeout so long that only the closed port fails.
FAST = ("--interval", "0.1", "--timeout", "10", "--export-interval", "0.25")
WIDTH, HEIGHT = 80, 24

HEADER = r"target +success +p50 ms +p99 ms +updated"
NUMBERS = r" +\d+% +\d+\.\d +\d+\.\d +\d+ s ago"
NO_LATENCY = r" +0% +- +- +\d+ s ago"

# Makes the terminal the program's own, so that Ctrl-C in it is a signal to the program.
IN_FOREGROUND = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Terminal:
    """A program in a terminal of its own, and what one sees there."""

    def __init__(self, *args: str) -> None:
        self.screen = pyte.Screen(WIDTH, HEIGHT)
        self._emulator = pyte.ByteStream(self.screen)
        self._keyboard, inside = pty.openpty()
        size = struct.pack("HHHH", HEIGHT, WIDTH, 0, 0)
        fcntl.ioctl(inside, termios.TIOCSWINSZ, size)
        # What the tests' own environment says about its terminal is not meant here.
        env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.program = subprocess.Popen(
            [sys.executable, "-c", IN_FOREGROUND, PROGRAM, *args],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env={**env, "TERM": "xterm-256color", "PYTHONUTF8": "1"},
            start_new_session=True,
        )
        os.close(inside)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.program.kill()
        self.program.wait()
        os.close(self._keyboard)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def read_until(self, pattern: str) -> None:
        """Read what the program writes, until the screen's text contains the pattern."""
        deadline = time.monotonic() + 30
        while not re.search(pattern, self.text):
            self._read(deadline)

    def press_ctrl_c(self) -> int:
        """Return the exit status, when all that the program wrote since is read."""
        os.write(self._keyboard, b"\x03")
        deadline = time.monotonic() + 30
        try:
            while True:
                self._read(deadline)
        except EOFError:
            return self.program.wait(timeout=30)

    def _read(self, deadline: float) -> None:
        wait = max(deadline - time.monotonic(), 0)
        if not select.select([self._keyboard], [], [], wait)[0]:
            pytest.fail(f"too late; the screen is\n{self.text}")
        try:
            written = os.read(self._keyboard, 65_536)
        except OSError:  # Linux' way to say that nobody has it open any more
            written = b""
        if not written:
            raise EOFError(self.text)
        self._emulator.feed(written)


def test_in_a_terminal_it_shows_a_table_that_stays_there_when_ctrl_c_ends_it():
    with Terminal(*FAST) as terminal:
        well = rf"http://127\.0\.0\.1:\d+/{NUMBERS}"
        flaky = rf"http://127\.0\.0\.1:\d+/flaky{NUMBERS}"
        closed = rf"http://127\.0\.0\.1:\d+/{NO_LATENCY}"
        table = rf"(?m)^{HEADER}\n{well}\n{flaky}\n{closed}"
        terminal.read_until(table)
        assert terminal.press_ctrl_c() == 0
        # The ^C that terminals show has not pushed it down, nor is it left in it.
        assert re.search(rf"{table}\Z", terminal.text)
        assert terminal.text.count("success") == 1
        assert "Traceback" not in terminal.text
        assert not terminal.screen.cursor.hidden


def test_a_failure_that_is_logged_later_leaves_the_table_whole():
    # Connections to it are open, but never answered.
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        options = ("--interval", "0.1", "--timeout", "0.2", "--export-interval", "0.25")
        with Terminal(*options, url) as terminal:
            terminal.read_until(rf"(?m)^{HEADER}\n{url}{NO_LATENCY}\Z")
            server.close()
            terminal.read_until(rf"(?m)^{url}: probe failed: \w+Error")
            assert terminal.press_ctrl_c() == 0
    progress, *log, header, row = terminal.text.splitlines()
    assert progress.startswith("Probing every 0.1 s")
    assert log[0].startswith(f"{url}: probe failed: ")
    assert re.fullmatch(HEADER, header)
    assert re.fullmatch(url + NO_LATENCY, row)
    assert terminal.text.count("success") == 1


def test_a_long_url_is_shortened_in_its_middle_so_that_no_row_is_wrapped():
    url = f"http://127.0.0.1:1/{'long/' * 30}end"
    with Terminal(*FAST, url) as terminal:
        terminal.read_until(rf"(?m)^http://127\.0\.[^ ]*…[^ ]*long/end{NO_LATENCY}$")
        assert terminal.press_ctrl_c() == 0
        assert re.search(rf"(?m)^{HEADER}\n.*….*{NO_LATENCY}\Z", terminal.text)


def test_of_more_targets_than_there_is_room_for_the_worst_are_shown():
    urls = [f"http://127.0.0.1:1/{number}" for number in range(30)]
    with Terminal(*FAST, *urls) as terminal:
        terminal.read_until(rf"(?m)^{HEADER}\n(.+ s ago\n){{22}}… 8 that do no worse\Z")
        assert terminal.press_ctrl_c() == 0


def test_where_there_is_no_terminal_it_prints_lines():
    program = subprocess.run(
        [sys.executable, PROGRAM, *FAST, "--for", "1.5"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    exports = [EventMetrics.parse(line) for line in program.stdout.splitlines()]
    assert len({export.labels["dst"] for export in exports}) == 3
    assert exports[-1].metrics["total"] > 0


def test_help_tells_what_it_does_and_each_option():
    program = subprocess.run(
        [sys.executable, PROGRAM, "--help"], capture_output=True, text=True, check=True
    )
    for word in ("table", "URL", "--interval", "--timeout", "--export-interval", "--for"):
        assert word in program.stdout
