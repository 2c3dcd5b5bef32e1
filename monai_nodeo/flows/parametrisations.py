# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""What the weights of an Eulerian velocity are: nodes of a lattice, a decoder, or a function of the coordinates."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_nodeo.geometry.coordinates import identity_grid

__all__ = ["Coordinates", "Decoder", "Lattice", "Parametrisation", "Periodic"]


class Parametrisation(nn.Module, ABC):
    """Weights that make an image of vectors; it is 0 at the start.

    Args:
        image_size: spatial shape of the image, D entries.
        keyframes: how many images, one for each of as many equally spaced times.
    """

    def __init__(self, image_size: Sequence[int] = (8, 8, 8), keyframes: int = 1) -> None:
        super().__init__()
        if keyframes < 1:
            raise ValueError(f"keyframes must be at least 1, got {keyframes}.")
        self.image_size = tuple(image_size)
        self.keyframes = keyframes

    @abstractmethod
    def forward(self) -> Tensor:
        """The images, (keyframes, D, *image_size)."""

    @abstractmethod
    def fresh(self, image_size: Sequence[int]) -> Parametrisation:
        """New weights with the same options for images of another shape."""


class Lattice(Parametrisation):
    """A free vector at every node.

    Args:
        image_size: spatial shape of the lattice.
        keyframes: how many lattices, one for each of as many equally spaced times.
    """

    def __init__(self, image_size: Sequence[int] = (8, 8, 8), keyframes: int = 1) -> None:
        super().__init__(image_size, keyframes)
        self.nodes = nn.Parameter(torch.zeros(keyframes, len(self.image_size), *self.image_size))

    def forward(self) -> Tensor:
        return self.nodes

    def fresh(self, image_size: Sequence[int]) -> Lattice:
        return Lattice(image_size, self.keyframes)


class Decoder(Parametrisation):
    """The decoder of NODEO (Wu et al., CVPR 2022): a few features, opened to the image by a linear layer.

    The features are weights, since an Eulerian velocity does not look at the cloud as a whole.

    Args:
        image_size: spatial shape of the image.
        keyframes: how many images, one for each of as many equally spaced times.
        bottleneck: features.
    """

    def __init__(self, image_size: Sequence[int] = (8, 8, 8), keyframes: int = 1, bottleneck: int = 16) -> None:
        super().__init__(image_size, keyframes)
        self.bottleneck = bottleneck
        self.features = nn.Parameter(torch.randn(1, bottleneck))
        self.decoder = nn.Linear(bottleneck, keyframes * len(self.image_size) * math.prod(self.image_size))
        nn.init.zeros_(self.decoder.weight)
        nn.init.zeros_(self.decoder.bias)

    def forward(self) -> Tensor:
        return self.decoder(self.features).view(self.keyframes, len(self.image_size), *self.image_size)

    def fresh(self, image_size: Sequence[int]) -> Decoder:
        return Decoder(image_size, self.keyframes, self.bottleneck)


class Coordinates(Parametrisation):
    """A small network of the coordinates, with random Fourier features (Tancik et al., NeurIPS 2020).

    Args:
        image_size: spatial shape of the image at whose nodes the network is evaluated.
        keyframes: how many images, one for each of as many equally spaced times.
        channels: width of the two hidden layers.
        frequencies: sines and cosines of the coordinates.
        highest: standard deviation of the frequencies, in periods over the image.
    """

    def __init__(
        self,
        image_size: Sequence[int] = (8, 8, 8),
        keyframes: int = 1,
        channels: int = 64,
        frequencies: int = 64,
        highest: float = 8.0,
    ) -> None:
        super().__init__(image_size, keyframes)
        self.channels = channels
        self.frequencies = frequencies
        self.highest = highest
        dims = len(self.image_size)
        positions = identity_grid(self.image_size)[0].flatten(1).t()
        phase = positions @ (torch.randn(dims, frequencies) * (math.pi * highest))
        # random, and so a part of the state
        self.register_buffer("waves", torch.cat([positions, phase.sin(), phase.cos()], dim=1))
        last = nn.Linear(channels, keyframes * dims)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            nn.Linear(dims + 2 * frequencies, channels),
            nn.ReLU(),
            nn.Linear(channels, channels),
            nn.ReLU(),
            last,
        )

    def forward(self) -> Tensor:
        vectors = self.layers(self.get_buffer("waves")).t()
        return vectors.reshape(self.keyframes, len(self.image_size), *self.image_size)

    def fresh(self, image_size: Sequence[int]) -> Coordinates:
        return Coordinates(image_size, self.keyframes, self.channels, self.frequencies, self.highest)


class Periodic(Parametrisation):
    """Images of which the last one is the first one again.

    Args:
        inner: makes all of them but the last one.
    """

    def __init__(self, inner: Parametrisation) -> None:
        super().__init__(inner.image_size, inner.keyframes + 1)
        self.inner = inner

    def forward(self) -> Tensor:
        images = self.inner()
        return torch.cat([images, images[:1]])

    def fresh(self, image_size: Sequence[int]) -> Periodic:
        return Periodic(self.inner.fresh(image_size))
