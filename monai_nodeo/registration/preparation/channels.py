# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Which channels of a pair are compared: a channel of weight 0 is as if it were not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from monai.data import MetaTensor
from monai.utils import MetaKeys

from monai_nodeo.data.pair import Pair, PairError, Scan, source_name
from monai_nodeo.registration.named_parts import similarities
from monai_nodeo.registration.settings import Settings

__all__ = ["Compared", "compared"]


@dataclass(frozen=True, eq=False)
class Compared:
    """What of a pair is compared, and how.

    Attributes:
        pair: the channels that count.
        settings: with a weight and a similarity for each of them; for one channel, as if it were alone.
        kept: their numbers.
    """

    pair: Pair
    settings: Settings
    kept: tuple[int, ...]

    def of_all(self, chosen: Settings, given: Settings) -> Settings:
        """What was chosen for the channels that count, as settings for all of them."""
        found = chosen.similarity.split(",")
        if len(set(found)) == 1 and "," not in given.similarity:
            return replace(chosen, channel_weights=given.channel_weights)
        count = len(given.channel_weights or self.kept)
        names = given.similarity.split(",")
        names = names if len(names) == count else names * count
        for number, name in zip(self.kept, found * len(self.kept), strict=False):
            names[number] = name
        return replace(chosen, channel_weights=given.channel_weights, similarity=",".join(names))


def compared(pair: Pair, settings: Settings) -> Compared:
    """The channels that count.

    Raises:
        PairError: when the settings are for another number of channels.
    """
    count = len(pair.fixed.image)
    names = settings.similarity.split(",")
    weights = settings.channel_weights or (1.0,) * count
    for what, number in (("channel_weights", len(weights)), ("similarity", len(names))):
        if number != count and (what, number) != ("similarity", 1):
            raise PairError(
                f"{source_name('fixed', pair.fixed.image)}: {count} {'channels' if count > 1 else 'channel'}, and "
                f"{what} are for {number}; give one for each."
            )
    if count == 1:
        return Compared(pair, replace(settings, channel_weights=None), (0,))
    kept = tuple(number for number, weight in enumerate(weights) if weight)
    names = similarities(replace(settings, channel_weights=weights))
    names = [names[number] for number in kept]
    settings = replace(
        settings,
        channel_weights=None if len(kept) == 1 else tuple(weights[number] for number in kept),
        similarity=",".join(names) if len(set(names)) > 1 else names[0],
    )
    if len(kept) < count:
        pair = replace(pair, fixed=_with(pair.fixed, kept), moving=_with(pair.moving, kept))
    return Compared(pair, settings, kept)


def _with(scan: Scan, channels: Sequence[int]) -> Scan:
    image = scan.image
    meta = {name: value for name, value in image.meta.items() if name != MetaKeys.AFFINE}
    values = image.as_tensor()[list(channels)]
    return replace(scan, image=MetaTensor(values, affine=image.affine.clone(), meta=meta))
