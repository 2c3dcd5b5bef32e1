# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-nodeo serve``: a process that stays, so that commands need not load their libraries."""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import socket
import struct
import sys
import time
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from threading import Thread
from typing import Any, NoReturn

import click

import monai_nodeo
from monai_nodeo.apps.cli._client import SIGNALS, TAKEN, address, connect, peer, supported

__all__ = ["command"]

# Not needed by commands, or never to be imported.
_LEFT_OUT = tuple(f"monai_nodeo.{name}" for name in ("__main__", "apps.demo", "apps.napari", "apps.physio"))


@click.command()
@click.option("--stop", is_flag=True, help="End the server that commands typed here would use.")
def command(stop: bool) -> None:
    """Stay, and run the commands that are typed elsewhere without their start-up of seconds.

    A command finds the server by itself, if it is of the same installation and its environment says the same to the
    libraries: threads, devices, language, limits. It runs in a process of its own, on the terminal, in the folder and
    with the environment of who typed it, and ctrl-C ends it there. MONAI_NODEO_SERVER=off goes without.

    The server is of one user, on one machine (Linux): nothing listens on the network.
    """
    if not supported():
        raise click.ClickException("serve needs Linux; other systems cannot tell who asks.")
    place = address()
    if there := connect():
        process, _ = peer(there)
        if stop:
            os.kill(process, signal.SIGTERM)
            return
        raise click.ClickException(f"a server is there, process {process}; --stop ends it.")
    if stop:
        raise click.ClickException("no server is there for commands typed here.")
    _load()
    gc.freeze()  # what is loaded stays shared with the commands
    listener = _listener(place)

    def end(*_: Any) -> NoReturn:  # at any point: an exception is lost where Python cannot raise it, as in a fork
        place.unlink(missing_ok=True)
        os._exit(0)

    for number in SIGNALS:
        signal.signal(number, end)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for supervisors
    click.echo(f"process {os.getpid()} runs the commands that are typed elsewhere; ctrl-C or --stop ends it.")
    _run(_next_command(listener))


def _load() -> None:
    """Import all that commands import, and start nothing that a fork would break: no threads, no GPU."""
    for module in walk_packages(monai_nodeo.__path__, "monai_nodeo."):
        if not module.name.startswith(_LEFT_OUT):
            with suppress(ImportError):  # of an extra that is not installed
                import_module(module.name)
    import_module("torch._dynamo")  # by every optimiser

    import torch

    from monai_nodeo.geometry._kernels import kernels_for

    kernels_for(torch.ones(1), "flow")  # Numba reads its registries at the first kernel


def _listener(place: Path) -> socket.socket:
    place.unlink(missing_ok=True)  # of a server that was killed
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    listener.bind(str(place))
    os.umask(mask)
    listener.listen()
    return listener


def _next_command(listener: socket.socket) -> list[str]:
    """Wait for commands; returns in a process of its own for each."""
    while True:
        connection, _ = listener.accept()
        if peer(connection)[1] == os.getuid() and os.fork() == 0:
            break
        connection.close()
    listener.close()
    os.setsid()  # signals of the server's terminal are not for commands
    for number in (*SIGNALS, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    try:
        connection.send(TAKEN)
        head, streams, *_ = socket.recv_fds(connection, 8, 4)
        request = json.loads(connection.recv(struct.unpack("q", head)[0], socket.MSG_WAITALL))
    except (OSError, ValueError, struct.error):  # of who only looked whether there is a server, or has just ended
        os._exit(0)
    if process := os.fork():
        _supervise(process, connection)
    connection.close()
    return _take_over(request, streams)


def _supervise(process: int, connection: socket.socket) -> NoReturn:
    """Pass signals on to the command, and its status back."""

    def forward() -> None:
        with suppress(OSError):  # the command has just ended
            while number := connection.recv(1):
                os.kill(process, number[0])
            os.kill(process, signal.SIGTERM)  # who asked is gone

    Thread(target=forward, daemon=True).start()
    _, status = os.waitpid(process, 0)
    with suppress(OSError):
        connection.send(struct.pack("i", os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _take_over(request: dict[str, Any], streams: list[int]) -> list[str]:
    """Be as the process that asks: its streams, folder, environment."""
    for number, stream in enumerate(streams[:3]):
        os.dup2(stream, number)
    os.fchdir(streams[3])
    for stream in streams:
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.umask(request["umask"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding=old.encoding, errors=old.errors))
    words: list[str] = request["words"]
    return words


def _run(words: list[str]) -> NoReturn:
    """The command, and then its end without taking the libraries down, which would take longer than they spare."""
    from monai_nodeo.apps.cli import main

    sys.argv[1:] = words
    try:
        main(words, prog_name="monai-nodeo")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)
