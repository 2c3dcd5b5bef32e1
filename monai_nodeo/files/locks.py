# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Locks on files, which the system gives back when their process dies."""

from __future__ import annotations

import errno
import sys
import time
from typing import IO

__all__ = ["lock"]

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_WAIT = 0.1  # seconds between two tries on Windows, which does not wait by itself
_PLACE = 2**30  # a byte that no file has: on Windows nobody else can read what is locked


def lock(file: IO[str]) -> None:
    """Wait until this process alone holds a file, until it is closed; on a file system without locks, do nothing."""
    if sys.platform == "win32":
        import msvcrt

        while True:
            file.seek(_PLACE)
            try:
                return msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            except OSError:
                time.sleep(_WAIT)
    else:
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
