# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The result of one pair."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from monai_nodeo.data.image import Image
from monai_nodeo.data.keys import PATH_KEYS
from monai_nodeo.data.load import load_pair
from monai_nodeo.data.pair import Pair, PairError, stored_grid
from monai_nodeo.data.placement import on_grid_of
from monai_nodeo.files import Transform
from monai_nodeo.flows import Flow
from monai_nodeo.metrics.certificate import Certificate
from monai_nodeo.metrics.confidence import wrong_probability
from monai_nodeo.metrics.evidence import Evidence, foreground, gather
from monai_nodeo.metrics.pair_figures import field_figures, overlap_figures, quantile_figures
from monai_nodeo.metrics.verdict import Verdict, judge
from monai_nodeo.registration.before_and_after import images_before_and_after
from monai_nodeo.registration.folder import Contents, read_folder, read_uncertainty, start_of, write_folder
from monai_nodeo.registration.notebook_view import strip_of_planes
from monai_nodeo.registration.pair_map import PairMap
from monai_nodeo.registration.settings import Settings

__all__ = ["Registration"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Registration:
    """What a registration found: a flow, and the affine start that comes after it.

    Attributes:
        flow: of points of the fixed image, RAS mm.
        start: (4, 4), RAS mm, float64, where points go from the end of the flow to the moving image; None: they are
            there.
        displacement: of the flow alone, (D, *spatial), voxels of the fixed grid: ``flow.displacement()``.
        history: "level" and loss term -> its value at every iteration, (iterations,), on the CPU; the levels count
            from 0, the coarsest.
        settings: what it was made with.
        certificate: the proof of the flow.
        similarity: the similarity loss before and after.
        seconds: time of the optimisation, from images in memory to the displacement; of a pair in a batch, its share.
        alignment: how the start was found: see :py:meth:`monai_nodeo.data.Start.figures`.
        interrupted: the first level that was ended early; it and the finer ones lack iterations. None: none.
        choice: which similarity and smoothness were chosen, and why: see
            :py:meth:`monai_nodeo.registration.choice.Choice.figures`. None: those of the settings.
        accepted: False where no deformation could be defended, and the flow moves nothing.
        uncertainty: standard deviation of the displacement when what it should not depend on is changed, (*spatial),
            mm, see `registration.uncertainty`; None: not asked for.
        pair: the images; None where it was loaded without them.

    Example:
        >>> registration = register("fixed.nii.gz", "moving.nii.gz")
        >>> labels = registration.warp("moving_labels.nii.gz", mode="nearest")
        >>> registration.save("out")
    """

    flow: Flow
    start: Tensor | None
    displacement: Tensor
    history: dict[str, Tensor]
    settings: Settings
    certificate: Certificate
    similarity: tuple[float, float]
    seconds: float
    alignment: dict[str, Any] | None = None
    interrupted: int | None = None
    choice: dict[str, Any] | None = None
    accepted: bool = True
    uncertainty: Tensor | None = None
    pair: Pair | None = None

    @cached_property
    def map(self) -> PairMap:
        """The whole way from the fixed to the moving image."""
        return PairMap.of(self.flow, self.start, self.displacement)

    @property
    def ddf(self) -> Tensor:
        """The whole way, start included, in voxels of the fixed grid, (D, *spatial)."""
        return self.map.ddf

    @property
    def iterations(self) -> int:
        """Of all levels."""
        return len(self.history["level"])

    def warp(self, image: Image | MetaTensor, mode: str = "bilinear") -> MetaTensor:
        """The moving image, or labels of it, on the fixed grid; see :py:meth:`PairMap.warp`."""
        return self.map.warp(image, mode)

    def at(self, time: float, image: Image | MetaTensor | None = None, mode: str = "bilinear") -> MetaTensor:
        """The moving image on its way, on the fixed grid.

        Args:
            time: 0: on the fixed image, as warped; 1: where the start puts the moving image.
            image: another one of the moving space, such as labels.
            mode: ``"bilinear"`` or ``"nearest"``.

        Raises:
            ValueError: without an image, when the registration was loaded without its pair.
        """
        if image is None:
            if self.pair is None:
                raise ValueError("the moving image is not there; give one.")
            image = self.pair.moving.image
        return self.map.on(self.flow.grid, time, 1.0).warp(image, mode)

    def points(self, points: Tensor) -> Tensor:
        """Where points of the fixed image, (N, 3) RAS mm, are in the moving image."""
        return self.map.points(points)

    @property
    def inverse(self) -> PairMap:
        """The whole way from the moving to the fixed image: warps the fixed image, takes points of the moving one.

        Raises:
            ValueError: without the pair, whose moving grid it needs.
        """
        if self.pair is None:
            raise ValueError("the moving image is not there; load the registration with its pair.")
        return self.map.inverse(stored_grid(self.pair.moving.image))

    @property
    def transform(self) -> Transform:
        """The whole way for files, ITK, ANTs and Slicer: the field, then the affine start."""
        return self.map.transform

    @cached_property
    def warped(self) -> MetaTensor:
        """The moving image on the fixed grid.

        Raises:
            ValueError: without the pair.
        """
        return self.warp(self._known_pair.moving.image)

    @property
    def images(self) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
        """Images and masks "fixed", "moving" and "warped" on the fixed grid, see `images_before_and_after`.

        Raises:
            ValueError: without the pair.
        """
        return images_before_and_after(self._known_pair, self.start, self.warped, self.warp)

    @property
    def _known_pair(self) -> Pair:
        if self.pair is None:
            raise ValueError("the images are not there; load the registration with its pair.")
        return self.pair

    @cached_property
    def evidence(self) -> Evidence:
        """What the images say about the registration.

        Raises:
            ValueError: without the pair.
        """
        images, masks = self.images
        return gather(images, self.displacement.cpu().numpy(), self.flow.grid.affine, masks)

    @cached_property
    def verdict(self) -> Verdict:
        """Whether the registration can be trusted, and the reasons: the one at the top of the report.

        Raises:
            ValueError: without the pair.

        Example:
            >>> registration.verdict.headline  # such as "Aligned, without folds, and converged."
        """
        history = {name: values.numpy() for name, values in self.history.items()}
        return judge(self.figures(), history, self.evidence)

    def figures(self) -> dict[str, Any]:
        """Figures of the pair before and after, of the field and the certificate, as JSON holds them."""
        before, after = self.similarity
        figures: dict[str, Any] = {"before": {"similarity": before}, "after": {"similarity": after}}
        if self.pair is not None:
            found = overlap_figures(self.pair, self.start, self.displacement, self.points)
            figures = {side: figures[side] | found[side] for side in figures}
            figures["evidence"] = self.evidence._asdict()
            figures["wrong_probability"] = wrong_probability(self.evidence)
            if self.uncertainty is not None:
                inside = foreground(self.images[0]["fixed"])
                figures["uncertainty_mm"] = quantile_figures(self.uncertainty.cpu().numpy()[inside])
        if self.start is not None:
            figures["initial_affine"] = self.start.tolist()
        return {
            **figures,
            "start": self.alignment,
            "choice": self.choice,
            "accepted": self.accepted,
            **field_figures(self.displacement, self.flow.grid.spacing, self.certificate.folded_cells),
            "certificate": self.certificate.to_dict(),
            "iterations": self.iterations,
            "interrupted_level": self.interrupted,
            "seconds_optimisation": round(self.seconds, 3),
            "settings": self.settings.to_dict(),
        }

    def save(
        self, path: str | PathLike[str], id: str = "", seconds_total: float | None = None, fields: bool = True
    ) -> dict[str, Any]:
        """Write the result folder; see `registration.folder` for its files.

        Args:
            path: folder, made if it does not exist.
            id: name of the pair in the figures; by default that of the pair, or of the folder.
            seconds_total: time that all took, for the figures.
            fields: write the transform, the displacement and the Jacobian, too, which the flow says already.

        Returns:
            The figures, as they are in ``metrics.json``.
        """
        pair = self.pair
        figures = {
            "id": id or (pair.id if pair is not None else "") or Path(path).name,
            **dict(pair.sources if pair is not None else ()),
            **self.figures(),
            "seconds_total": None if seconds_total is None else round(seconds_total, 3),
        }
        warped, label = None, None
        if pair is not None:
            kind = pair.moving.image.meta.get("original_dtype", "float32")
            warped = self.warped.as_tensor(), kind
            if pair.moving.label is not None:
                label = self.warp(pair.moving.label, mode="nearest")[0].as_tensor()
        return write_folder(
            path,
            Contents(
                self.flow,
                self.displacement,
                self.transform if fields else None,
                self.history,
                figures,
                warped,
                label,
                self.uncertainty,
            ),
        )

    @classmethod
    def load(cls, path: str | PathLike[str], with_pair: bool = True) -> Registration:
        """Read a result folder.

        Args:
            path: that :py:meth:`save` wrote.
            with_pair: read the images too, if they are still where they were.

        Raises:
            FileNotFoundError: when there is no such folder, or a file in it is missing.
            ValueError: when a file is damaged.
        """
        flow, history, figures = read_folder(path)
        try:
            said = figures["settings"]
            known = Settings.preset(spatial_dims=said["spatial_dims"]).to_dict()  # of a result from before a setting
            return cls(
                flow=flow,
                start=start_of(figures),
                displacement=flow.displacement(),
                history=history,
                settings=Settings.from_dict({**known, **said}),
                certificate=Certificate.from_dict(figures["certificate"]),
                similarity=(figures["before"]["similarity"], figures["after"]["similarity"]),
                seconds=figures["seconds_optimisation"],
                alignment=figures.get("start"),
                interrupted=figures["interrupted_level"],
                choice=figures.get("choice"),
                accepted=figures.get("accepted", True),
                uncertainty=read_uncertainty(path, flow.grid),
                pair=_pair_again(path, figures, flow.grid.spatial_dims) if with_pair else None,
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: damaged figures ({type(error).__name__}: {error}).") from error

    def __repr__(self) -> str:
        before, after = self.similarity
        name = f" of {self.pair.id}" if self.pair is not None and self.pair.id else ""
        return (
            f"<Registration{name}: {'x'.join(map(str, self.flow.grid.spatial_shape))}, similarity loss {before:.4f} -> "
            f"{after:.4f}, {self.seconds:.1f} s. {self.certificate.verdict}>"
        )

    def _repr_html_(self) -> str:
        """Before and after, and the certificate, for a notebook."""
        text = f"<p>{escape(repr(self)[1:-1])}</p>"
        if self.pair is None:
            return text
        fixed, moving = self.pair.fixed.image, self.pair.moving.image
        images = {"fixed": fixed, "moving": on_grid_of(fixed, moving, self.start), "warped": self.warped}
        return strip_of_planes(images) + text


def _pair_again(path: str | PathLike[str], figures: dict[str, Any], spatial_dims: int) -> Pair | None:
    """The images that were registered, None if they are not where they were."""
    row = {key: figures[key] for key in PATH_KEYS if key in figures}
    try:
        return load_pair({"id": figures["id"], **row}, spatial_dims, min_size=1)
    except PairError as error:
        logger.warning("%s: without its images: %s", path, error)
        return None
