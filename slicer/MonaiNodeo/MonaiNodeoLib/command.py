# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A call of ``monai-nodeo register`` for the nodes of a scene. Needs nothing but Python 3.9."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PRESETS", "RegistrationError", "RegistrationProcess", "command_of"]

PRESETS = ("accurate", "fast", "mind_ssc", "multimodal", "mutual_information", "paper_lambda2", "paper_lambda2.5")
_ENDINGS = {"landmarks": ".mrk.json"}  # of what is no volume
_RESULTS = {"volume": "warped.nii.gz", "label": "warped_label.nii.gz", "transform": "transform.h5"}


class RegistrationError(RuntimeError):
    """The command has failed. The message is its last line."""


class RegistrationProcess:
    """Writes nodes to a temporary folder, registers them in a process of its own, and loads the results.

    Nothing here waits: a timer of the caller asks `poll` again and again.

    Args:
        command: program and first arguments: ``["monai-nodeo"]``, or ``["/path/to/python", "-m", "monai_nodeo"]``.
        save: (node, path), writes a node as it lies in the world.
        load: (kind, path) -> node; the kinds are "volume", "label" and "transform".
        say: takes each line that the command prints.
        environment: of the process; by default that of this one.

    Example:
        >>> process = RegistrationProcess(["monai-nodeo"], save, load)
        >>> process.start({"fixed": fixed, "moving": moving}, preset="fast")
        >>> while (nodes := process.poll()) is None:
        ...     time.sleep(0.1)
    """

    def __init__(
        self,
        command: Sequence[str],
        save: Callable[[Any, str], None],
        load: Callable[[str, str], Any],
        say: Callable[[str], None] = print,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.command = list(command)
        self.save, self.load, self.say = save, load, say
        self.environment = dict(os.environ if environment is None else environment)
        self._folder: Path | None = None
        self._process: subprocess.Popen | None = None

    @property
    def running(self) -> bool:
        """Between `start` and the end of the process that `poll` or `cancel` finds."""
        return self._process is not None

    def start(
        self,
        nodes: Mapping[str, Any],
        preset: str | None = None,
        output: str | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """Write the nodes and start the command.

        Args:
            nodes: "fixed" and "moving"; perhaps "fixed_label", "moving_label", "fixed_landmarks" and
                "moving_landmarks"; None: there is none.
            preset: one of `PRESETS`, None: the default.
            output: folder of the results; None: a temporary one.
            options: further ones of ``monai-nodeo register``.

        Raises:
            RegistrationError: when a registration runs already, an image is missing, or there is no such program.
        """
        if self.running:
            raise RegistrationError("a registration is running; wait for it or cancel it.")
        given = {role: node for role, node in nodes.items() if node is not None}
        for role in ("fixed", "moving"):
            if role not in given:
                raise RegistrationError(f"the {role} volume is missing; choose one.")
        self._folder = Path(tempfile.mkdtemp(prefix="monai_nodeo_"))
        try:
            self._results = Path(output) if output else self._folder / "out"
            words = [*self.command, "register", "-o", str(self._results)]
            for role, node in given.items():
                file = self._folder / f"{role}{_ENDINGS.get(role.rpartition('_')[2], '.nrrd')}"
                self.save(node, str(file))
                words += [f"--{role.replace('_', '-')}", str(file)]
            words += ["--preset", preset] if preset else []
            self._start([*words, *options])
        except BaseException:
            self._clean()
            raise

    def poll(self) -> dict[str, Any] | None:
        """Tell what the command has printed since; at its end, load what it found.

        Returns:
            kind -> node that was loaded; None while the command runs.

        Raises:
            RegistrationError: when the command has failed.
        """
        if self._process is None:
            raise RegistrationError("no registration is running; start one.")
        status = self._process.poll()  # before the last lines are read
        self._tell(status is not None)
        if status is None:
            return None
        try:
            if status:
                raise RegistrationError(self._last or f"{self.command[0]} ended with status {status}.")
            files = {kind: self._results / name for kind, name in _RESULTS.items()}
            return {kind: self.load(kind, str(file)) for kind, file in files.items() if file.exists()}
        finally:
            self._clean()

    def cancel(self) -> None:
        """Kill the command and forget what it did."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._clean()

    def _start(self, words: Sequence[str]) -> None:
        assert self._folder is not None
        # A file, not a pipe: reading it never waits, and Slicer needs no thread.
        self._printed = self._folder / "printed.txt"
        self._read, self._last, self._rest = 0, "", b""
        with self._printed.open("wb") as printed:
            try:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    env={**self.environment, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                )
            except OSError as error:
                raise RegistrationError(f"{self.command[0]} cannot be started: {error}; name another.") from error

    def _tell(self, ended: bool) -> None:
        """Pass on the lines that are whole, at the end also the last one."""
        with self._printed.open("rb") as printed:
            printed.seek(self._read)
            new = printed.read()
        self._read += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        if ended:
            lines.append(self._rest)
        for line in lines:
            text = line.decode("utf-8", "replace").strip()
            if text:
                self._last = text
                self.say(text)

    def _clean(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = self._process = None


def command_of(program: str) -> list[str]:
    """The call of monai-nodeo, or of a Python that has it; by default the one on the search path."""
    if not program:
        return ["monai-nodeo"]
    is_python = program.replace("\\", "/").rpartition("/")[2].lower().startswith("python")
    return [program, "-m", "monai_nodeo"] if is_python else [program]
