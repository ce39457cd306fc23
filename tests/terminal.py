"""A terminal for tests: runs a command on a pseudo-terminal and computes the final screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

_TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|(\r|\n)|([^\x1b\r\n]+)")


def run_in_terminal(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], width: int = 120, height: int = 40
) -> tuple[int, str]:
    """Exit status and all terminal output of the command, including escape codes."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    # COLUMNS and LINES take precedence over the size of the terminal.
    environment = {k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = b""
    try:
        while chunk := _read(ours):
            written += chunk
    finally:
        os.close(ours)
        if process.poll() is None:
            process.terminate()
    return process.wait(), written.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux reports a closed other end as an error
        return b""


def screen(output: str) -> list[str]:
    """The lines at the end, including those scrolled out, without trailing spaces.

    Supports the codes of rich: cursor up, erase line, colours, showing and hiding the cursor.
    """
    lines, row, column = [""], 0, 0
    position = 0
    while position < len(output):
        token = _TOKEN.match(output, position)
        assert token, f"unknown control sequence {output[position : position + 10]!r}"
        position = token.end()
        argument, code, line_control, text = token.groups()
        if text:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + text + line[column + len(text) :]
            column += len(text)
        elif line_control == "\r":
            column = 0
        elif line_control == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif code == "A":
            row -= int(argument or 1)
            assert row >= 0, "the cursor moved above the first line"
        elif code == "K" and argument == "2":
            lines[row] = ""
        else:
            assert code == "m" or (code in "hl" and argument == "?25"), f"unknown escape code {token.group()!r}"
    return [line.rstrip() for line in lines]
