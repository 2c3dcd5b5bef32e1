# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What the expressions of a bundle config need: the config itself, and errors that a user can read."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Callable
from copy import deepcopy
from types import FrameType
from typing import Any

from monai.bundle import ConfigItem, ConfigParser

from monai_nodeo.registration.outputs import PairsFailedError

__all__ = ["build", "check_ids", "checked", "read_words", "running_config"]

# Read by MONAI itself, so nothing in the config has to refer to them.
_ROOTS = {"imports", "initialize", "run", "finalize", "bundle_root", "$schema", ConfigParser.meta_key}
# What `--report false` on a command line is: a text, which would count as true.
_JSON_WORDS = {"true": True, "false": False, "null": None}
_REFERENCE = re.compile(r"[@%](?:::|#)?(\w+)")


def checked(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function; an error of the input ends the process with the message alone, status 1.

    MONAI would bury it under "Failed to evaluate ..." and a hundred lines of its own calls.

    Raises:
        SystemExit: with the message of a ``ValueError``, ``OSError`` or ``PairsFailedError`` of the function.
    """
    try:
        return function(*args, **kwargs)
    except (ValueError, OSError, PairsFailedError) as error:
        raise SystemExit(f"error: {error}") from error


def running_config() -> dict[str, Any]:
    """The config that is being evaluated: all files and overrides merged, expressions as they were written.

    For use in an expression of a bundle config, ``"$monai_nodeo.workflow.running_config()"``. MONAI gives expressions
    no way to their parser, so it is looked up among the callers.

    Raises:
        RuntimeError: when no config is being evaluated.
    """
    return {key: deepcopy(value) for key, value in _running_parser().get().items() if key != ConfigParser.meta_key}


def _running_parser() -> ConfigParser:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        parser = frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return parser
        frame = frame.f_back
    raise RuntimeError("no bundle config is being evaluated; call this in an expression of a config.")


def build(id: str) -> None:
    """Make an item of the running config now, so that a wrong value is found before the work and said in one line.

    Raises:
        ValueError: with the message of what went wrong inside MONAI's chain of errors.
    """
    try:
        _running_parser().get_parsed_content(id)
    except Exception as error:  # a wrong value can fail in any class that the config names
        cause: BaseException = error
        # Only what MONAI wraps around it: our own errors say more than what they were raised from.
        while isinstance(cause, RuntimeError) and str(cause).startswith("Failed to ") and cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(f"{id} cannot be made from this config: {cause}") from error


def read_words() -> None:
    """Take the texts "true", "false" and "null" of the running config for what they say in JSON.

    To be called before anything else refers to them.
    """
    parser = _running_parser()
    config = parser.get()
    for id, value in config.items():
        if isinstance(value, str) and value in _JSON_WORDS:
            config[id] = _JSON_WORDS[value]
            # Not by parser[id] = ..., which would forget what is being evaluated.
            parser.ref_resolver.items[id] = ConfigItem(config[id], id)


def check_ids() -> None:
    """Refuse added ids that nothing in the running config refers to: a mistyped override would be accepted in silence.

    MONAI puts what overlays and overrides add behind the ids of the first file, so added are the ids behind "run",
    with which that file ends. Its own ids may be left unused: a replaced loss has no use for the old one's window.

    Raises:
        ValueError: names the unknown ids and the nearest valid ones.
    """
    config = running_config()
    used = set(_REFERENCE.findall(json.dumps(config, default=str))) | _ROOTS
    ids = list(config)
    added = ids[ids.index("run") + 1 :] if "run" in config else ids
    unknown = [id for id in added if id not in used]
    if not unknown:
        return
    valid = sorted(set(ids) - set(unknown))
    hints = []
    for id in unknown:
        nearest = difflib.get_close_matches(id, valid, n=1, cutoff=0.5)
        hints.append(f"{id!r}" + (f" (did you mean {nearest[0]!r}?)" if nearest else ""))
    raise ValueError(f"unknown config id {', '.join(hints)}; valid are {', '.join(valid)}.")
