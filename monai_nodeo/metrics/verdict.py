# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""A verdict on a registration in words, with its reasons.

Whether the images are aligned is a probability, see `metrics.confidence`; docs/verdict.md tells how far to trust it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_nodeo.metrics.confidence import ALIGNED, NOT_ALIGNED, wrong_probability
from monai_nodeo.metrics.evidence import LIMIT_MM, LIMIT_VOXELS, Evidence

__all__ = ["Finding", "Grade", "Verdict", "judge"]

# Pairs that fit: up to 1.04 times as much, half of an image masked out 1.43; turned over: 1.95 and more.
_TURNED_FACTOR, _TURNED_GAP = 1.7, 0.01
_SURELY = 0.01  # wrong by a smaller probability: aligned, whatever a turned image would share
_VOLUMES = 10.0  # times as large or as small: told at the top, though registrations of different people reach it
_FOLDS_FEW, _FOLDS_MANY = 0.01, 1.0  # per cent
_STILL_FALLING = 0.02  # of the whole fall of the loss, in the last tenth of the iterations
_FEWEST_OF_A_TENTH = 2  # iterations
_LABELS_WORSE = 0.01
_LABELS_POOR = 0.3
_FAR = 0.25  # of the diagonal of the grid
_FEW_GREY_VALUES = 9


class Grade(IntEnum):
    """How good a finding is."""

    GOOD = 0
    CHECK = 1
    BAD = 2


class Finding(NamedTuple):
    """One reason: what about it, how good, and why."""

    topic: str
    grade: Grade
    text: str


class Verdict(NamedTuple):
    """Headline and reasons."""

    grade: Grade
    headline: str
    findings: tuple[Finding, ...]


def judge(figures: Mapping[str, Any], history: Mapping[str, NDArray], evidence: Evidence) -> Verdict:
    """Say whether a registration can be trusted.

    Args:
        figures: content of metrics.json.
        history: loss terms, (iterations,) each, with "loss" and perhaps "level".
        evidence: what the images say.
    """
    findings = [
        _alignment(evidence),
        *_start(figures),
        *_choice(figures),
        _similarity(figures, evidence),
        *_labels(figures),
        _folds(figures),
        _size(figures, evidence),
        _interruption(figures, history) or _convergence(history, evidence),
        *_input(evidence),
    ]
    grade = max(finding.grade for finding in findings)
    return Verdict(grade, _headline(findings, evidence, _volumes(figures)), tuple(findings))


def _headline(findings: list[Finding], evidence: Evidence, volumes: str) -> str:
    grades = {finding.topic: finding.grade for finding in findings}
    open_questions = [f.topic for f in findings if f.grade > Grade.GOOD and f.topic != "alignment"]
    also = ", and the deformation folds" if grades["folds"] == Grade.BAD else ""
    also += "; the optimisation was interrupted" if "interruption" in grades else ""
    if grades["alignment"] == Grade.BAD:
        return f"Not aligned{also}."
    if grades.get("deformation") == Grade.BAD:
        return "No deformation can be defended: this is the start alone. Look at the images."
    if Grade.CHECK in (grades["alignment"], grades.get("start")):
        return f"Perhaps not aligned{also}. Look at the images."
    aligned = "Aligned from the start: the two images are identical" if evidence.identical else "Aligned"
    if not open_questions:
        return f"{aligned}." if evidence.identical else f"{aligned}, without folds, and converged.{volumes}"
    if grades["folds"] == Grade.BAD:
        return f"{aligned}{also.replace(', and', ', but')}."
    return f"{aligned}, with reservations: {', '.join(dict.fromkeys(open_questions))}.{volumes}"


def _volumes(figures: Mapping[str, Any]) -> str:
    """A sentence about volumes that change much."""
    smallest, largest = (figures["certificate"][f"{kind}_volume"][0] for kind in ("smallest", "largest"))
    if smallest >= 1 / _VOLUMES and largest <= _VOLUMES:
        return ""
    return f" Volumes change by {smallest:.2g} to {largest:.3g}."


def _alignment(evidence: Evidence) -> Finding:
    probability = wrong_probability(evidence)
    text = (
        f"The probability that points are wrong by more than {LIMIT_MM:g} mm or {LIMIT_VOXELS:g} voxels is "
        f"{_percent(probability)}. The warped and the fixed image share {_percent(evidence.shared_after)} of their "
        f"information ({_percent(evidence.shared_before)} before); {_percent(evidence.aside)} of what their places "
        "tell about each other is told only a little aside; and points were bent away from an affine map by "
        f"{_percent(evidence.bent)} of the size of what is seen."
    )
    if _turned_over(evidence, probability):
        return Finding("alignment", Grade.BAD, f"{text} One of the images seems to be turned over, see below.")
    if probability <= ALIGNED:
        return Finding("alignment", Grade.GOOD, text)
    if probability < NOT_ALIGNED:
        return Finding("alignment", Grade.CHECK, f"{text} That is more than images that fit have.")
    advice = "A start from a file, or another similarity or smoothness than the chosen ones, may help."
    return Finding("alignment", Grade.BAD, f"{text} These do not fit. {advice}")


def _start(figures: Mapping[str, Any]) -> Iterator[Finding]:
    start = figures.get("start")
    if start and not start["defended"]:
        text = "No start explains the two images better than others do, so the search for one was of no help."
        yield Finding("start", Grade.CHECK, f"{text} One in a file may help.")


def _choice(figures: Mapping[str, Any]) -> Iterator[Finding]:
    choice = figures.get("choice")
    if choice is None:
        return
    # a folder of an earlier version does not tell it
    noise = f", {_percent(choice['noise'])} of what they bend" if "noise" in choice else ""
    text = (
        f"The images chose the similarity {choice['similarity']} (agreement of their contrasts: "
        f"{choice['agreement']:.2f}) and a smoothness weight of {choice['smoothness_weight']:.2g} (with the usual one "
        f"coarse registrations there and back disagree by {choice['disagreement_voxels'][0]:.1f} voxels{noise})."
    )
    if figures.get("accepted", True):
        yield Finding("deformation", Grade.GOOD, text)
    else:
        yield Finding("deformation", Grade.BAD, f"{text} No deformation can be defended, so that there is none.")


def _turned_over(evidence: Evidence, probability: float) -> bool:
    given, turned = evidence.shared_before, evidence.shared_turned
    return turned > _TURNED_FACTOR * given and turned - given > _TURNED_GAP and probability > _SURELY


def _similarity(figures: Mapping[str, Any], evidence: Evidence) -> Finding:
    before, after = (figures[side]["similarity"] for side in ("before", "after"))
    text = f"The similarity loss went from {before:.4f} to {after:.4f}"
    if evidence.identical:
        return Finding("similarity", Grade.GOOD, f"{text}: there was nothing to gain.")
    if after < before:
        return Finding("similarity", Grade.GOOD, f"{text} (lower is better).")
    return Finding("similarity", Grade.CHECK, f"{text}: the images are not more alike than before.")


def _labels(figures: Mapping[str, Any]) -> Iterator[Finding]:
    before, after = (figures[side].get("dice_mean") for side in ("before", "after"))
    if before is None or after is None:
        return
    text = f"Mean Dice of the labels: {before:.3f} before, {after:.3f} after."
    if after < before - _LABELS_WORSE:
        yield Finding("labels", Grade.BAD, f"{text} The structures fit worse than before.")
    elif after < _LABELS_POOR:
        yield Finding("labels", Grade.BAD, f"{text} The structures hardly meet.")
    else:
        yield Finding("labels", Grade.GOOD, text)


def _folds(figures: Mapping[str, Any]) -> Finding:
    proof = figures["certificate"]
    text = proof["verdict"]
    if proof["invertible"]:
        return Finding("folds", Grade.GOOD, text)
    if not proof["folded_cells"]:
        return Finding("folds", Grade.CHECK, f"{text} The way back is not accurate.")
    share = 100 * proof["folded_cells"] / max(proof["cells"], 1)
    if share <= _FOLDS_FEW:
        return Finding("folds", Grade.GOOD, f"{text} That is next to nowhere.")
    if share <= _FOLDS_MANY:
        return Finding("folds", Grade.CHECK, f"{text} Where it folds, volumes mean nothing.")
    return Finding("folds", Grade.BAD, f"{text} More weight on folding, or more smoothness, helps.")


def _size(figures: Mapping[str, Any], evidence: Evidence) -> Finding:
    mean = figures["displacement_mm_mean"]
    text = f"Voxels moved by {mean:.2f} mm on average, the farthest by {evidence.largest_mm:.1f} mm."
    if evidence.largest_mm > _FAR * evidence.extent_mm:
        return Finding("size", Grade.CHECK, f"{text} That is far: a rigid or affine start may be missing.")
    return Finding("size", Grade.GOOD, text)


def _interruption(figures: Mapping[str, Any], history: Mapping[str, NDArray]) -> Finding | None:
    level = figures.get("interrupted_level")
    if level is None:
        return None
    levels = history["level"]
    count = int(levels.max()) + 1
    text = f"Ctrl-C ended the optimisation in iteration {(levels == level).sum()} of level {level + 1} of {count}"
    finer = ", and finer levels had one iteration each" if level + 1 < count else ""
    return Finding("interruption", Grade.CHECK, f"{text}{finer}: this is not the result, register the pair again.")


def _convergence(history: Mapping[str, NDArray], evidence: Evidence) -> Finding:
    loss = history["loss"]
    if evidence.identical:
        return Finding("convergence", Grade.GOOD, "There was nothing to optimise.")
    if not np.isfinite(loss).all():
        return Finding("convergence", Grade.BAD, "The loss left the finite numbers.")
    levels = history.get("level", np.zeros_like(loss))
    # Levels have losses of their own: what each gained counts, and only the last one can go on.
    fall = sum(loss[levels == level][0] - loss[levels == level].min() for level in np.unique(levels))
    last = loss[levels == levels[-1]]
    tenth = max(len(last) // 10, _FEWEST_OF_A_TENTH)
    if len(last) < 2 * tenth:
        return Finding("convergence", Grade.CHECK, f"{len(last)} iterations at the end are too few to tell.")
    gain = last[-2 * tenth : -tenth].mean() - last[-tenth:].mean()
    if fall > 0 and gain > _STILL_FALLING * fall:
        return Finding(
            "convergence",
            Grade.CHECK,
            f"The loss was still falling at the end: {_percent(gain / fall)} of its fall came in the last {tenth} of "
            f"{len(loss)} iterations. More iterations would help.",
        )
    return Finding("convergence", Grade.GOOD, f"The loss had levelled off after {len(loss)} iterations.")


def _input(evidence: Evidence) -> Iterator[Finding]:
    if _turned_over(evidence, wrong_probability(evidence)):
        yield Finding(
            "input",
            Grade.BAD,
            f"The moving image fits better when it is turned over ({' and '.join(evidence.turned_along)}): "
            f"it would share {_percent(evidence.shared_turned)} instead of {_percent(evidence.shared_before)} before "
            "registration. The orientation in one of the headers looks wrong.",
        )
    for name, values in zip(("fixed", "moving"), evidence.grey_values, strict=True):
        if values < _FEW_GREY_VALUES:
            yield Finding("input", Grade.CHECK, f"The {name} image holds {values} different values: is it a label map?")
    if evidence.identical:
        yield Finding("input", Grade.GOOD, "The fixed and the moving image are identical, voxel by voxel.")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"
