# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""Registration by other tools, in an environment of their own; run by compare.py and domains.py.

python benchmarks/peers.py METHOD JOBS.json: each job has "fixed", "moving" (affinely aligned, but for the methods that
end in "_whole") and "field", the ITK displacement field to write. Prints one JSON list of seconds, from images in
memory to the field.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Job = dict[str, Any]


def greedy(job: Job) -> float:
    """Greedy (Yushkevich et al.), local correlation 5^D, 100x50x20 iterations."""
    import SimpleITK as sitk
    from picsl_greedy import Greedy2D, Greedy3D

    fixed, moving = sitk.ReadImage(job["fixed"]), sitk.ReadImage(job["moving"])
    dims = fixed.GetDimension()
    tool = Greedy3D() if dims == 3 else Greedy2D()
    window = "x".join("2" * dims)
    command = (
        f"-d {dims} -m NCC {window} -i fixed moving -o field -n 100x50x20 -threads {os.environ['OMP_NUM_THREADS']}"
    )
    if "smoothing" in job:
        command += " -s {}vox {}vox".format(*job["smoothing"])
    started = time.perf_counter()
    tool.execute(command, fixed=fixed, moving=moving, field=None)
    seconds = time.perf_counter() - started
    sitk.WriteImage(sitk.Cast(tool["field"], sitk.sitkVectorFloat32), job["field"])
    return seconds


def demons(job: Job) -> float:
    """Diffeomorphic demons (SimpleITK) after histogram matching, 60x40x20 iterations."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(int(os.environ["OMP_NUM_THREADS"]))
    fixed, moving = (sitk.ReadImage(job[key], sitk.sitkFloat32) for key in ("fixed", "moving"))
    started = time.perf_counter()
    moving = sitk.HistogramMatching(moving, fixed, 256, 12, True)
    field = None
    for shrink, iterations in ((4, 60), (2, 40), (1, 20)):
        images = [_shrunk(image, shrink) for image in (fixed, moving)]
        method = sitk.DiffeomorphicDemonsRegistrationFilter()
        method.SetNumberOfIterations(iterations)
        method.SetSmoothDisplacementField(True)
        method.SetStandardDeviations(job.get("smoothing", 1.0))
        start = [] if field is None else [sitk.Resample(field, images[0])]
        field = method.Execute(*images, *start)
    seconds = time.perf_counter() - started
    sitk.WriteImage(sitk.Cast(field, sitk.sitkVectorFloat32), job["field"])
    return seconds


def _shrunk(image: Any, factor: int) -> Any:
    import SimpleITK as sitk

    if factor == 1:
        return image
    smooth = sitk.SmoothingRecursiveGaussian(image, 0.5 * factor * image.GetSpacing()[0])
    return sitk.Shrink(smooth, [factor] * image.GetDimension())


def _ants(job: Job, **options: Any) -> float:
    import ants

    fixed, moving = ants.image_read(job["fixed"]), ants.image_read(job["moving"])
    started = time.perf_counter()
    result = ants.registration(fixed, moving, type_of_transform="SyNOnly", initial_transform="Identity", **options)
    seconds = time.perf_counter() - started
    (field,) = [path for path in result["fwdtransforms"] if path.endswith(".nii.gz")]
    shutil.copyfile(field, job["field"])
    return seconds


def ants_mi(job: Job) -> float:
    """ANTs SyN with mutual information, antspyx's defaults."""
    return _ants(job)


def ants_cc(job: Job) -> float:
    """ANTs SyN with cross-correlation of radius 4, 100x70x50 iterations."""
    return _ants(job, syn_metric="CC", syn_sampling=4, reg_iterations=(100, 70, 50))


def _fireants(job: Job, method: str) -> float:
    import SimpleITK as sitk
    import torch
    from fireants.io.image import BatchedImages, Image
    from fireants.registration.greedy import GreedyRegistration
    from fireants.registration.syn import SyNRegistration

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    fixed, moving = (BatchedImages([Image(sitk.ReadImage(job[key]), device=device)]) for key in ("fixed", "moving"))
    started = time.perf_counter()
    options: dict[str, Any] = {"cc_kernel_size": 5, "smooth_grad_sigma": 1.0, "smooth_warp_sigma": 0.5}
    if method == "greedy":
        registration = GreedyRegistration([4, 2, 1], [200, 100, 50], fixed, moving, optimizer_lr=0.5, **options)
    else:
        registration = SyNRegistration([4, 2, 1], [100, 50, 20], fixed, moving, optimizer_lr=0.5, **options)
    registration.optimize()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    # Its own writer fails in 2D. Positions are in [-1, 1], x first, on the fixed grid in array order.
    positions = registration.get_warped_coordinates(fixed, moving)[0].detach().cpu().double().numpy()
    image = sitk.ReadImage(job["fixed"])
    size = np.array(image.GetSize())
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in size[::-1]], indexing="ij")[::-1], axis=-1)
    displacement = (positions + 1) / 2 * (size - 1) - voxels
    axes = np.array(image.GetDirection()).reshape(len(size), len(size)) * np.array(image.GetSpacing())
    field = sitk.GetImageFromArray((displacement @ axes.T).astype(np.float32), isVector=True)
    field.CopyInformation(image)
    sitk.WriteImage(field, job["field"])
    return seconds


def fireants_greedy(job: Job) -> float:
    """FireANTs' greedy method, local correlation 5^D, 200x100x50 iterations."""
    return _fireants(job, "greedy")


def fireants_syn(job: Job) -> float:
    """FireANTs' SyN, local correlation 5^D, 100x50x20 iterations."""
    return _fireants(job, "syn")


def ants_whole(job: Job) -> float:
    """ANTs' "SyN" of antspyx: affine and SyN, its defaults."""
    import ants
    import SimpleITK as sitk

    fixed, moving = ants.image_read(job["fixed"]), ants.image_read(job["moving"])
    started = time.perf_counter()
    result = ants.registration(fixed, moving, type_of_transform="SyN", random_seed=1)
    seconds = time.perf_counter() - started
    whole = sitk.CompositeTransform(fixed.dimension)
    for path in reversed(result["fwdtransforms"]):  # the warp is listed first, and is applied last to images
        if path.endswith(".nii.gz"):
            warp = sitk.DisplacementFieldTransform(sitk.ReadImage(path, sitk.sitkVectorFloat64))
            whole.AddTransform(warp)
        else:
            whole.AddTransform(sitk.ReadTransform(path))
    image = sitk.ReadImage(job["fixed"])
    frame = (image.GetSize(), image.GetOrigin(), image.GetSpacing(), image.GetDirection())
    sitk.WriteImage(sitk.TransformToDisplacementField(whole, sitk.sitkVectorFloat64, *frame), job["field"])
    return seconds


def greedy_whole(job: Job) -> float:
    """Greedy from the centres of the images: affine, then deformable, local correlation 9^D."""
    import SimpleITK as sitk
    from picsl_greedy import Greedy2D, Greedy3D

    fixed, moving = (sitk.ReadImage(job[key], sitk.sitkFloat32) for key in ("fixed", "moving"))
    dims = fixed.GetDimension()
    tool = Greedy3D() if dims == 3 else Greedy2D()
    common = f"-threads {os.environ['OMP_NUM_THREADS']} -m NCC {'x'.join('4' * dims)} -n 100x50x20"
    started = time.perf_counter()
    tool.execute(f"{common} -a -dof 12 -ia-image-centers -i f m -o aff", f=fixed, m=moving, aff=None)
    tool.execute(f"{common} -i f m -it aff -s 2vox 0.7vox -o w", w=None)
    tool.execute("-rf f -rc whole -r w aff", whole=None)
    seconds = time.perf_counter() - started
    sitk.WriteImage(sitk.Cast(tool["whole"], sitk.sitkVectorFloat64), job["field"])
    return seconds


def elastix_whole(job: Job) -> float:
    """Elastix' default rigid, affine and B-spline maps."""
    import itk

    fixed, moving = (itk.imread(job[key], itk.F) for key in ("fixed", "moving"))
    started = time.perf_counter()
    maps = itk.ParameterObject.New()
    for kind in ("rigid", "affine", "bspline"):
        maps.AddParameterMap(maps.GetDefaultParameterMap(kind))
    threads = int(os.environ["OMP_NUM_THREADS"])
    _, found = itk.elastix_registration_method(
        fixed, moving, parameter_object=maps, log_to_console=False, number_of_threads=threads
    )
    field = itk.transformix_deformation_field(moving, found)
    seconds = time.perf_counter() - started
    itk.imwrite(field, job["field"])
    return seconds


def convexadam_whole(job: Job) -> float:
    """ConvexAdam with MIND descriptors, volumes alone."""
    import SimpleITK as sitk
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    fixed, moving = (sitk.ReadImage(job[key], sitk.sitkFloat32) for key in ("fixed", "moving"))
    images = [torch.from_numpy(sitk.GetArrayFromImage(x)) for x in (fixed, sitk.Resample(moving, fixed))]
    started = time.perf_counter()
    voxels = convex_adam_pt(*images, use_mask=False, device=torch.device("cpu"), dtype=torch.float32)
    seconds = time.perf_counter() - started
    axes = np.array(fixed.GetDirection()).reshape(3, 3) * np.array(fixed.GetSpacing())
    field = sitk.GetImageFromArray((np.asarray(voxels)[..., ::-1] @ axes.T).astype(np.float64), isVector=True)
    field.CopyInformation(fixed)
    sitk.WriteImage(field, job["field"])
    return seconds


_ALIGNED = (greedy, demons, ants_mi, ants_cc, fireants_greedy, fireants_syn)
_WHOLE = (ants_whole, greedy_whole, elastix_whole, convexadam_whole)
METHODS: dict[str, Callable[[Job], float]] = {method.__name__: method for method in (*_ALIGNED, *_WHOLE)}


def main() -> None:
    """Run the jobs of the command line."""
    method, jobs = METHODS[sys.argv[1]], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    # What the tools print goes to the error stream, the result alone to the output.
    output = os.dup(1)
    os.dup2(2, 1)
    seconds = [method(job) for job in jobs]
    with os.fdopen(output, "w") as stream:
        json.dump(seconds, stream)


if __name__ == "__main__":
    main()
