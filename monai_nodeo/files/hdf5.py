# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What a damaged file of HDF5 says of its sizes is not believed."""

from __future__ import annotations

import h5py

__all__ = ["check_sizes"]

_MOST_PACKED = 1100  # times, that deflate makes a file smaller


def check_sizes(group: h5py.Group) -> None:
    """Refuse a group whose arrays are larger than their file can hold: a reader would ask for all the memory.

    Raises:
        ValueError: when they are.
    """
    found: list[int] = []
    group.visititems(lambda _, item: found.append(item.nbytes) if isinstance(item, h5py.Dataset) else None)
    if sum(found) > _MOST_PACKED * group.file.id.get_filesize():
        raise ValueError("more numbers than the file can hold")
