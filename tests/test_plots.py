# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray

from monai_nodeo.geometry.jacobian import jacobian_determinant
from monai_nodeo.report.plots import (
    plot_columns,
    plot_dice,
    plot_distribution,
    plot_grid,
    plot_history,
    plot_jacobian,
    plot_registration,
)
from monai_nodeo.report.plots.panels import FOLD_COLOUR, draw_contours, draw_edges, draw_jacobian
from monai_nodeo.report.plots.planes import Plane, cut

SHAPES = [(9, 13), (9, 11, 13)]
TITLES = ["fixed", "moving", "warped", "difference before", "difference after", "deformed grid"]


def random_pair(shape: tuple[int, ...]) -> tuple[NDArray, ...]:
    rng = np.random.default_rng(0)
    return *rng.random((3, *shape)), rng.normal(size=(len(shape), *shape))


def panels(figure: Figure) -> list[Any]:
    """The axes without the colour bar, row by row."""
    return figure.axes[:-1]


def lines(ax) -> list[NDArray]:
    (collection,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    return collection.get_segments()


@pytest.mark.parametrize("shape", SHAPES)
def test_figure_has_a_row_for_each_plane_and_can_be_saved(shape, tmp_path):
    figure = plot_registration(*random_pair(shape))
    assert len(panels(figure)) == 6 * (1 if len(shape) == 2 else 3)
    assert [ax.get_title() for ax in panels(figure)[:6]] == TITLES
    assert not [text for ax in figure.axes for text in ax.texts]  # sides are not known without an affine
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_columns_show_the_image_the_grid_and_the_determinant_of_each(tmp_path):
    fields = {"still": np.zeros((2, 9, 13)), "turned back": turning_back()}
    figure = plot_columns({name: (np.random.default_rng(0).random(ddf.shape[1:]), ddf) for name, ddf in fields.items()})
    top, middle, bottom = (panels(figure)[2 * row :][:2] for row in range(3))
    assert [ax.get_title() for ax in top] == list(fields)
    assert all(len(ax.images) == 1 for ax in top)
    assert all(lines(ax) for ax in middle)
    folds = [np.ma.getmaskarray(ax.collections[0].get_array()).any() for ax in bottom]
    assert folds == [False, True]
    figure.savefig(tmp_path / "picture.png")


@pytest.mark.parametrize(("axes", "signs"), [((1, 2, 0), (1, -1, 1)), ((2, 1, 0), (-1, 1, -1))])
def test_picture_does_not_depend_on_how_the_volume_is_stored(axes, signs):
    fixed, moving, warped, ddf = random_pair((9, 11, 13))
    affine = nib.affines.from_matvec(np.diag([1.0, 2.0, 3.0]), [4, 5, 6])
    ornt = np.array(list(zip(axes, signs, strict=True)))
    stored = [apply_orientation(x, ornt) for x in (fixed, moving, warped, *ddf)]
    stored_ddf = np.empty((3, *stored[0].shape))
    for axis, (target, sign) in enumerate(ornt):
        stored_ddf[target] = sign * stored[3 + axis]
    stored_affine = affine @ inv_ornt_aff(ornt, fixed.shape)
    expected = plot_registration(fixed, moving, warped, ddf, affine)
    found = plot_registration(*stored[:3], stored_ddf, stored_affine)
    for a, b in zip(panels(expected), panels(found), strict=True):
        assert a.get_xlim() == b.get_xlim()
        assert a.get_ylim() == b.get_ylim()
        assert [t.get_text() for t in a.texts] == [t.get_text() for t in b.texts]
        for image, other in zip(a.images, b.images, strict=True):
            np.testing.assert_allclose(image.get_array(), other.get_array(), atol=1e-12)
    for a, b in zip(panels(expected)[5::6], panels(found)[5::6], strict=True):
        np.testing.assert_allclose(outline(a), outline(b), atol=1e-9)


def outline(ax) -> NDArray:
    """All corners of the drawn cells, in an order that does not depend on the direction of the axes."""
    corners = ax.collections[0].get_coordinates().reshape(-1, 2)
    return corners[np.lexsort(corners.round(6).T)]


def test_anterior_is_up_and_left_is_left():
    """A dot at the anterior left of a volume stored as LPS lies in the upper left of the axial picture."""
    fixed = np.zeros((9, 11, 13))
    fixed[8, 0] = 1
    figure = plot_registration(fixed, fixed, fixed, np.zeros((3, *fixed.shape)), np.diag([-1, -1, 1, 1]))
    image = panels(figure)[0].images[0]
    assert image.origin == "lower"
    assert np.argwhere(image.get_array() == 1).tolist() == [[10, 0]]
    assert [t.get_text() for t in panels(figure)[0].texts] == ["L", "R"]
    assert [t.get_text() for t in panels(figure)[12].texts] == ["P", "A"]


def test_coronal_slice_in_a_3d_header_is_upright():
    """Axis 0 to the left, axis 1 downwards: the first row of the array is the top of the head."""
    slice_ = np.zeros((9, 13))
    slice_[0, 0] = 1
    affine = np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, -2, 0, 0], [0, 0, 0, 1]])
    (ax, *_) = panels(plot_registration(slice_, slice_, slice_, np.zeros((2, 9, 13)), affine))
    assert np.argwhere(ax.images[0].get_array() == 1).tolist() == [[12, 8]]  # superior right
    assert ax.images[0].get_extent() == [0, 9, 0, 26]


def test_each_image_has_its_own_window_and_equal_anatomy_differs_by_nothing():
    fixed, *_ = random_pair((9, 13))
    figure = plot_registration(fixed, 1 - fixed, 7 * fixed + 3, np.zeros((2, 9, 13)))
    before, after = (ax.images[0].get_array() for ax in panels(figure)[3:5])
    assert np.abs(before).max() > 0.9
    assert np.abs(after).max() < 1e-12


def test_images_without_contrast_are_black_and_have_no_edges():
    constant = np.full((9, 13), 5.0)
    figure = plot_registration(constant, constant, constant, np.zeros((2, 9, 13)))
    assert not panels(figure)[0].images[0].get_array().any()
    (plane,) = cut({"fixed": constant}, np.zeros((2, 9, 13)))
    draw_edges(ax := Figure().subplots(), plane, "fixed", "red")
    assert not ax.collections


def plane_of(ddf: NDArray, spacing: tuple[float, float] = (1, 1)) -> Plane:
    """The plane of a 2D displacement."""
    (plane,) = cut({}, ddf, np.diag([*spacing, 1, 1]))
    return plane


def turning_back() -> NDArray:
    """A displacement (2, 12, 9) that turns back after the sixth line."""
    i = np.arange(12.0)
    ddf = np.zeros((2, 12, 9))
    ddf[0] = np.where(i > 6, -2 * (i - 6), 0)[:, None]
    return ddf


def test_grid_lines_go_where_the_displacement_takes_them():
    ddf = np.zeros((2, 9, 13))
    ddf[0], ddf[1] = 2, -1
    (ax,) = plot_grid(ddf, np.diag([1, 3, 1, 1])).axes
    assert len(lines(ax)) == 9 + 13
    np.testing.assert_allclose(lines(ax)[0][0], [2.5, (0.5 - 1) * 3])
    np.testing.assert_allclose(lines(ax)[-1][-1], [8.5 + 2, (12.5 - 1) * 3])
    (large,) = plot_grid(np.zeros((2, 300, 150))).axes
    assert len(lines(large)) == 30 + 15


@pytest.mark.parametrize("plot", [plot_grid, plot_jacobian])
def test_field_of_a_volume_is_drawn_in_three_planes(plot):
    figure = plot(np.zeros((3, 9, 11, 13)))
    assert [ax.get_title() for ax in figure.axes[:3]] == ["axial", "coronal", "sagittal"]


def test_folds_are_red_in_a_black_outline_and_nothing_else_is():
    plane = plane_of(turning_back())
    ax = Figure().subplots()
    mesh = draw_jacobian(ax, plane)
    mesh.update_scalarmappable()
    red = (mesh.get_facecolor() == to_rgba(FOLD_COLOUR)).all(axis=-1).reshape(plane.determinant.shape)
    np.testing.assert_array_equal(red, plane.determinant <= 0)
    assert red[6:].all()
    assert not red[:6].any()
    assert len(lines(ax)) == 2 * sum(red[6:].shape)  # the sides of the folded rectangle


def test_unit_determinant_is_the_middle_of_the_colours():
    mesh = draw_jacobian(Figure().subplots(), plane_of(np.zeros((2, 9, 13))))
    half, one, double = mesh.norm([0.5, 1, 2])
    np.testing.assert_allclose(mesh.norm(mesh.get_array()), 0.5)
    assert one == pytest.approx(0.5)
    assert half + double == pytest.approx(1)


def test_cells_lie_between_voxels_and_follow_the_displacement():
    ddf = np.zeros((2, 4, 5))
    ddf[1] = 1
    for shift, deformed in ((0, False), (1, True)):
        corners = draw_jacobian(Figure().subplots(), plane_of(ddf, (1, 2)), deformed).get_coordinates()
        np.testing.assert_allclose(corners[0, 0], [0.5, (0.5 + shift) * 2])
        np.testing.assert_allclose(corners[-1, -1], [3.5, (4.5 + shift) * 2])


def test_determinant_of_a_plane_is_that_of_the_volume():
    ddf = np.random.default_rng(1).normal(size=(3, 9, 11, 13))
    whole = jacobian_determinant(torch.from_numpy(ddf)[None])[0].numpy()
    axial, coronal, sagittal = (plane.determinant for plane in cut({}, ddf))
    np.testing.assert_allclose(axial, whole[:, :, 6])
    np.testing.assert_allclose(coronal, whole[:, 5])
    np.testing.assert_allclose(sagittal, whole[4])


def test_length_of_the_displacement_is_in_millimetres_and_holds_the_part_across_the_plane():
    ddf = np.zeros((3, 9, 11, 13))
    ddf[0], ddf[2] = 2, 3
    for plane in cut({}, ddf, np.diag([2, 1, 1, 1])):
        np.testing.assert_allclose(plane.length, 5)


def test_labels_are_outlined_where_they_are():
    square = np.zeros((9, 13))
    square[2:6, 3:8] = 4
    (plane,) = cut({}, np.zeros((2, 9, 13)), np.diag([1, 2, 1, 1]), {"fixed": square})
    ax = Figure().subplots()
    draw_contours(ax, plane, "fixed", "red")
    points = np.concatenate([path.vertices for path in ax.collections[0].get_paths()])
    np.testing.assert_allclose([points.min(0), points.max(0)], [[2, 6], [6, 16]])


def test_edges_lie_between_dark_and_bright():
    image = np.zeros((21, 25))
    image[10:] = 1
    (plane,) = cut({"fixed": image}, np.zeros((2, 21, 25)))
    ax = Figure().subplots()
    draw_edges(ax, plane, "fixed", "red")
    points = np.concatenate([path.vertices for path in ax.collections[0].get_paths()])
    assert np.abs(points[:, 0] - 10).max() < 1


def test_shapes_that_do_not_fit_are_named():
    fixed, moving, warped, ddf = random_pair((9, 13))
    with pytest.raises(ValueError, match=r"\(9, 13\), \(13, 9\), \(9, 13\) and a ddf \(2, 9, 13\)"):
        plot_registration(fixed, moving.T, warped, ddf)
    with pytest.raises(ValueError, match=r"a ddf \(9, 13, 2\)"):
        plot_registration(fixed, moving, warped, np.moveaxis(ddf, 0, -1))


def test_levels_of_a_pyramid_are_curves_of_their_own():
    figure = plot_history({"level": [0, 0, 1, 1, 1], "loss": [5, 4, 3, 2, 1]})
    assert [ax.get_title() for ax in figure.axes] == ["loss"]
    coarse, fine = figure.axes[0].lines
    np.testing.assert_allclose(coarse.get_xydata(), [[1, 5], [2, 4]])
    np.testing.assert_allclose(fine.get_xydata(), [[3, 3], [4, 2], [5, 1]])
    assert coarse.get_color() != fine.get_color()
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["1", "2"]


def test_dice_is_sorted_and_shown_before_and_after():
    (ax,) = plot_dice({1: 0.2, 2: 0.5, 7: None}, {1: 0.9, 2: 0.6, 7: None}).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["7", "2", "1"]  # upwards
    assert [bar.get_width() for bar in ax.patches] == [0, 0.6, 0.9]
    assert ax.lines[0].get_xdata().tolist() == [0, 0.5, 0.2]


@pytest.mark.parametrize("values", [[0.3], [2.0] * 9, [0.0, 0.0], list(range(1000))])
def test_distribution_counts_every_pair(values):
    (ax,) = plot_distribution(values, "Dice").axes
    assert sum(bar.get_height() for bar in ax.patches) == len(values)
    (ax,) = plot_distribution(values, "Dice", before=[-5.0]).axes
    assert ax.get_xlim()[0] < -5 < max(values) < ax.get_xlim()[1]
