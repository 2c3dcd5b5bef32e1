# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What the fusion needs of a registered atlas, kept beside its flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_nodeo.files import atomic_path

__all__ = ["Displacements"]


@dataclass(frozen=True)
class Displacements:
    """Displacements of the image's grid, to the last bit; to integrate that of a volume again takes seconds.

    Args:
        folder: of the registrations.
    """

    folder: Path

    def complete(self, row: Mapping[str, Any]) -> bool:
        return self._file(row["id"]).is_file()

    def discard(self, row: Mapping[str, Any]) -> None:
        self._file(row["id"]).unlink(missing_ok=True)

    def write(self, row: Mapping[str, Any], registration: Any, folder: Path) -> None:
        with atomic_path(self._file(row["id"])) as partial:
            np.save(partial, registration.displacement.cpu().numpy())

    def read(self, id: str) -> Tensor:
        """(D, *spatial), voxels.

        Raises:
            ValueError: when the file is damaged.
        """
        file = self._file(id)
        try:
            return torch.from_numpy(np.load(file))
        except (ValueError, EOFError) as error:
            raise ValueError(f"{file} is damaged ({error}); delete it, and run the same command again.") from error

    def _file(self, id: str) -> Path:
        return self.folder / id / "displacement.npy"
