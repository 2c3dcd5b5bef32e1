# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The config of a cohort, and the key of what its results depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai_nodeo
from monai_nodeo.cohort.inputs import fingerprints
from monai_nodeo.cohort.storage import storage_errors
from monai_nodeo.data.keys import PATH_KEYS
from monai_nodeo.files import atomic_path

__all__ = ["Settings", "config_key"]

_FILE = "config.json"
# What does not change a result: where files go, what is shown, on what device, with what others, how it is run.
_WITHOUT_EFFECT = {
    *PATH_KEYS,
    *("pair_id", "pair_folder", "table", "batch_size", "datalist", "dataset_dir", "output_dir", "bundle_root"),
    *("report", "quiet", "tensorboard", "on_interrupt", "device"),
    *("imports", "initialize", "run", "finalize", "_meta_"),
}


def config_key(config: Mapping[str, Any]) -> str:
    """Key of a resolved config: equal where the results are.

    It covers the version of this package and the content of a file with the affine start.
    """
    relevant = {id: value for id, value in config.items() if id not in _WITHOUT_EFFECT}
    start = config.get("initial_transform")
    return _digest([relevant, monai_nodeo.__version__, _content(start) if isinstance(start, str) else None])


@dataclass(frozen=True)
class Settings:
    """Files of a config and what is laid over them. Resolving them takes MONAI, whose import takes seconds.

    Attributes:
        files: of the config, the first is the bundle's.
        overrides: ids and values.
    """

    files: tuple[Path, ...]
    overrides: Mapping[str, Any]

    def resolve(self) -> dict[str, Any]:
        """The whole config, as MONAI reads it."""
        from monai.bundle import ConfigParser

        parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in self.files]))
        parser.update(dict(self.overrides))
        config: dict[str, Any] = parser.get()
        return config

    def key(self, folder: Path) -> str:
        """The key of the config, looked up in the results' folder where a run with these settings has noted it.

        Args:
            folder: of the results, in which it is noted.
        """
        request = self._request()
        try:
            noted = json.loads((folder / _FILE).read_bytes())
            if noted["request"] == request:
                return str(noted["key"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, or not ours: it is made
        config = self.resolve()
        key = config_key(config)
        with storage_errors(folder), atomic_path(folder / _FILE) as partial:
            partial.write_text(
                json.dumps({"request": request, "key": key, "config": config}, indent=1, default=str), encoding="utf-8"
            )
        return key

    def _request(self) -> str:
        start = self.overrides.get("initial_transform")
        contents = [file.read_text(encoding="utf-8") for file in self.files]
        return _digest(
            [
                contents,
                dict(self.overrides),
                monai_nodeo.__version__,
                _content(start) if isinstance(start, str) else None,
            ]
        )


def _content(path: str) -> str | None:
    """Digest of a file, None where a word is no file's name."""
    print_ = fingerprints({"fixed": path})["fixed"]
    return print_["sha256"] if print_ else None


def _digest(values: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(list(values), default=str).encode()).hexdigest()
