# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""How far the verdict can be trusted: registrations, good and broken, whose error is known.

    python benchmarks/verdict.py make CASES --data DATA
    python benchmarks/verdict.py fit CASES

DATA holds ``oasis2d``, ``oasis3d`` and ``domains``. A case registers an image F to an image M, where F(x) = I(T(x)) for
a drawn map T, and M is I itself, or what a registration of real pairs takes I to, if its labels or landmarks are right.
So the true map is known everywhere. ``make`` writes one file a case into CASES and goes on where it was stopped.
``fit`` reads them, fits the verdict's coefficients to one half, and tests them on the other. The halves have other
subjects, and the second one has anatomies that the first one lacks. Cases are small: 110 points along an image,
56 in 3D.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage
from start import turn

from monai_nodeo import Registration, Settings, register
from monai_nodeo.data import as_image, load_pair
from monai_nodeo.data.placement import on_grid_of, voxel_sides
from monai_nodeo.metrics.confidence import signs
from monai_nodeo.metrics.evidence import LIMIT_MM, LIMIT_VOXELS, gather
from monai_nodeo.registration import PairInferer
from monai_nodeo.registration.optimisation.trainer import DivergedError

SETS = {"slices": 110, "volumes": 56, "whole": 192}  # points along the longest side of an image
WHOLE = 3000  # from this number on there are real pairs of slices as they are, half of them without a drawn deformation
# kind -> pairs of the half that the verdict is fitted to, and of the other one
DOMAINS = {
    "cine2d": ("hyp01 hyp37 n02", "hfi05 n05"),
    "hippocampus": ("004_165 114_173 178_222", "225_077 309_088 385_176"),
    "mousebrain": ("1_2 2_8", "5_6"),
    "liver4dmr": ("18_cyc_1_10 23_cyc_1_4", "19_cyc_1_6 26_cyc_1_6"),
    "mouseskull": ("129x1_cast", "c57bl6_nod"),
    "prostate": ("usmr_00", "usmr_25"),
    "histo": ("", "ratkidney"),
    "lungct": ("", "elastix"),
    "spinalcord": ("", "t2_t1"),
    "cine3d": ("", "hfi05"),
}
# axes along which a mirror image differs; a head with left and right exchanged looks like a head
MIRRORED = {
    "oasis2d": [1],
    "oasis3d": [1, 2],
    "mousebrain": [1, 2],
    "mouseskull": [1, 2],
    "spinalcord": [0],
    "prostate": [0],
}
# share of the cases
BREAKS = {
    "none": 0.34,
    "affine": 0.08,
    "turned": 0.1,
    "shifted": 0.12,
    "scaled": 0.04,
    "mirrored": 0.05,
    "cut": 0.08,
    "other": 0.06,
    "noise": 0.04,
    "contrast": 0.05,
    "settings": 0.04,
}
HEAD = """| | registrations | wrong | AUC | missed at 1 % false alarms | wrong, called aligned \
| twice as wrong, called aligned | good, doubted | not wrong, doubted |
|---|---|---|---|---|---|---|---|---|"""
WITHOUT_MM = ("cine2d", "histo")
SIGNS = ("shared", "aside", "strayed")
TOGETHER = 60  # cases that are drawn at once
WITHOUT_TRUTH = ("other", "noise")


@dataclass(frozen=True, eq=False)
class Source:
    """Two images on one grid, and where points of the first one are in the second.

    Attributes:
        kind: of anatomy.
        half: 0 to fit, 1 to test.
        one: (*spatial).
        other: (*spatial).
        way: displacement one -> other in voxels, (D, *spatial).
        affine: voxel -> RAS mm, (4, 4).
    """

    kind: str
    half: int
    one: np.ndarray
    other: np.ndarray
    way: np.ndarray
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        return np.linalg.norm(self.affine[:3, : self.one.ndim], axis=0)


def image_of(values: np.ndarray, affine: np.ndarray) -> MetaTensor:
    """On a grid, (1, *spatial)."""
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(values, np.float32))[None], affine=torch.tensor(affine))


def smaller(image: MetaTensor, points: int) -> MetaTensor:
    """Means of blocks of voxels, values in [0, 1]."""
    values, dims = image.as_tensor()[0].numpy().astype(np.float32), image.ndim - 1
    spacing = np.array(voxel_sides(image.affine, dims))
    wanted = (spacing * values.shape).max() / points
    blocks = [max(1, min(round(wanted / s), n // 12)) for s, n in zip(spacing, values.shape, strict=True)]
    values = values[tuple(slice(0, n // b * b) for n, b in zip(values.shape, blocks, strict=True))]
    parts = values.reshape([x for n, b in zip(values.shape, blocks, strict=True) for x in (n // b, b)])
    low, high = np.percentile(values, (0.1, 99.9))
    values = ((parts.mean(tuple(range(1, 2 * dims, 2))) - low) / (high - low)).clip(0, 1)
    affine = np.eye(4)
    affine[:dims, :dims] = np.diag(spacing * blocks)
    if dims == 3:
        affine = image.affine.numpy().astype(float).copy()
        affine[:3, 3] += affine[:3, :3] @ ((np.array(blocks) - 1) / 2)
        affine[:3, :3] *= blocks
    return image_of(values, affine)


def sources(data: Path, which: str) -> Iterator[Source]:
    """All of a set; of a pair that its labels or landmarks doubt there are the two images alone."""
    points = SETS[which]
    if which != "volumes":
        slices = sorted(data.glob("oasis2d/*/slice_norm.nii.gz"))
        for half in (0, 1):
            own = slices[half::2]
            for fixed, moving in zip(own, own[1:] + own[:1], strict=True):
                for source in pair_of("oasis2d", half, points, fixed, moving):
                    if which == "slices" or source.way.any():
                        yield source
    else:
        for half in (0, 1):
            yield from pair_of("oasis3d", half, points, data / f"oasis3d/000{half + 1}/aligned_norm.nii.gz", None)
    for kind, names in DOMAINS.items():
        flat = kind in WITHOUT_MM
        for half in (0, 1) if which == ("slices" if flat else "volumes") else ():
            for number, name in enumerate(names[half].split()):
                folder = data / "domains" / f"{kind}_{name}"
                ends = ".png" if flat else ".nii.gz"
                yield from pair_of(
                    kind, half, points, folder / f"fixed{ends}", folder / f"moving{ends}", flat or number == 0
                )


def pair_of(
    kind: str, half: int, points: int, fixed: Path, moving: Path | None, registered: bool = True
) -> Iterator[Source]:
    """Both images alone, and as a pair if it is to be registered and that is right."""
    pair = [load_pair({"fixed": path, "moving": path}).fixed.image for path in (fixed, moving) if path]
    images = [smaller(image, points) for image in pair]
    for image in images[: 1 if kind == "oasis2d" else 2]:
        values = image.as_tensor()[0].numpy()
        still = np.zeros((values.ndim, *values.shape), np.float32)
        yield Source(kind, half, values, values, still, image.affine.numpy())
    if moving is None or not registered or kind in ("prostate", "mouseskull"):
        return
    known = {}
    for side, path, large, small in zip(("fixed", "moving"), (fixed, moving), pair, images, strict=True):
        label = path.with_name(path.name.replace(".", "_label.", 1).replace("norm_label", "seg24"))
        points = path.with_name(f"{side}_points.csv")
        if label.exists():
            known[f"{side}_label"] = label_of(label, small)
        if points.exists() and large.ndim == 4:
            known[f"{side}_landmarks"] = points
    settings = Settings.preset(None, images[0].ndim - 1, landmark_weight=0)
    found = register(*images, settings, **known, device="cpu", handlers=())
    after = found.figures()["after"]
    before = found.figures()["before"]
    limit = min(LIMIT_MM, LIMIT_VOXELS * max(found.flow.grid.spacing))
    accepted = after.get("dice_mean", 1) > 0.6 and after.get("tre_mm_mean", 0) < limit / 2
    print(f"{kind} {fixed.parent.name}: {found.alignment['kind']} {before} {after} {accepted}"[:300], flush=True)
    if accepted:
        there = on_grid_of(found.pair.fixed.image, images[1], found.start)[0].as_tensor().numpy()
        way = found.displacement.numpy()
        yield Source(kind, half, images[0].as_tensor()[0].numpy(), there, way, images[0].affine.numpy())


def label_of(path: Path, small: MetaTensor) -> MetaTensor:
    """Labels of the middle voxels of blocks."""
    label = as_image(path).as_tensor()[0].numpy()
    blocks = [n // m for n, m in zip(label.shape, small.shape[1:], strict=True)]
    middle = tuple(slice(b // 2, m * b, b) for b, m in zip(blocks, small.shape[1:], strict=True))
    return image_of(label[middle], small.affine.numpy())


def smooth_field(rng: np.random.Generator, shape: tuple[int, ...], spacing: np.ndarray) -> np.ndarray:
    """A random displacement in mm, (D, *shape), without folds."""
    extent = (spacing * shape).max()
    sigma = rng.uniform(0.06, 0.2) * extent / spacing
    field = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), sigma, mode="nearest") for _ in shape])
    steep = max(np.abs(np.gradient(c, s, axis=a)).max() for c in field for a, s in enumerate(spacing))
    return (field * rng.uniform(0.02, 0.35) / steep).astype(np.float32)


def drawn_map(rng: np.random.Generator, source: Source, broken: str, plain: bool) -> np.ndarray:
    """Where voxels of F are in I, in voxels, (D, *spatial)."""
    shape, dims, spacing = source.one.shape, source.one.ndim, source.spacing
    places = np.indices(shape).astype(np.float32) * spacing.reshape(-1, *[1] * dims)
    if not plain and (rng.random() < 0.8 or not source.way.any()):
        places = places + smooth_field(rng, shape, spacing)
    extent = float(np.prod(spacing * shape) ** (1 / dims))
    linear, shift = np.eye(dims), np.zeros(dims)
    if broken in ("affine", "turned"):
        linear = turn(rng, dims, math.radians(rng.uniform(8, 180)))
    if broken in ("affine", "scaled"):
        linear = linear * math.exp(rng.choice([-1, 1]) * rng.uniform(0.05, 0.4))
    if broken in ("affine", "shifted", "none"):
        way = rng.normal(size=dims)
        far = {
            "affine": rng.uniform(0, 0.2),
            "shifted": rng.uniform(0.03, 0.3),
            "none": rng.uniform(0, 0.02) * (not plain),
        }[broken]
        shift = far * extent * way / np.linalg.norm(way)
    if broken == "mirrored":
        axis = int(rng.choice(MIRRORED.get(source.kind, range(dims))))
        linear[axis, axis] = -1
    middle = (np.array(shape) - 1) * spacing / 2
    flat = linear @ (places.reshape(dims, -1) - middle[:, None]) + (middle + shift)[:, None]
    return (flat / spacing[:, None]).reshape(dims, *shape).astype(np.float32)


def sampled(image: np.ndarray, places: np.ndarray, outside: float) -> np.ndarray:
    """An image at places in its voxels, (D, *spatial)."""
    return ndimage.map_coordinates(image, places, order=1, mode="constant", cval=outside)


def air(image: np.ndarray) -> float:
    """The middle one of the grey values at the border."""
    border = np.ones(image.shape, bool)
    border[(slice(1, -1),) * image.ndim] = False
    return float(np.median(image[border]))


def other_values(rng: np.random.Generator, image: np.ndarray, strange: bool) -> np.ndarray:
    """The same with a gamma, a bias field and noise, perhaps inverted; or, if strange, of another contrast."""
    values = image.clip(0, 1) ** math.exp(rng.uniform(-0.4, 0.4))
    if strange:
        knots = np.linspace(0, 1, int(rng.integers(4, 7)))
        values = np.interp(values, knots, rng.uniform(0, 1, len(knots)))
    elif rng.random() < 0.1:
        values = 1 - values
    bias = ndimage.gaussian_filter(rng.normal(size=image.shape), [n / 4 for n in image.shape])
    values = values * np.exp(rng.uniform(0, 0.25) * bias / np.abs(bias).max())
    return values + rng.choice([0, 0.01, 0.03, 0.08]) * rng.normal(size=image.shape)


def noise_like(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The voxels of an image in any order, perhaps smoothed."""
    white = rng.permutation(image.ravel()).reshape(image.shape)
    sigma = rng.choice([0, 1, 3])
    return white if not sigma else ndimage.gaussian_filter(white, sigma)


def settings_of(rng: np.random.Generator, dims: int, broken: str) -> Settings:
    """Of presets, mostly fast; where the start is to be missed, that of the headers."""
    name = rng.choice(["fast", "default", "multimodal"], p=[0.8, 0.17, 0.03] if dims == 2 else [0.92, 0.06, 0.02])
    changes: dict = {"crop_air": False}  # so that pairs of one size make a batch
    if broken in ("turned", "shifted", "scaled", "mirrored") or (broken != "affine" and rng.random() < 0.8):
        changes["initial_transform"] = "none"
    if broken == "settings":
        free = {"folding_weight": 0.0, "smoothness_weight": 0.0}
        spoilt = [
            {"learning_rate": 5.0},
            {"kernel_passes": 0, **free},
            {"kernel_size": 0.6, **free},
            {"iterations": (1, 1, 1)[-3:]},
        ]
        changes |= spoilt[int(rng.integers(4))]
        if "iterations" in changes:
            changes |= {"shrink_factors": (4, 2, 1), "dense_iterations": 0}
    return Settings.preset(None if name == "default" else str(name), dims, **changes)


def set_of(number: int) -> str:
    """Two of ten cases are volumes."""
    return "whole" if number >= WHOLE else "volumes" if number % 10 >= 8 else "slices"


@dataclass(frozen=True, eq=False)
class Drawn:
    """A case before its registration.

    Attributes:
        case: what was drawn.
        source: of its images.
        fixed: the image F.
        moving: the image M, perhaps a part of it.
        origin: first voxel of that part.
        there: true place of each voxel of F, in voxels of its grid, (D, *spatial).
        settings: to register with.
    """

    case: dict
    source: Source
    fixed: MetaTensor
    moving: MetaTensor
    origin: np.ndarray
    there: np.ndarray
    settings: Settings

    @property
    def both_ways(self) -> bool:
        return self.case["number"] % 6 < 2 and self.case["number"] < WHOLE


def draw(number: int, everything: list[Source]) -> Drawn:
    """The case of a number."""
    rng = np.random.default_rng(number)
    half, dims = number % 2, everything[0].one.ndim
    plain = set_of(number) == "whole" and rng.random() < 0.5
    kinds = sorted({s.kind for s in everything if s.half == half and s.one.ndim == dims})
    weights = np.array([4.0 if kind == "oasis2d" else 1.0 for kind in kinds])
    kind = rng.choice(kinds, p=weights / weights.sum())
    own = [s for s in everything if s.half == half and s.kind == kind]
    source = own[int(rng.integers(len(own)))]
    broken = str(rng.choice(list(BREAKS), p=list(BREAKS.values())))
    settings = settings_of(rng, dims, broken)
    if set_of(number) == "whole" and broken == "other":
        broken = "noise"
    truth = drawn_map(rng, source, broken, plain)
    fixed = sampled(source.one, truth, air(source.one))
    there = truth + np.stack([ndimage.map_coordinates(c, truth, order=1, mode="nearest") for c in source.way])
    moving, origin = source.other, np.zeros(dims)
    if broken == "noise":
        moving = noise_like(rng, moving)
    if broken == "other":
        strangers = [s for s in everything if s.half == half and s.one.ndim == dims and s.kind[:5] != kind[:5]]
        stranger = strangers[int(rng.integers(len(strangers)))].one
        moving = ndimage.zoom(stranger, np.array(moving.shape) / stranger.shape, order=1)
    if not plain or broken == "contrast":
        fixed, moving = other_values(rng, fixed, broken == "contrast"), other_values(rng, moving, False)
    if broken == "cut":
        axis = int(rng.integers(dims))
        count = max(10, round(rng.uniform(0.3, 0.8) * moving.shape[axis]))
        origin[axis] = rng.integers(moving.shape[axis] - min(count, moving.shape[axis]) + 1)
        moving = moving.take(range(int(origin[axis]), min(int(origin[axis]) + count, moving.shape[axis])), axis)
    placed = source.affine.copy()
    placed[:3, 3] += placed[:3, :dims] @ origin
    case = {"number": number, "kind": str(kind), "half": half, "dims": dims, "broken": broken}
    images = image_of(fixed, source.affine), image_of(moving, placed)
    return Drawn(case, source, *images, origin, there, settings)


def finished(drawn: Drawn, found: Registration, back: Registration | None) -> dict[str, np.ndarray]:
    """What the verdict may look at, and the true error."""
    source, dims, case = drawn.source, drawn.source.one.ndim, dict(drawn.case)
    fixed, size = drawn.fixed.as_tensor()[0].numpy(), drawn.moving.shape[1:]
    case |= {"settings": found.settings.to_dict(), "start": found.alignment, "similarity": found.similarity}
    case["certificate"] = found.certificate.to_dict()
    ddf = found.ddf.numpy()
    away = np.indices(fixed.shape) + ddf - drawn.there
    counts = np.abs(fixed - air(fixed)) > 0.2 * np.ptp(np.percentile(fixed, (1, 99)))
    seen = [(t >= o) & (t <= o + n - 1) for t, o, n in zip(drawn.there, drawn.origin, size, strict=True)]
    counts &= np.logical_and.reduce(seen)
    if case["broken"] not in WITHOUT_TRUTH:
        if counts.sum() < 0.03 * counts.size:
            return {"case": case | {"refused": "nothing in common"}}
        length = np.linalg.norm(away * source.spacing.reshape(-1, *[1] * dims), axis=0)[counts]
        voxels = np.linalg.norm(away, axis=0)[counts]
        case |= {"mm": float(length.mean()), "mm95": float(np.quantile(length, 0.95)), "voxels": float(voxels.mean())}
    if back is not None:
        points = world_points(source)
        apart = torch.linalg.vector_norm(back.map.points(found.map.points(points)) - points, dim=-1)
        case["back"] = apart.quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
    arrays = {"fixed": fixed, "warped": found.warp(drawn.moving)[0].as_tensor().numpy(), "ddf": ddf}
    arrays["moving"] = on_grid_of(drawn.fixed, drawn.moving, found.start)[0].as_tensor().numpy()
    arrays |= {"flow": found.displacement.numpy(), "origin": drawn.origin, "size": np.array(size)}
    arrays["loss"] = found.history["loss"].numpy()
    return {"case": case, "affine": source.affine, **{k: v.astype(np.float16) for k, v in arrays.items()}}


def world_points(source: Source) -> torch.Tensor:
    """Every so manieth voxel of the foreground of the first image, (N, 3) RAS mm."""
    inside = np.argwhere(np.abs(source.one - air(source.one)) > 0.2)
    index = inside[:: max(1, len(inside) // 500)]
    dims = source.one.ndim
    return torch.from_numpy(index @ source.affine[:3, :dims].T + source.affine[:3, 3])


def make(data: Path, folder: Path, numbers: Sequence[int], which: str) -> None:
    """Make the cases that are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = folder / f"sources_{which}.pkl"
    if not stored.exists():
        stored.write_bytes(pickle.dumps(list(sources(data, which))))
    everything = pickle.loads(stored.read_bytes())
    left = [n for n in numbers if set_of(n) == which and not (folder / f"{n:05d}.npz").exists()]
    for first in range(0, len(left), TOGETHER):
        drawn = [draw(number, everything) for number in left[first : first + TOGETHER]]
        for settings in {json.dumps(d.settings.to_dict()): d.settings for d in drawn}.values():
            inferer = PairInferer(settings, handlers=())
            own = [d for d in drawn if d.settings == settings]
            tasks = [(d, False) for d in own] + [(d, True) for d in own if d.both_ways]
            found = registered(inferer, tasks)
            for one in own:
                result = found[one.case["number"], False]
                content = (
                    {"case": one.case | {"refused": result}}
                    if isinstance(result, str)
                    else finished(one, result, found.get((one.case["number"], True)))
                )
                store(folder, content)


def registered(inferer: PairInferer, tasks: list[tuple[Drawn, bool]]) -> dict[tuple[int, bool], Registration | str]:
    """Registrations of cases, from moving to fixed if so wanted; those that fail together are tried one by one."""
    images = [(d.moving, d.fixed) if back else (d.fixed, d.moving) for d, back in tasks]
    pairs = [load_pair({"fixed": fixed, "moving": moving}) for fixed, moving in images]
    names = [(d.case["number"], back) for d, back in tasks]
    try:
        return dict(zip(names, inferer.register(pairs, "cpu"), strict=True))
    except (DivergedError, ValueError) as error:
        if len(tasks) == 1:
            return {} if tasks[0][1] else {names[0]: str(error)}
        return {name: value for task in tasks for name, value in registered(inferer, [task]).items()}


def store(folder: Path, content: dict) -> None:
    """One file a case, whole or not at all."""
    case = content.pop("case")
    path = folder / f"{case['number']:05d}.npz"
    partial = path.with_suffix(".part.npz")
    np.savez_compressed(partial, case=json.dumps(case), **content)
    partial.rename(path)
    print(case["number"], case["kind"], case["broken"], case.get("mm", case.get("refused")), flush=True)


def far(case: dict) -> float:
    """How many times as far as is called wrong; a PNG has no millimetres."""
    voxels = case["voxels"] / LIMIT_VOXELS
    return voxels if case["kind"] in WITHOUT_MM else max(case["mm"] / LIMIT_MM, voxels)


def in_view(ddf: np.ndarray, origin: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Where a displacement ends in an image of which a part was taken, (*spatial), bool."""
    ways = zip(np.indices(ddf.shape[1:]) + ddf, origin, size, strict=True)
    return np.logical_and.reduce([(p >= o - 0.5) & (p <= o + n - 0.5) for p, o, n in ways])


def look(path: Path) -> dict | None:
    """What the verdict sees of a case, and what is true of it."""
    arrays = dict(np.load(path))
    case = json.loads(str(arrays.pop("case")))
    if "refused" in case:
        return None
    affine = arrays.pop("affine")
    images = {name: arrays[name].astype(np.float32) for name in ("fixed", "moving", "warped")}
    if case["kind"] in WITHOUT_MM:
        affine = np.eye(4)
    flow, ddf = (arrays[name].astype(np.float32) for name in ("flow", "ddf"))
    masks = {
        name: in_view(d, arrays["origin"], arrays["size"]) for name, d in (("moving", ddf - flow), ("warped", ddf))
    }
    evidence = gather(images, flow, affine, masks)
    row = {name: case[name] for name in ("number", "kind", "half", "broken")}
    row["preset"] = "fast" if case["settings"]["iterations"] in ([12, 8], [30, 15, 5], [30, 15, 6]) else "other"
    row["searched"], row["defended"] = case["start"]["kind"] != "headers", case["start"]["defended"]
    row |= {name: round(case[name], 2) if name in case else None for name in ("mm", "voxels")}
    row["back"] = round(case["back"][1], 2) if "back" in case else None
    row["far"] = None if case["broken"] in WITHOUT_TRUTH else round(far(case), 3)
    seen = {"moved": evidence.moved, "bent": evidence.bent, **signs(evidence)}
    return row | {name: round(value, 4) for name, value in seen.items()}


def fitted(signs: np.ndarray, wrong: np.ndarray, ridge: float = 1.0) -> np.ndarray:
    """Constant and coefficients of a logistic model, by Newton's steps; those of scaled signs are kept small."""
    mean, scale = signs.mean(0), signs.std(0) + 1e-9
    x = np.c_[np.ones(len(signs)), (signs - mean) / scale]
    held = np.diag([0.0, *[ridge] * signs.shape[1]])
    weights = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ weights))
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + held, x.T @ (p - wrong) + held @ weights)
        weights = weights - step
    return np.r_[weights[0] - weights[1:] / scale @ mean, weights[1:] / scale]


def area(score: np.ndarray, wrong: np.ndarray) -> float:
    """Under the ROC curve."""
    rank = score.argsort().argsort()
    return (rank[wrong].sum() - wrong.sum() * (wrong.sum() - 1) / 2) / (wrong.sum() * (~wrong).sum())


class Rows:
    """The cases as arrays, (N,) each, and the signs (N, 3)."""

    def __init__(self, rows: list[dict]) -> None:
        def column(name: str) -> np.ndarray:
            return np.array([row[name] for row in rows])

        self.signs = np.array([[row[name] for name in SIGNS] for row in rows])
        self.kind, self.broken = column("kind"), column("broken")
        self.far = np.array([np.inf if row["far"] is None else row["far"] for row in rows])
        self.wrong, self.good = self.far > 1, self.far < 0.5
        self.fitted = column("half") == 0
        self.back = np.array([np.nan if row["back"] is None else row["back"] for row in rows])
        self.kind = np.where(column("number") >= WHOLE, "oasis2d whole", self.kind)
        parts = np.char.add(np.char.add(self.kind, " "), (column("number") // 2 % 3).astype(str))
        self.group = np.where(np.char.startswith(self.kind, "oasis2d"), parts, self.kind)


def scores(model: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Logarithms of the odds."""
    return model[0] + signs @ model[1:]


def of_left_out(rows: Rows) -> np.ndarray:
    """Scores of each kind of the fitted half by a model of its other kinds, (N,)."""
    found = np.full(len(rows.wrong), np.nan)
    for group in np.unique(rows.group[rows.fitted]):
        own, others = rows.group == group, rows.fitted & (rows.group != group)
        found[own] = scores(fitted(rows.signs[others], rows.wrong[others]), rows.signs[own])
    return found


def line(name: str, rows: Rows, score: np.ndarray, which: np.ndarray, limit: float) -> str:
    """A row of the table."""
    wrong, right, good = (score[which & x] for x in (rows.wrong, ~rows.wrong, rows.good))
    far = score[which & (rows.far > 2)]
    cells = [name, str(which.sum()), str(len(wrong))]
    if len(wrong) and len(right):
        cells += [f"{area(score[which], rows.wrong[which]):.4f}", f"{(wrong <= np.quantile(right, 0.99)).mean():.1%}"]
    else:
        cells += ["", ""]
    cells += [f"{(x <= limit).sum()} of {len(x)}" for x in (wrong, far)]
    cells += [f"{(x > limit).sum()} of {len(x)}" for x in (good, right)]
    return f"| {' | '.join(cells)} |"


def fit(folder: Path, stored: Path) -> None:
    """Fit to one half, set the thresholds there, test on the other one."""
    known = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {"columns": [], "rows": []}
    found = {row[0]: dict(zip(known["columns"], row, strict=True)) for row in known["rows"]}
    for path in sorted(folder.glob("?????.npz")):
        if int(path.stem) not in found and (row := look(path)) is not None:
            found[row["number"]] = row
    listed = [found[number] for number in sorted(found)]
    table = {"columns": list(listed[0]), "rows": [list(row.values()) for row in listed]}
    stored.write_text(json.dumps(table, separators=(",", ":")).replace("],[", "],\n[") + "\n")
    rows = Rows(listed)
    model, unseen, tuning = fitted(rows.signs[rows.fitted], rows.wrong[rows.fitted]), of_left_out(rows), rows.fitted
    score = scores(model, rows.signs)
    wrong, good = (unseen[tuning & x] for x in (rows.wrong, rows.good))
    limit = (np.quantile(wrong, 0.01) + np.quantile(good, 0.95)) / 2
    print(f"_CONSTANT = {model[0]:.2f}\n_COEFFICIENTS = {dict(zip(SIGNS, model[1:].round(2).tolist(), strict=True))}")
    print(f"ALIGNED = {1 / (1 + math.exp(-limit)):.2f}\n")
    print(HEAD)
    everything = np.ones_like(tuning)
    print(line("fitted half, each kind by a model of the others", rows, unseen, tuning, limit))
    for name, own in (("all", everything), *((k, rows.kind == k) for k in np.unique(rows.kind))):
        print(line(f"held out: {name}", rows, score, ~tuning & own, limit))
    for name in BREAKS:
        print(line(f"held out: {name}", rows, score, ~tuning & (rows.broken == name), limit))
    both = np.isfinite(rows.back)
    areas = [area(x[both & ~tuning], rows.wrong[both & ~tuning]) for x in (rows.back, score)]
    print(f"\n{(both & ~tuning).sum()} registered both ways, AUC by the distance and by the signs: {areas}\n")
    p = 1 / (1 + np.exp(-score))
    print("| probability | registrations | said | wrong |\n|---|---|---|---|")
    for tenth in range(10):
        own = ~tuning & ((p * 10).astype(int).clip(0, 9) == tenth)
        print(
            f"| {tenth / 10} to {(tenth + 1) / 10} | {own.sum()} | {p[own].mean():.2f} | {rows.wrong[own].mean():.2f} |"
        )


def main() -> None:
    """Make the cases, or fit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=["make", "fit"])
    parser.add_argument("cases", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--count", type=int, default=2600, help="of reduced images")
    parser.add_argument("--whole", type=int, default=400, help="of whole slices")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.action == "fit":
        fit(given.cases, given.json)
        return
    numbers = [*range(given.count), *range(WHOLE, WHOLE + given.whole)]
    for which in given.sets:
        make(given.data, given.cases, numbers, which)


if __name__ == "__main__":
    main()
