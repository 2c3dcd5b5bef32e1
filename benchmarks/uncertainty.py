# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether places that are called uncertain are those that are wrong: rank correlation of the map and true errors.

    python benchmarks/uncertainty.py DATA [--only PREFIX,...] [--count 8]

DATA holds ``oasis2d``, ``oasis3d`` and ``domains``. A pair of known truth is an image I with noise, and I(T(x)) with
noise of its own for a drawn smooth map T; errors are taken at all voxels of the fixed foreground. Other pairs are real,
and errors are the distances of their landmarks. Rows that are there already are replaced in the JSON file beside this
script.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from domains import part, points
from monai.data import MetaTensor
from scipy import ndimage
from scipy.stats import spearmanr
from verdict import smaller, smooth_field

from monai_nodeo import Registration, Settings
from monai_nodeo.data import Pair, load_pair
from monai_nodeo.data.pair import Scan
from monai_nodeo.metrics.evidence import foreground
from monai_nodeo.registration import PairInferer

NOISE = (0.01, 0.03, 0.06)  # of the range of the image
VOLUME, SECTION, ABDOMEN = 48, 400, 100  # points along the longest side
KNOWN = {
    **{f"oasis2d_{n}": (f"oasis2d/*{n:04d}/slice_norm.nii.gz", 10**6) for n in (2, 4, 6, 10, 12)},
    **{f"oasis3d_{n}": (f"oasis3d/{n:04d}/aligned_norm.nii.gz", VOLUME) for n in (1, 2)},
    "cine2d_n05": ("domains/cine2d_n05/fixed.png", 10**6),
    "hippocampus_225": ("domains/hippocampus_225_077/fixed.nii.gz", VOLUME),
    "mousebrain_5": ("domains/mousebrain_5_6/fixed.nii.gz", VOLUME),
    "lungct_moved": ("domains/lungct_elastix/fixed.nii.gz", VOLUME),
}
LANDMARKS = {
    "lungct_elastix": 10**6,
    "histo_ratkidney": SECTION,
    **{f"liver4dmr_{n}": ABDOMEN for n in ("18_cyc_1_10", "23_cyc_1_4", "19_cyc_1_6", "26_cyc_1_6")},
}


def coarser(image: MetaTensor, points: int) -> MetaTensor:
    """Means of blocks of voxels, where the image is larger."""
    return smaller(image, points) if max(image.shape[1:]) > points else image


def moved(path: Path, side: int, seed: int) -> tuple[Pair, np.ndarray]:
    """An image that is moved by a drawn map, and where its voxels are in the other, (D, *spatial), voxels."""
    rng = np.random.default_rng(seed)
    image = coarser(load_pair({"fixed": path, "moving": path}).fixed.image, side)
    values = image.as_tensor()[0].numpy().astype(float)
    values = (values - values.min()) / (np.percentile(values, 99.9) - values.min())
    spacing = np.linalg.norm(image.affine.numpy()[:3, : values.ndim], axis=0)
    field = smooth_field(rng, values.shape, spacing) / spacing.reshape(-1, *[1] * values.ndim)
    there = np.indices(values.shape) + field
    level, air = rng.choice(NOISE), values.min()
    fixed = ndimage.map_coordinates(values, there, order=1, mode="constant", cval=air)
    scans = []
    meta = {name: value for name, value in image.meta.items() if name != "affine"}
    for one in (fixed, values):
        noisy = torch.from_numpy(one + level * rng.normal(size=one.shape) * (one > air)).float()[None]
        scans.append(Scan(MetaTensor(noisy, affine=image.affine, meta=dict(meta))))
    return Pair(*scans, path.parent.name), there


def registered(pair: Pair, count: int) -> Registration:
    """With the default settings."""
    settings = Settings.preset(None, pair.spatial_dims, cuda_graph=False)
    return PairInferer(settings, handlers=(), uncertainty=count).register([pair])[0]


def known(path: Path, side: int, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Uncertainty and error at each voxel of the foreground, mm."""
    pair, there = moved(path, side, seed)
    found = registered(pair, count)
    assert found.uncertainty is not None
    spacing = np.reshape(found.flow.grid.spacing, (-1, *[1] * (len(there))))
    error = np.linalg.norm((found.ddf.numpy() + np.indices(there.shape[1:]) - there) * spacing, axis=0)
    inside = foreground(pair.fixed.image.as_tensor()[0].numpy())
    return found.uncertainty.numpy()[inside], error[inside]


def landmarks(folder: Path, side: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Uncertainty and error at each landmark, mm."""
    pair = load_pair({key: part(folder, key) for key in ("fixed", "moving")})
    pair = Pair(*(Scan(coarser(scan.image, side)) for scan in (pair.fixed, pair.moving)), folder.name)
    found = registered(pair, count)
    assert found.uncertainty is not None
    here, there = (
        np.pad(points(folder / f"{key}_points.csv", pair.spatial_dims), ((0, 0), (0, 3 - pair.spatial_dims)))
        * (-1, -1, 1)
        for key in ("fixed", "moving")
    )
    error = np.linalg.norm(found.points(torch.from_numpy(here)).numpy() - there, axis=1)
    back = np.linalg.inv(found.flow.grid.affine)
    voxels = (here @ back[:3, :3].T + back[:3, 3])[:, : pair.spatial_dims]
    return ndimage.map_coordinates(found.uncertainty.numpy(), voxels.T, order=1, mode="nearest"), error


def main() -> None:
    """Print a line for each pair, write the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", default="", help="what the names of the pairs begin with")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    rows = json.loads(given.json.read_text(encoding="utf-8")) if given.json.exists() else []
    for seed, name in enumerate([*KNOWN, *LANDMARKS]):
        if not name.startswith(tuple(given.only.split(","))):
            continue
        if name in KNOWN:
            pattern, side = KNOWN[name]
            map_mm, error = known(next(given.data.glob(pattern)), side, seed, given.count)
        else:
            map_mm, error = landmarks(given.data / "domains" / name, LANDMARKS[name], given.count)
        row = {
            "pair": name,
            "truth": "map" if name in KNOWN else "landmarks",
            "places": len(error),
            "count": given.count,
            "spearman": float(spearmanr(map_mm, error)[0]) if np.ptp(map_mm) else None,  # none of nothing but the start
            "error_median": float(np.median(error)),
            "error_90": float(np.quantile(error, 0.9)),
            "uncertainty_median": float(np.median(map_mm)),
            "uncertainty_90": float(np.quantile(map_mm, 0.9)),
        }
        row = {key: round(x, 3) if isinstance(x, float) else x for key, x in row.items()}
        print(json.dumps(row), flush=True)
        rows = [x for x in rows if x["pair"] != name] + [row]
        rows.sort(key=lambda x: (x["truth"], x["pair"]))
        given.json.write_text("[\n" + ",\n".join(json.dumps(x) for x in rows) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
