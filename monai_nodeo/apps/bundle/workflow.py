# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A workflow of MONAI that takes a command line literally."""

from __future__ import annotations

import difflib
import inspect
import logging
import pydoc
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from monai.bundle import ConfigComponent, ConfigWorkflow

from monai_nodeo.apps.bundle.trust import EXPRESSION, RUNS_CODE, check_safe_files, check_values
from monai_nodeo.data.keys import IMAGE_KEYS, PATH_KEYS, images_of
from monai_nodeo.data.lists import load_datalist, spatial_dims_of
from monai_nodeo.extras import extra
from monai_nodeo.files import ImageGrid
from monai_nodeo.registration.presets import bundle_dir, preset_files
from monai_nodeo.registration.settings import TUNED

with extra("bundle", "bundles"):
    from fire.parser import DefaultParseValue

__all__ = ["NodeoWorkflow"]

_PATHS = (*PATH_KEYS, "datalist", "dataset_dir", "output_dir")
_ARGUMENTS = ("meta_file", "logging_file", "init_id", "run_id", "final_id", "tracking", "properties_path")
_WORDS = {"true": True, "false": False, "null": None}


class NodeoWorkflow(ConfigWorkflow):
    """Runs the bundle's config with inputs that are taken as they are.

    A path is a path, whatever characters it has: MONAI would evaluate one that begins with ``$``. Expressions of Python
    belong in config files; an override that holds one is an error, and so is one of an id that there is not. Without a
    config file it is that of the bundle, for slices or for volumes as the first fixed image is one. Inputs may also be
    set later, as attributes.

    Args:
        config_file: one or several files of a config.
        preset: settings laid over the bundle's, instead of config files.
        spatial_dims: 2 for slices, 3 for volumes; by default what the images are, 3 without images.
        workflow_type: as MONAI has it.
        safe: refuse config files that could run code: only values are allowed in those that are not the package's own.
        override: ids and values; arguments of MONAI's ``ConfigWorkflow``, such as ``logging_file=False``.

    Raises:
        ValueError: names an id that there is not, and the nearest one; or what could run code.

    Example:
        >>> workflow = NodeoWorkflow(output_dir="out")
        >>> workflow.fixed, workflow.moving = "fixed.nii.gz", "moving.nii.gz"
        >>> workflow.initialize()
        >>> workflow.run()
    """

    def __init__(
        self,
        config_file: str | Sequence[str] | None = None,
        preset: str | None = None,
        spatial_dims: int | None = None,
        workflow_type: str | None = "infer",
        safe: bool = False,
        **override: Any,
    ) -> None:
        known = {name: override.pop(name) for name in _ARGUMENTS if name in override}
        override = {id: _literal(id, value) for id, value in override.items()}
        if config_file is None:
            config_file = [str(file) for file in preset_files(spatial_dims or _dims_of(override), preset)]
            override.setdefault("bundle_root", str(bundle_dir()))
        elif preset is not None or spatial_dims is not None:
            raise ValueError("preset and spatial_dims choose config files; give them or config_file.")
        if safe:
            check_safe_files([config_file] if isinstance(config_file, str | PathLike) else config_file)
            check_values("an override", override, RUNS_CODE)
        with _without_a_remark():
            super().__init__(config_file=config_file, workflow_type=workflow_type, **known)
        for id in _PATHS:
            if id not in (self.properties or {}):
                self.add_property(name=id, required=False, config_id=id)
        for id in override:
            self._check_id(id)
        ids = {id.replace("::", "#") for id in override}
        if any(f"settings#{name}" in ids for name in TUNED) and "settings#self_tuning" not in ids:
            override["settings#self_tuning"] = False
        self.parser.update(override)

    def run(self) -> Any:
        """Register everything.

        Raises:
            ValueError: when there is nothing to register, or a setting cannot be.
            PairsFailedError: when a pair failed; the others are finished.
        """
        try:
            return super().run()
        except RuntimeError as error:  # of each expression that MONAI evaluates, one around the other
            cause: BaseException = error
            while isinstance(cause, RuntimeError) and cause.__cause__ is not None:
                cause = cause.__cause__
            raise cause from None

    def _set_property(self, name: str, property: dict, value: Any) -> None:
        super()._set_property(name, property, _literal(name, value))

    def _check_id(self, id: str) -> None:
        """An id is known if it is in the config, or an argument of a component that is."""
        if id in self.parser:
            return
        parent, _, name = id.replace("::", "#").rpartition("#")
        if parent and parent not in self.parser:
            self._check_id(parent)
        found = self.parser[parent] if parent else self.parser.get()
        names = [*found, *self._arguments(found)] if isinstance(found, dict) else []
        if name in names:
            return
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        prefix = f"{parent}#" if parent else ""
        hint = f" (did you mean {prefix + nearest[0]!r}?)" if nearest else ""
        raise ValueError(f"unknown config id {id!r}{hint}; there are {', '.join(n for n in names if n[0] != '_')}.")

    def _arguments(self, config: Mapping[str, Any]) -> list[str]:
        """Of the component that a config describes; none if it is no component."""
        if not ConfigComponent.is_instantiable(config):
            return []
        described = ConfigComponent(config=config, locator=self.parser.locator)
        target = pydoc.locate(described.resolve_module_name())
        return list(inspect.signature(target).parameters) if callable(target) else []


@contextmanager
def _without_a_remark() -> Iterator[None]:
    """MONAI remarks on presets that lie in another folder than the bundle."""

    def is_none(record: logging.LogRecord) -> bool:
        return "Not all config files are in" not in record.getMessage()

    monai_logger = logging.getLogger(ConfigWorkflow.__module__)
    monai_logger.addFilter(is_none)
    try:
        yield
    finally:
        monai_logger.removeFilter(is_none)


def _literal(id: str, value: Any) -> Any:
    """Paths as objects that MONAI does not look into, and the words of JSON for what they say."""
    if isinstance(value, list | tuple) and id in IMAGE_KEYS and all(isinstance(x, str | PathLike) for x in value):
        return [Path(path) for path in value]
    if value is not None and id.replace("::", "#") in (*_PATHS, "settings#initial_transform"):
        return Path(_as_typed(id, value))
    check_values("an override", {id: value}, EXPRESSION)
    return _WORDS.get(value, value) if isinstance(value, str) else value


def _as_typed(id: str, value: Any) -> str | PathLike[str]:
    """A path as it was typed: MONAI's command line takes ``a#1`` for ``a``, and ``7`` for a number."""
    words = sys.argv[1:]
    for number, word in enumerate(words):
        name, equals, rest = word.lstrip("-").partition("=")
        if word.startswith("-") and name.replace("-", "_") == id:
            typed = rest if equals else "".join(words[number + 1 : number + 2])
            if DefaultParseValue(typed) == value:
                return typed
    if not isinstance(value, str | PathLike):
        raise ValueError(f"{id} is {value!r}, expected a path.")
    return value


def _dims_of(override: Mapping[str, Any]) -> int:
    """Of the first fixed image that can be read, 3 without one."""
    fixed, datalist = override.get("fixed"), override.get("datalist")
    if datalist is not None:
        return spatial_dims_of(load_datalist(datalist, override.get("dataset_dir")))
    return 3 if fixed is None else ImageGrid.from_file(images_of(fixed)[0]).spatial_dims
