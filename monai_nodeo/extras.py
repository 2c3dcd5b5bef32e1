# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Parts whose packages are installed on request only, as by ``pip install 'monai-nodeo[report]'``: see setup.cfg."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

__all__ = ["MissingExtraError", "check_tensorboard", "extra", "report_or_not"]

logger = logging.getLogger(__name__)


class MissingExtraError(ImportError):
    """A package of an extra is not installed. The message names the extra."""


@contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
    """What is imported inside belongs to an extra; of one within another, the outer one is named.

    Args:
        name: of the extra.
        purpose: what needs it, as a plural.

    Raises:
        MissingExtraError: when a package is not installed.
    """
    try:
        yield
    except (ModuleNotFoundError, MissingExtraError) as error:
        raise _missing(str(error.name), name, purpose) from error


def check_tensorboard() -> None:
    """Refuse to begin where curves are wanted that TensorBoard's package writes; torch imports it late.

    Raises:
        MissingExtraError: when it is not installed.
    """
    if find_spec("tensorboard") is None:
        raise _missing("tensorboard", "tensorboard", "curves of TensorBoard")


def report_or_not(wanted: bool) -> bool:
    """Whether reports are to be made: if they are wanted and can be; if they cannot, a warning says how to get them."""
    absent = [name for name in ("matplotlib", "contourpy", "jinja2") if find_spec(name) is None]
    if wanted and absent:
        logger.warning("no report: %s", _missing(absent[0], "report", "reports"))
    return wanted and not absent


def _missing(package: str, name: str, purpose: str) -> MissingExtraError:
    said = f"{package} is not installed, which {purpose} need: pip install 'monai-nodeo[{name}]'."
    return MissingExtraError(said, name=package)
