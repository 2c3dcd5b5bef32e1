# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The flow of a fitted velocity: a map of space that can be evaluated, inverted, composed, saved and loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from os import PathLike
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from monai_nodeo.files import ImageGrid
from monai_nodeo.flows.flow_file import FlowParts, read_flow, write_flow
from monai_nodeo.flows.solvers.protocol import Solver
from monai_nodeo.flows.velocity import VelocityField, VelocityModel
from monai_nodeo.geometry.sampling import sample

__all__ = ["Flow"]

_AT_A_TIME = 2**20  # voxels, whose positions are held


class Flow(nn.Module):
    """A velocity, integrated: where points of the fixed image are at any time on their way to the moving image.

    At time 0 they are in the fixed image, at time 1 in the moving image; a flow of a series has the times of its frames
    instead, and goes from any of them to any other. The flow is a diffeomorphism as far as its velocity is smooth, and
    goes both ways. Points are RAS mm, so that they belong to no grid. Outside the grid of the velocity, its border goes
    on.

    Args:
        velocity: d phi / dt, phi in [-1, 1] over the nodes of ``domain``.
        solver: integrates it.
        domain: grid of the nodes of the velocity, whose outermost centres are -1 and 1.
        grid: of the fixed image.
        backward: exchange the beginning and the end.
        span: times of the beginning and the end.

    Raises:
        ValueError: when the velocity, its domain and the grid are of different shapes or dimensions, the solver
            does not go from any point, or the span has no length.

    Example:
        >>> registration = register("fixed.nii.gz", "moving.nii.gz")
        >>> there = registration.flow(points)
        >>> back = registration.flow.inverse(there)
        >>> half_way = registration.flow(points, 0, 0.5)
    """

    def __init__(
        self,
        velocity: VelocityModel,
        solver: Solver,
        domain: ImageGrid,
        grid: ImageGrid,
        backward: bool = False,
        span: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if not span[0] < span[1]:
            raise ValueError(f"the flow goes from time {span[0]} to {span[1]}; expected a later one.")
        if tuple(velocity.image_size) != domain.spatial_shape or grid.spatial_dims != domain.spatial_dims:
            raise ValueError(
                f"the velocity has nodes {tuple(velocity.image_size)}, its domain {domain.spatial_shape} and the grid "
                f"{grid.spatial_shape}; expected one shape, and one number of dimensions."
            )
        if getattr(solver, "from_nodes_alone", False):
            raise ValueError(
                f"{type(solver).__name__} goes from the nodes alone, and a flow from any point; give RungeKutta()."
            )
        self.velocity = velocity
        self.solver = solver
        self.domain = domain
        self.grid = grid
        self.backward = backward
        self.span = (float(span[0]), float(span[1]))

    def forward(self, points: Tensor, t0: float | None = None, t1: float | None = None) -> Tensor:
        """Where points are at another time.

        Args:
            points: places at time ``t0``, (..., 3) RAS mm, (..., 2) for a true 2D grid. Points beside a slice keep
                their distance from it.
            t0: within the span, by default its beginning.
            t1: within the span, before or after ``t0``, by default its end.

        Returns:
            places at time ``t1``, the same shape and type.

        Raises:
            ValueError: when the points have another number of coordinates, or a time is not within the span.
        """
        world = len(self.domain.shape) if points.shape[-1] == 2 else 3
        if points.shape[-1] != world:
            raise ValueError(f"points have shape {tuple(points.shape)}, expected (..., {world}).")
        parts = self._parts(t0, t1)
        if parts[0] == parts[1]:
            return points
        flat = points.reshape(-1, world).double()
        place = _Place.of(self.domain, np.eye(4), axes=world)
        phi = place.phi(flat.T).to(self.dtype)
        way = place.way((self.carried(phi, parts)[-1] - phi).double())
        return (flat + way.T).to(points).view_as(points)

    def displacement(
        self,
        grid: ImageGrid | None = None,
        t0: float | None = None,
        t1: float | None = None,
        affine: np.ndarray | None = None,
    ) -> Tensor:
        """How far the voxel centres of a grid are taken.

        Args:
            grid: by default that of the fixed image.
            t0: time at which they are there, by default the beginning.
            t1: time of the arrival, by default the end.
            affine: (4, 4), voxel -> RAS mm, instead of the grid's own; it may be sheared.

        Returns:
            ddf, (D, *spatial), voxels of the grid, tensor axis order.

        Raises:
            ValueError: when the grid is of another dimension, or a time is not within the span.
        """
        on = self.grid if grid is None else grid
        if on.spatial_dims != self.domain.spatial_dims:
            raise ValueError(f"the flow is {self.domain.spatial_dims}D and the grid {on.spatial_dims}D.")
        parts = self._parts(t0, t1)
        shape = on.spatial_shape
        place = _Place.of(self.domain, on.affine if affine is None else affine)
        ddf = torch.zeros((len(shape), *shape), dtype=self.dtype, device=self.device)
        if parts[0] == parts[1]:
            return ddf
        for start, stop in _slabs(shape):
            ends = [(start, stop), *[(0, n) for n in shape[1:]]]
            axes = [torch.arange(*e, device=ddf.device, dtype=ddf.dtype) for e in ends]
            phi = place.phi(torch.stack(torch.meshgrid(*axes, indexing="ij")))
            ddf[:, start:stop] = place.way(self._carried(phi[None], parts)[-1][0] - phi)
        return ddf

    def displacement_of(self, voxels: Tensor) -> Tensor:
        """How far some voxels (N, D) of the fixed image are taken, (D, N), in voxels."""
        phi = self.to_phi(voxels)
        return self._place.way(self.carried(phi, [0.0, 1.0])[-1] - phi)

    def to_phi(self, voxels: Tensor) -> Tensor:
        """Voxels (N, D) of the fixed image as positions (D, N) in [-1, 1] over the nodes of the velocity."""
        return self._place.phi(voxels.T.to(self.device, self.dtype))

    def to_voxels(self, phi: Tensor) -> Tensor:
        """The inverse of `to_phi`: positions (D, N) as voxels (D, N)."""
        return self._place.voxels(phi)

    def carried(self, phi: Tensor, times: Sequence[float]) -> list[Tensor]:
        """Where positions (D, N) in [-1, 1] are at each of the times, at the first of which they are there.

        The times are shares of the span, in [0, 1].
        """
        dims = len(phi)
        states = self._carried(phi.reshape(1, dims, -1, *[1] * (dims - 1)), times)
        return [state.reshape(phi.shape) for state in states]

    def trajectory(self, times: Sequence[float], grid: ImageGrid | None = None) -> Tensor:
        """The displacement of a grid from the beginning to each of several times.

        Args:
            times: within the span.
            grid: by default that of the fixed image.

        Returns:
            (T, D, *spatial), voxels of the grid, tensor axis order.
        """
        return torch.stack([self.displacement(grid, None, t) for t in times])

    @property
    def inverse(self) -> Flow:
        """The way back, by the same velocity: its time 0 is the moving image."""
        return Flow(self.velocity, self.solver, self.domain, self.grid, not self.backward, self.span)

    def with_solver(self, solver: Solver) -> Flow:
        """The same velocity, integrated otherwise."""
        return Flow(self.velocity, solver, self.domain, self.grid, self.backward, self.span)

    def on(self, domain: ImageGrid) -> Flow:
        """The same flow with the nodes of its velocity at the voxels of another grid, linear in between.

        Raises:
            TypeError: when the velocity is not one of places.
        """
        field = self.velocity.kept()
        if not isinstance(field, VelocityField):
            raise TypeError(f"{type(field).__name__} is no velocity of places; register with another velocity.")
        here, there = (_Place.of(nodes, domain.affine) for nodes in (self.domain, domain))
        axes = [torch.arange(n, device=self.device, dtype=self.dtype) for n in domain.spatial_shape]
        phi = here.phi(torch.stack(torch.meshgrid(*axes, indexing="ij")))
        images = sample(field.images, phi.expand(len(field.images), *phi.shape))
        between = torch.from_numpy(there.matrix @ here.back).to(images)
        images = torch.einsum("ij,kj...->ki...", between, images)
        return Flow(VelocityField.of(images), self.solver, domain, self.grid, self.backward, self.span)

    def _carried(self, phi: Tensor, times: Sequence[float]) -> Sequence[Tensor] | Tensor:
        return self.velocity.carry(phi, [1 - t for t in times] if self.backward else list(times), self.solver)

    def _parts(self, t0: float | None, t1: float | None) -> list[float]:
        """Two times as shares of the span."""
        begin, end = self.span
        times = [begin if t0 is None else t0, end if t1 is None else t1]
        for t in times:
            if not begin <= t <= end:
                raise ValueError(f"the flow goes from time {begin:g} to {end:g}, got {t}.")
        return [(t - begin) / (end - begin) for t in times]

    @cached_property
    def _place(self) -> _Place:
        """Of the fixed image."""
        return _Place.of(self.domain, self.grid.affine)

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers."""
        return next(self.velocity.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return next(self.velocity.parameters()).device

    def save(self, path: str | PathLike[str]) -> None:
        """Write the flow to a file of safetensors: numbers and a header of JSON, nothing that could be run.

        Args:
            path: target, by custom ``*.safetensors``; appears whole or not at all.

        Raises:
            TypeError: when the velocity or the solver does not say its ``options()``.
        """
        write_flow(path, FlowParts(self.velocity, self.solver, self.domain, self.grid, self.backward, self.span))

    @classmethod
    def load(cls, path: str | PathLike[str], solver: Solver | None = None) -> Flow:
        """Read a flow.

        Args:
            path: a file that :py:meth:`save` wrote.
            solver: instead of the one in the file; needed for one that is not of this package. A velocity model that is
                not of this package has to be imported before.

        Raises:
            FileNotFoundError: when there is none.
            FlowFileError: when it is no flow, or of a model or solver that is not known here.
        """
        return read_flow(path, cls, solver)


class _Place(NamedTuple):
    """From coordinates, along some axes, to positions over the nodes of a velocity and back.

    Attributes:
        matrix: (D, axes), a step of the coordinates -> of phi.
        offset: (D,), phi of the coordinates 0.
        back: (axes, D), a step of phi -> of the coordinates.
    """

    matrix: np.ndarray
    offset: np.ndarray
    back: np.ndarray

    @classmethod
    def of(cls, domain: ImageGrid, affine: np.ndarray, axes: int | None = None) -> _Place:
        """For the first axes, as many as the domain has by default, of an affine to RAS mm."""
        dims = domain.spatial_dims
        ways = affine[:3, : axes or dims]
        # an axis of one node has no extent: nothing moves along it
        halves = np.array([(n - 1) / 2 for n in domain.spatial_shape])
        nodes = domain.affine[:3, :dims]
        into = np.divide(1, halves, out=np.zeros(dims), where=halves > 0)[:, None] * np.linalg.pinv(nodes)
        offset = into @ (affine[:3, 3] - domain.affine[:3, 3]) - 1
        return cls(into @ ways, offset, np.linalg.pinv(ways) @ (nodes * halves))

    def phi(self, coordinates: Tensor) -> Tensor:
        """(axes, *any) -> (D, *any)."""
        matrix, offset = (torch.from_numpy(x).to(coordinates) for x in (self.matrix, self.offset))
        return torch.einsum("ij,j...->i...", matrix, coordinates) + offset.view(-1, *[1] * (coordinates.ndim - 1))

    def way(self, step: Tensor) -> Tensor:
        """A step of phi (D, *any) -> of the coordinates (axes, *any)."""
        return torch.einsum("ij,j...->i...", torch.from_numpy(self.back).to(step), step)

    def voxels(self, phi: Tensor) -> Tensor:
        """(D, *any) -> (axes, *any)."""
        return self.way(phi - torch.from_numpy(self.offset).to(phi).view(-1, *[1] * (phi.ndim - 1)))


def _slabs(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    rows = max(1, _AT_A_TIME // math.prod(shape[1:]))
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0])
