# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from loss_inputs import gradient, images, random_weight
from monai.data import MetaTensor
from synthetic import smooth_ddf
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.modules.loss import _Loss

from monai_nodeo import losses
from monai_nodeo.losses import (
    ChannelLoss,
    DDFLoss,
    FoldingLoss,
    ImageLoss,
    IntensityLoss,
    LocalCorrelationRatioLoss,
    LocalNCCLoss,
    LogJacobianBound,
    LogJacobianLoss,
    MappedIntensityLoss,
    MINDSSCLoss,
    RegistrationLoss,
    SmoothnessLoss,
    TemperedLoss,
    VelocityMagnitudeLoss,
    landmark_loss,
)

SHAPES = [(11, 9), (9, 7, 5)]
IMAGE_LOSSES: dict[str, Callable[[int], ImageLoss]] = {
    "NCC": lambda dims: LocalNCCLoss(dims, 5),
    "correlation ratio": lambda dims: LocalCorrelationRatioLoss(dims, 5),
    "intensity": lambda dims: IntensityLoss(),
    "mapped": lambda dims: MappedIntensityLoss(8),
    "MIND": lambda dims: MINDSSCLoss(dims),
    "tempered": lambda dims: TemperedLoss(IntensityLoss(), 0.02),
}
FIELD_LOSSES: dict[str, Callable[[], DDFLoss]] = {
    "folding": FoldingLoss,
    "log Jacobian": LogJacobianLoss,
    "smoothness": SmoothnessLoss,
    "magnitude": VelocityMagnitudeLoss,
}
every_shape = pytest.mark.parametrize("shape", SHAPES)


def test_every_loss_is_one_of_torch_and_takes_what_monais_take():
    classes = {x for x in vars(losses).values() if inspect.isclass(x) and not inspect.isabstract(x)}
    classes -= {RegistrationLoss, ChannelLoss}  # of other losses
    classes -= {LogJacobianBound}  # a LogJacobianLoss whose weight moves
    made = {type(make(2)) for make in IMAGE_LOSSES.values()} | set(FIELD_LOSSES.values())
    assert made == classes
    for loss in made:
        assert issubclass(loss, _Loss)
        names = list(inspect.signature(loss.forward).parameters)
        assert names[1:3] == (["ddf", "spacing"] if issubclass(loss, DDFLoss) else ["input", "target"])
    for make in IMAGE_LOSSES.values():
        first, second = images((11, 9))
        assert torch.equal(make(2)(input=first, target=second), make(2)(first, second))


def test_reductions_that_do_nothing_are_refused():
    for loss in (IntensityLoss, MappedIntensityLoss, LogJacobianLoss, SmoothnessLoss, VelocityMagnitudeLoss):
        with pytest.raises(TypeError):
            loss(reduction="none")
    for loss in (LocalNCCLoss, LocalCorrelationRatioLoss, MINDSSCLoss, FoldingLoss):
        with pytest.raises(ValueError, match="average"):
            loss(reduction="average")
        assert loss(reduction="sum").reduction == "sum"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_losses_are_copied_and_moved(copied):
    first, second = images((11, 9))
    for make in IMAGE_LOSSES.values():
        loss = make(2)
        expected = loss(first, second)  # also what it keeps of its target is copied, or forgotten
        assert torch.equal(copied(loss).double()(first, second), expected)
    for make in FIELD_LOSSES.values():
        assert torch.equal(copied(make())(torch.ones(1, 2, 5, 7)), make()(torch.ones(1, 2, 5, 7)))


@every_shape
def test_images_and_fields_of_monai_transforms_are_taken(shape):
    """MetaTensors, with the same values and gradients as plain ones."""
    cases = [(make(len(shape)), images(shape)) for make in IMAGE_LOSSES.values()]
    cases += [(make(), (smooth_ddf(shape)[None],)) for make in FIELD_LOSSES.values()]
    for loss, (first, *others) in cases:
        expected = gradient(lambda x, loss=loss, others=others: loss(x, *others), first)
        meta = [MetaTensor(x.clone()) for x in others]
        found = gradient(lambda x, loss=loss, meta=meta: loss(x, *meta), MetaTensor(first.clone()))
        assert torch.equal(torch.as_tensor(found), expected), type(loss).__name__


@pytest.mark.parametrize("make", [*IMAGE_LOSSES.values(), lambda dims: LocalNCCLoss(dims, 5, "sum")])
@pytest.mark.parametrize("weighted", [False, True])
@every_shape
def test_an_image_loss_of_each_of_a_batch_is_that_of_it_alone(shape, weighted, make):
    loss, spacing = make(len(shape)), (1.0, 1.5, 2.0)[: len(shape)]
    pred, target, weight = torch.rand(3, 3, 1, *shape, dtype=torch.float64)
    pred.requires_grad_()
    each = zip(pred.split(1), target.split(1), weight.split(1) if weighted else [None] * 3, strict=True)
    alone = torch.stack([loss(p, t, w, spacing) for p, t, w in each])
    check_batch(loss.of_each(pred, target, weight if weighted else None, spacing), alone, pred)


@pytest.mark.parametrize("make", [*FIELD_LOSSES.values(), lambda: FoldingLoss(reduction="sum")])
@every_shape
def test_a_field_loss_of_each_of_a_batch_is_that_of_it_alone(shape, make):
    loss, spacing = make(), (1.0, 1.5, 2.0)[: len(shape)]
    ddf = torch.randn(3, len(shape), *shape, dtype=torch.float64, requires_grad=True)
    check_batch(loss.of_each(ddf, spacing), torch.stack([loss(item, spacing) for item in ddf.split(1)]), ddf)


def check_batch(together: Tensor, alone: Tensor, x: Tensor) -> None:
    torch.testing.assert_close(together, alone)
    factors = torch.tensor([1.0, -2.0, 0.5], dtype=x.dtype)  # each gradient goes its own way
    (found,), (expected,) = (torch.autograd.grad(values @ factors, x) for values in (together, alone))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_shape
def test_losses_are_computed_in_float32_whatever_autocast_says(shape, dtype):
    """Once the local correlation of images in bfloat16 was -33,024."""
    pairs = [10 + x.float() for x in images(shape)], torch.rand(1, 1, *shape)
    field = 100 + smooth_ddf(shape, largest=5.0, sigma=1.0)[None]
    cases: list[tuple[Any, list[Tensor]]] = [
        (make(len(shape)), [*pairs[0], pairs[1]]) for make in IMAGE_LOSSES.values()
    ]
    cases += [(make(), [field]) for make in FIELD_LOSSES.values()]
    for loss, tensors in cases:
        halves = [x.to(dtype) for x in tensors]
        rounded = [x.float() for x in halves]
        for call in (loss, loss.of_each):
            exact, of_halves = call(*tensors), call(*rounded)
            with torch.autocast("cpu", dtype):
                assert torch.equal(call(*tensors), exact), type(loss).__name__
                assert torch.equal(call(*halves), of_halves), type(loss).__name__
            assert torch.equal(call(*halves), of_halves), type(loss).__name__
        slope = gradient(lambda x, loss=loss, others=halves[1:]: loss(x, *others), halves[0])
        assert slope.dtype == dtype
        assert slope.isfinite().all()


def test_a_loss_of_ones_own_is_computed_in_float32_too():
    class Product(ImageLoss):
        def forward(self, input, target, weight=None, spacing=None):
            return (input.flatten(1) @ target.flatten(1).T).sum()

    first, second = (x.float() for x in images((11, 9)))
    exact = Product()(first, second)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Product()(first, target=second), exact)
        assert torch.equal(Product().of_each(first, second), exact[None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_landmarks_keep_their_places_beside_a_field_of_half_precision(dtype):
    landmarks = torch.tensor([[[[300.3, 10.0], [300.8, 10.0]]]])  # half a voxel apart, where bfloat16 has every second
    loss = landmark_loss(torch.zeros(1, 2, 320, 20, dtype=dtype), landmarks, (1.0, 1.0))
    torch.testing.assert_close(loss, torch.tensor([0.25]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("loss", [LocalNCCLoss(2, 5), FoldingLoss(), SmoothnessLoss()])
def test_second_derivatives_are_refused(loss):
    x = torch.randn(1, 2, 9, 7, dtype=torch.float64, requires_grad=True)
    other = torch.randn(1, 2, 9, 7, dtype=torch.float64)
    value = loss(x, other) if isinstance(loss, LocalNCCLoss) else loss(x)
    (gradient,) = torch.autograd.grad(value * x.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()  # once a wrong number, in silence


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_intensities_are_compared_after_the_best_linear_fit(shape, weighted):
    generator = torch.Generator().manual_seed(3)
    pred, target = (torch.rand(2, 2, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.rand(2, 1, *shape, generator=generator, dtype=torch.float64) if weighted else None
    found = IntensityLoss().of_each(pred, target, weight)
    for item in range(2):
        residuals, counts = [], []
        for channel in range(2):
            x, y = (image[item, channel].flatten().numpy() for image in (pred, target))
            w = np.ones_like(x) if weight is None else weight[item, 0].flatten().numpy()
            residuals.append((w * (np.polyval(np.polyfit(x, y, 1, w=np.sqrt(w)), x) - y) ** 2).sum())
            counts.append(w.sum())
        assert found[item].item() == pytest.approx(sum(residuals) / sum(counts))
    torch.testing.assert_close(IntensityLoss().of_each(5 - 0.3 * pred, target, weight), found)
    # of a constant image nothing can be made but the mean
    flat = IntensityLoss()(torch.ones_like(pred[:1, :1]), target[:1, :1])
    torch.testing.assert_close(flat, target[:1, :1].var(correction=0))


def test_what_stays_unexplained_pulls_less():
    pred, target = images((9, 8))
    pred.requires_grad_()
    value = IntensityLoss()(pred, target)
    (pull,) = torch.autograd.grad(value, pred, retain_graph=True)
    for above in (2 * value.item(), value.item() / 3):
        tempered = TemperedLoss(IntensityLoss(), above)
        found = tempered(pred, target)
        explained = above > value
        expected = value.item() if explained else above * (1 + np.log(3))
        assert found.item() == pytest.approx(expected)
        assert tempered.of_each(pred, target).item() == pytest.approx(expected)
        torch.testing.assert_close(torch.autograd.grad(found, pred)[0], pull * (1 if explained else 1 / 3))
    with pytest.raises(ValueError, match="above is 0.0"):
        TemperedLoss(IntensityLoss(), 0.0)


every_weighted = pytest.mark.parametrize(
    "make", [IMAGE_LOSSES["NCC"], IMAGE_LOSSES["intensity"]], ids=["NCC", "intensity"]
)


@every_weighted
@pytest.mark.parametrize("shape", [(5, 4), (3, 2, 4)])
def test_weighted_losses_pass_gradcheck(shape, make):
    pred, target = images(shape, channels=2)
    weight, loss = random_weight(shape), make(len(shape))
    spacing = (1.0, 2.0, 1.5)[: len(shape)]
    assert gradcheck(lambda x: loss(x, target, weight, spacing), pred.requires_grad_())
    assert gradcheck(lambda x, y: loss(x, y, weight, spacing), (pred, target.requires_grad_()))


@every_weighted
@pytest.mark.parametrize("shape", SHAPES)
def test_what_does_not_count_changes_nothing(shape, make):
    pred, target = images(shape)
    weight, loss = random_weight(shape), make(len(shape))
    expected, slope = loss(pred, target, weight), gradient(lambda x: loss(x, target, weight), pred)
    assert (slope[weight == 0] == 0).all()
    for value in (-5.0, 100.0):
        p, t = (torch.where(weight > 0, image, value * torch.rand_like(image)) for image in (pred, target))
        torch.testing.assert_close(loss(p, t, weight), expected)
        torch.testing.assert_close(gradient(lambda x, t=t: loss(x, t, weight), p), slope)


@every_weighted
def test_weights_are_followed_and_get_no_gradient(make):
    pred, target = images((11, 9))
    loss, (first, second) = make(2), (random_weight((11, 9)) for _ in range(2))
    for weight in (first, second, None, first):  # statistics of the target are kept without weights only
        torch.testing.assert_close(loss(pred, target, weight), make(2)(pred, target, weight), rtol=0, atol=0)
    weight = first.clone().requires_grad_()
    pred.requires_grad_()
    loss(pred, target, weight).backward()
    assert weight.grad is None


@every_weighted
def test_no_weight_anywhere_is_a_number(make):
    pred, target = images((11, 9))
    pred.requires_grad_()
    loss = make(2)(pred, target, torch.zeros(1, 1, 11, 9, dtype=torch.float64))
    loss.backward()
    assert loss.isfinite()
    assert (pred.grad == 0).all()
