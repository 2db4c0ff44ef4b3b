"""The live table of examples/probe_http.py, as a user sees it on a terminal."""

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

PROGRAM = Path(__file__).parents[2] / "examples/probe_http.py"
# A timeout so long that no run exceeds it.
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

    def __init__(self, *args: str, **env: str) -> None:
        self.screen = pyte.Screen(WIDTH, HEIGHT)
        self._emulator = pyte.ByteStream(self.screen)
        self._keyboard, inside = pty.openpty()
        size = struct.pack("HHHH", HEIGHT, WIDTH, 0, 0)
        fcntl.ioctl(inside, termios.TIOCSWINSZ, size)
        # What the tests' own environment says about its terminal is not meant here.
        inherited = {
            name: os.environ[name]
            for name in ("PATH", "HOME", "PYTHONPATH")
            if name in os.environ
        }
        self.program = subprocess.Popen(
            [sys.executable, "-c", IN_FOREGROUND, PROGRAM, *args],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env={**inherited, "TERM": "xterm-256color", "PYTHONUTF8": "1", **env},
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
        os.write(self._keyboard, b"\x03")
        return self.wait()

    def wait(self) -> int:
        """Return the exit status, when all that the program wrote is read."""
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
        except OSError:  # Linux raises it once no process has it open
            written = b""
        if not written:
            raise EOFError(self.text)
        self._emulator.feed(written)


def test_in_a_terminal_it_shows_a_table_that_stays_after_ctrl_c():
    with Terminal(*FAST) as terminal:
        healthy = rf"http://127\.0\.0\.1:\d+/{NUMBERS}"
        flaky = rf"http://127\.0\.0\.1:\d+/flaky(?:{NUMBERS}|{NO_LATENCY})"
        closed = rf"http://127\.0\.0\.1:\d+/{NO_LATENCY}"
        table = rf"(?m)^{HEADER}\n{healthy}\n{flaky}\n{closed}"
        terminal.read_until(table)
        assert terminal.press_ctrl_c() == 0
        # The ^C that terminals show has not pushed it down, nor is it left in it.
        assert re.search(rf"{table}\Z", terminal.text)
        assert terminal.text.count("success") == 1
        assert "Traceback" not in terminal.text
        assert not terminal.screen.cursor.hidden


def test_a_failure_that_is_logged_later_leaves_the_table_intact():
    # Connections to it are open, but never answered.
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        options = ("--interval", "0.1", "--timeout", "0.2", "--export-interval", "0.25")
        with Terminal(*options, url) as terminal:
            terminal.read_until(rf"(?m)^{HEADER}\n{url}{NO_LATENCY}\Z")
            server.close()
            terminal.read_until(rf"(?m)^{url}: probe failed: \w+Error")
            assert terminal.press_ctrl_c() == 0
    page, progress, *log, header, row = terminal.text.splitlines()
    assert page.startswith("The status page is at http://127.0.0.1:")
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
        terminal.read_until(
            rf"(?m)^{HEADER}\n(.+ s ago\n){{22}}… 8 more, none of them worse\Z"
        )
        assert terminal.press_ctrl_c() == 0


@pytest.mark.parametrize("option", ["--lines", "--json"])
def test_lines_and_json_are_printed_on_a_terminal_if_asked_for(option):
    with Terminal(*FAST, option) as terminal:
        terminal.read_until(r"(?m)^1\d+ labels=|^\{\"timestamp\"")
        assert terminal.press_ctrl_c() == 0
        assert not re.search(HEADER, terminal.text)


def test_a_terminal_that_cannot_move_its_cursor_gets_lines():
    with Terminal(*FAST, TERM="dumb") as terminal:
        terminal.read_until(r"(?m)^1\d+ labels=ptype=http")
        assert terminal.press_ctrl_c() == 0


def test_a_table_of_one_run_each_stays():
    url = "http://127.0.0.1:1/"
    with Terminal("--once", url) as terminal:
        terminal.read_until(rf"(?m)^{HEADER}\n{url}{NO_LATENCY}\Z")
        assert terminal.wait() == 1
