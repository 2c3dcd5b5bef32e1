# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What every velocity model offers, and velocities that are images at the nodes of a grid.

The models are files beside this one; their names in the settings: `registration.named_parts`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_nodeo.flows.fixed_point_iteration import find_sources
from monai_nodeo.flows.solvers.protocol import Solver, Velocity
from monai_nodeo.geometry.coordinates import identity_grid
from monai_nodeo.geometry.resizing import resize
from monai_nodeo.geometry.sampling import sample

__all__ = ["CloudModel", "NodeVelocity", "VelocityBatch", "VelocityField", "VelocityModel"]


class VelocityModel(nn.Module, ABC):
    """A learned velocity, optimised for one pair of images, for clouds of points of one shape.

    Attributes:
        min_size: smallest side of a cloud that the model takes.
        image_size: spatial shape of its cloud.
    """

    min_size: int = 1
    image_size: tuple[int, ...]
    known: dict[str, type[VelocityModel]] = {}  # by name: what a saved flow may ask for

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        VelocityModel.known[cls.__name__] = cls

    @abstractmethod
    def forward(self, phi: Tensor, t: Tensor | None = None) -> Tensor:
        """Velocity of the cloud.

        Args:
            phi: positions in [-1, 1], (B, D, *spatial), tensor axis order.
            t: time, a scalar tensor, on the CPU or on the device of phi.

        Returns:
            d phi / dt, (B, D, *spatial).
        """

    @abstractmethod
    def fresh(self, image_size: Sequence[int], spacing: Sequence[float] | None = None) -> VelocityModel:
        """A model with the same options and new weights, for clouds of another shape.

        Args:
            image_size: spatial shape of the cloud.
            spacing: distance of its points along each axis in mm (or any unit); by default they form cubes.
        """

    def finer(self, image_size: Sequence[int], spacing: Sequence[float] | None = None) -> VelocityModel:
        """A model for a finer cloud that starts from the velocity of this one.

        Raises:
            ValueError: when the model cannot go on from another.
        """
        raise ValueError(
            f"{type(self).__name__} cannot go on from a coarser level; register at one level (shrink_factors [1])."
        )

    def options(self) -> dict[str, Any]:
        """Arguments that make a model of the same shape, as JSON holds them; its state dict holds the rest.

        Raises:
            TypeError: when the model has none and cannot be saved.
        """
        raise TypeError(f"{type(self).__name__} cannot be saved: give it a method options().")

    def kept(self) -> VelocityModel:
        """What a finished flow keeps of the model: by default all of it."""
        return self

    def carry(self, phi: Tensor, times: Sequence[float], solver: Solver) -> Sequence[Tensor] | Tensor:
        """Where any points are taken; by default the velocity is one of places and knows nothing of a cloud.

        Args:
            phi: positions in [-1, 1], (1, D, *any shape of D axes).
            times: see :py:class:`Solver`.
            solver: integrates the velocity.
        """
        return solver(self.together([self]), phi, times)

    @staticmethod
    def together(models: Sequence[Any]) -> Velocity:
        """The velocities of models of one class and one shape as one, each model for its item of a batch."""
        if len(models) == 1:
            return models[0]

        def velocity(phi: Tensor, t: Tensor | None = None) -> Tensor:
            return torch.cat([model(item, t) for model, item in zip(models, phi.split(1), strict=True)])

        return velocity


class VelocityBatch(nn.Module):
    """A model for each pair of a batch; the item of a cloud's batch goes to the model with its number.

    Args:
        models: of one class, for clouds of one shape; both ways, velocities of places.
        both_ways: the second half of the cloud's batch goes the ways of the first half back.
    """

    models: Any  # a ModuleList, whose items are VelocityModels

    def __init__(self, models: Sequence[VelocityModel], both_ways: bool = False) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.both_ways = both_ways

    def forward(self, phi: Tensor, t: Tensor | None = None) -> Tensor:
        """See :py:meth:`VelocityModel.forward`."""
        return self.velocity()(phi, t)

    def velocity(self) -> Velocity:
        """The velocity for one integration: what depends on neither position nor time is worked out once."""
        velocity = self.models[0].together(list(self.models))
        return velocity.both_ways() if self.both_ways and isinstance(velocity, NodeVelocity) else velocity


class NodeVelocity:
    """Velocities at the nodes of a grid over [-1, 1], linear in between; a velocity of places.

    Args:
        keyframes: d phi / dt at equally spaced times from 0 to 1, each (B, D, *spatial); in between they are
            interpolated linearly.
    """

    def __init__(self, keyframes: Sequence[Tensor]) -> None:
        self.keyframes = tuple(keyframes)

    @property
    def stationary(self) -> bool:
        """Whether the velocity is the same at all times."""
        return len(self.keyframes) == 1

    def both_ways(self) -> NodeVelocity:
        """The same for B items, and behind them for B that go back: ``-v(x, 1 - t)``."""
        ways = zip(self.keyframes, reversed(self.keyframes), strict=True)
        return NodeVelocity([torch.cat([there, -back]) for there, back in ways])

    def at_nodes(self, t: Tensor | None = None) -> Tensor:
        """The velocity at the nodes, (B, D, *spatial)."""
        if self.stationary:
            return self.keyframes[0]
        if t is None:
            raise ValueError("a velocity with several keyframes needs the time.")
        position = t * (len(self.keyframes) - 1)
        if t.device.type == "cpu" and not t.requires_grad:  # the host knows the time
            before = min(max(int(position), 0), len(self.keyframes) - 2)
            return torch.lerp(self.keyframes[before], self.keyframes[before + 1], float(position) - before)
        # Hat functions instead of a look-up: the host never needs the value of t.
        hats = [(1 - (position - k).abs()).clamp(min=0) for k in range(len(self.keyframes))]
        return torch.stack([image * hat for image, hat in zip(self.keyframes, hats, strict=True)]).sum(0)

    def __call__(self, phi: Tensor, t: Tensor | None = None) -> Tensor:
        """See :py:class:`Velocity`."""
        image = self.at_nodes(t)
        return sample(image.expand(phi.shape[0], *image.shape[1:]), phi)


class VelocityField(VelocityModel):
    """The velocity of a finished flow: vectors at the nodes of a grid, whatever they were made of.

    Args:
        spatial_dims: 2 or 3.
        image_size: nodes along each axis.
        keyframes: images, one for each of as many equally spaced times.

    Attributes:
        images: d phi / dt, (keyframes, D, *image_size); 0 at first.
    """

    def __init__(self, spatial_dims: int = 3, image_size: Sequence[int] = (8, 8, 8), keyframes: int = 1) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.image_size = tuple(image_size)
        self.images = nn.Parameter(torch.zeros(keyframes, spatial_dims, *self.image_size), requires_grad=False)

    @classmethod
    def of(cls, images: Tensor) -> VelocityField:
        """The field of given images, (keyframes, D, *spatial)."""
        field = cls(images.shape[1], images.shape[2:], len(images)).to(images)
        field.images.copy_(images.detach())
        return field

    def forward(self, phi: Tensor, t: Tensor | None = None) -> Tensor:
        """See :py:meth:`VelocityModel.forward`."""
        return self.together([self])(phi, t)

    @staticmethod
    def together(models: Sequence[VelocityField]) -> NodeVelocity:
        """See :py:meth:`VelocityModel.together`."""
        return NodeVelocity(torch.stack([model.images for model in models], 1).unbind())

    def fresh(self, image_size: Sequence[int], spacing: Sequence[float] | None = None) -> VelocityField:
        return VelocityField(self.spatial_dims, image_size, len(self.images))

    def finer(self, image_size: Sequence[int], spacing: Sequence[float] | None = None) -> VelocityField:
        """See :py:meth:`VelocityModel.finer`."""
        return VelocityField.of(resize(self.images, image_size))

    def options(self) -> dict[str, Any]:
        return {
            "spatial_dims": self.spatial_dims,
            "image_size": list(self.image_size),
            "keyframes": len(self.images),
        }


class CloudModel(VelocityModel):
    """A velocity of a cloud as a whole: its points are the voxels that they started from (the Lagrangian form).

    Between its points the cloud is interpolated linearly; the way back is the inverse of that map.
    """

    def carry(self, phi: Tensor, times: Sequence[float], solver: Solver) -> Sequence[Tensor] | Tensor:
        """See :py:meth:`VelocityModel.carry`; always from the start of the cloud, at time 0, on."""
        nodes = identity_grid(self.image_size, phi.device, phi.dtype)
        ways = [solver(self, nodes, (0.0, t))[-1] - nodes if t else torch.zeros_like(nodes) for t in times]
        start = _sources(ways[0], phi) if times[0] else phi
        return [phi, *[start + sample(way, start) for way in ways[1:]]]


def _sources(way: Tensor, phi: Tensor) -> Tensor:
    """The points that a displacement of the cloud takes to phi.

    Raises:
        ValueError: when a gradient is wanted, which a fixed point does not have.
    """
    if torch.is_grad_enabled() and phi.requires_grad:
        raise ValueError("a cloud has no gradient for points on the way back, or from a time after 0; detach them.")
    shape = (1, len(phi[0]), -1, *[1] * (phi.ndim - 3))

    def displacement(points: Tensor) -> Tensor:
        return sample(way, points.reshape(shape)).flatten(2)[0]

    found = find_sources(displacement, phi[0].flatten(1), tolerance=1e-5)
    return phi + found.offset.view_as(phi)
