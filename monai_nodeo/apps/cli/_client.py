# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""How a command is handed to a server of ``monai-nodeo serve``, and what makes a server one that would do the same.

A server listens on a socket whose name is a digest of all that it cannot take over from a command: the interpreter and
its packages, this code, what libraries read when they are loaded, and limits. So a command finds a server that is like
its own process, or none, and then it runs as ever.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import sysconfig
import tempfile
from hashlib import sha256
from pathlib import Path
from types import FrameType

import monai_nodeo

__all__ = ["SIGNALS", "TAKEN", "address", "connect", "hand_over", "peer", "supported"]

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]

TAKEN = b"!"

# They stay by themselves.
_NEVER = ("serve", "view")
# What is read when Python or a library is loaded, and the job that a process belongs to.
_AT_LOAD = ("CUDA", "GOMP", "ITK", "KMP", "LANG", "LC_", "LD_", "MKL", "MONAI", "MPL", "NUMBA", "OMP", "OPENBLAS")
_TOGETHER = (*_AT_LOAD, "PYTHON", "PYTORCH", "THP", "TORCH", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
_PATIENCE = 5  # seconds until a server says that it takes a command
_LIMITS = ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_STACK")


def supported() -> bool:
    """Whether this system has what serving needs; Linux has."""
    return hasattr(socket, "SO_PEERCRED")


def address() -> Path:
    """Socket of a server that is like this process, in a folder that nobody else may enter.

    Raises:
        PermissionError: when the folder is not of this user alone.
    """
    import resource

    assert monai_nodeo.__file__ is not None
    package = Path(monai_nodeo.__file__).parent
    alike = [
        sys.executable,
        *(os.stat(sysconfig.get_path(name)).st_mtime_ns for name in ("purelib", "platlib")),
        *sorted(f"{path} {path.stat().st_mtime_ns}" for path in package.rglob("*.py")),
        *sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(_TOGETHER)),
        *(resource.getrlimit(getattr(resource, name)) for name in _LIMITS),
        *(sys.flags, sys.warnoptions, sorted(os.sched_getaffinity(0)), os.getpriority(os.PRIO_PROCESS, 0)),
    ]
    base, name = os.environ.get("XDG_RUNTIME_DIR"), "monai-nodeo"
    folder = Path(base, name) if base else Path(tempfile.gettempdir(), f"{name}-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode != 0o40700:
        raise PermissionError(f"{folder} is not a folder of yours alone; remove it, or make it so by chmod 700.")
    return folder / sha256(repr(alike).encode(errors="surrogateescape")).hexdigest()[:16]


def connect() -> socket.socket | None:
    """A connection to a server that is like this process, None where there is none."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(address()))
        if peer(connection)[1] == os.getuid():
            return connection
    except OSError:
        pass
    connection.close()
    return None


def peer(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end, as the kernel knows them."""
    process, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return process, user


def hand_over(words: list[str]) -> int | None:
    """Let a server run a command line, with the streams, the folder and the environment of this process.

    Args:
        words: the command and its arguments.

    Returns:
        its exit status; negative: the signal that ended it. None when no server took it.
    """
    off = os.environ.get("MONAI_NODEO_SERVER") == "off" or not supported()
    closed = None in (sys.stdin, sys.stdout, sys.stderr)  # their numbers are of other files, then
    if off or closed or not words or words[0].startswith("-") or words[0] in _NEVER:
        return None
    if (connection := connect()) is None:
        return None
    os.umask(umask := os.umask(0o077))
    request = {"words": words, "environment": dict(os.environ), "umask": umask}
    with connection:
        try:
            connection.settimeout(_PATIENCE)
            if connection.recv(1) != TAKEN:
                return None
            connection.settimeout(None)
            here = os.open(".", os.O_RDONLY)
            text = json.dumps(request).encode()
            socket.send_fds(connection, [struct.pack("q", len(text))], [0, 1, 2, here])
            connection.sendall(text)
        except OSError:  # it is suspended, or has just ended
            return None

        def forward(number: int, frame: FrameType | None) -> None:
            connection.send(bytes([number]))

        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, forward)
        status = connection.recv(4)
    if not status:
        print("Error: the server was killed, and perhaps the command with it; see what it wrote.", file=sys.stderr)
        return 1
    return int(struct.unpack("i", status)[0])
