# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The workflow that takes its inputs literally, and the handler that saves the pairs of an evaluator."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished import names, table
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from synthetic import save_pair

from monai_nodeo import Registration, Settings
from monai_nodeo.apps import NodeoWorkflow, PairsFailedError
from monai_nodeo.apps.bundle.parts import SavePairs, register_pairs
from monai_nodeo.data import Pair, PairDataset
from monai_nodeo.data.lists import DataListError
from monai_nodeo.registration import DivergedError, PairInferer, folder
from monai_nodeo.registration.presets import bundle_dir

INFERENCE = str(bundle_dir() / "configs" / "inference.json")
SHAPES = {2: (16, 18, 1), 3: (12, 9, 11)}
AFFINE = np.diag([1.5, 2.0, 1.0, 1.0])
SHORT = {"initial_transform": None, "shrink_factors": [1], "iterations": [2], "dense_iterations": 0}
QUICK = {"device": "cpu", "report": False, **{f"settings#{name}": value for name, value in SHORT.items()}}
EVIL = ['$__import__("os").system("touch pwned")', "%a@b", "@fixed", "a#1"]


@pytest.fixture
def row(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_pair(tmp_path_factory.mktemp("images"), SHAPES[3], AFFINE)


def images(row: Mapping[str, str], id: str = "pair") -> dict[str, str]:
    return {"fixed": row["fixed"], "moving": row["moving"], "id": id}


def write_list(directory: Path, row: Mapping[str, str], *ids: str) -> str:
    (directory / "list.json").write_text(json.dumps([images(row, id) for id in ids]))
    return str(directory / "list.json")


def quick(output_dir: Path, **override: Any) -> NodeoWorkflow:
    made = NodeoWorkflow(logging_file=False, output_dir=str(output_dir), **QUICK | override)
    made.initialize()
    return made


def test_inputs_may_be_set_as_attributes(row, tmp_path):
    workflow = quick(tmp_path / "nowhere")
    assert workflow.check_properties() == []
    with pytest.raises(ValueError, match=r"^no fixed and no moving image was given; give both, or a datalist\.$"):
        workflow.run()
    workflow.fixed, workflow.moving, workflow.output_dir = row["fixed"], Path(row["moving"]), tmp_path / "out"
    workflow.initialize()
    workflow.run()
    assert names(tmp_path) == {"out"}
    assert [line["status"] for line in table(tmp_path / "out")] == ["done"]


@pytest.mark.parametrize("later", [False, True], ids=["given", "set"])
@pytest.mark.parametrize("evil", EVIL)
def test_a_path_is_a_path(evil, later, row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = {key: f"{evil}{key}.nii.gz" for key in ("fixed", "moving")}
    for key, name in paths.items():
        Path(name).write_bytes(Path(row[key]).read_bytes())
    output = Path(f"{evil}out")
    if later:
        workflow = quick(Path("nowhere"))
        for name, value in {**paths, "output_dir": str(output)}.items():
            setattr(workflow, name, value)
    else:
        workflow = quick(output, **paths)
    workflow.run()
    assert names(tmp_path) == {*paths.values(), output.name}
    (line,) = table(output)
    assert (line["fixed"], line["moving"]) == tuple(str(tmp_path / name) for name in paths.values())


@pytest.mark.parametrize("evil", EVIL)
def test_nothing_in_a_list_is_evaluated(evil, row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = {"fixed": row["fixed"], "moving": f"{evil}.nii.gz"}
    (tmp_path / "pairs.json").write_text(json.dumps([entry, {**entry, "id": evil}]))
    (tmp_path / "pairs.csv").write_text(
        'fixed,moving\n{},"{}"\n'.format(row["fixed"], f"{evil}.nii.gz".replace('"', '""'))
    )
    for name, count in (("pairs.json", 2), ("pairs.csv", 1)):
        with pytest.raises(PairsFailedError, match=f"{count} of {count} pairs failed"):
            quick(tmp_path / "out", datalist=name).run()
        assert "there is no such file" in table(tmp_path / "out")[0]["reason"]
    assert names(tmp_path) == {"pairs.json", "pairs.csv", "out"}


@pytest.mark.parametrize("typed", ["a#1.nii.gz", "7", "None", "1e3", "[a,b]", "plain.nii.gz"])
@pytest.mark.parametrize("style", ["--moving_label {}", "--moving_label={}", "--moving-label {}"])
def test_a_path_is_what_was_typed_for_monai(typed, style, monkeypatch):
    """MONAI's command line takes words for Python."""
    from fire.parser import DefaultParseValue

    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", "--fixed", "x", *style.format(typed).split(), "--report"])
    workflow = quick(Path("out"), moving_label=DefaultParseValue(typed), fixed=None)
    if typed != "None":  # which cannot be told from nothing
        assert workflow.moving_label == Path(typed)
    with pytest.raises(ValueError, match="moving is 7, expected a path"):
        quick(Path("out"), moving=7)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("given", ["pair", "list", "number"])
def test_it_is_for_slices_if_the_images_are(spatial_dims, given, tmp_path):
    row = save_pair(tmp_path, SHAPES[spatial_dims], AFFINE)
    (tmp_path / "pairs.json").write_text(json.dumps([7, {"fixed": "gone.nii.gz", "moving": "b"}, images(row)]))
    inputs = {
        "pair": {"fixed": row["fixed"], "moving": row["moving"]},
        "list": {"datalist": str(tmp_path / "pairs.json")},
        "number": {"spatial_dims": spatial_dims},
    }
    workflow = NodeoWorkflow(preset="fast", logging_file=False, **inputs[given])
    workflow.initialize()
    assert workflow.inferer.settings == Settings.preset("fast", spatial_dims)
    assert workflow.bundle_root == str(bundle_dir())


def test_what_cannot_be_is_told_when_it_is_made(tmp_path):
    (tmp_path / "pairs.json").write_text(json.dumps([{"fixed": "gone.nii.gz", "moving": "b"}]))
    with pytest.raises(DataListError, match=r"no fixed image of the list can be read: .*gone\.nii\.gz"):
        NodeoWorkflow(datalist=tmp_path / "pairs.json", logging_file=False)
    with pytest.raises(ValueError, match="there is no preset 'slow'"):
        NodeoWorkflow(preset="slow", logging_file=False)
    with pytest.raises(ValueError, match="give them or config_file"):
        NodeoWorkflow(INFERENCE, preset="fast", logging_file=False)


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [
        ("movin", "moving"),
        ("Device", "device"),
        ("settings#iteratons", "settings#iterations"),
        ("settings::learning_rte", "settings#learning_rate"),
        ("setings#iterations", "settings"),
        ("evaluator#amd", "evaluator#amp"),
        ("dataloader#num_worker", "dataloader#num_workers"),
        ("zzz", None),
    ],
)
@pytest.mark.parametrize("config_file", [None, INFERENCE])
def test_an_unknown_id_is_refused_with_the_nearest_one(typo, nearest, config_file):
    with pytest.raises(ValueError, match=r"^unknown config id") as info:
        NodeoWorkflow(config_file, logging_file=False, **{typo: 5})
    hint = f"(did you mean {nearest!r}?)" if nearest else repr(typo)
    assert f"{hint}; there are " in str(info.value)


def test_arguments_of_components_are_known():
    """Also those that the config leaves at their defaults."""
    workflow = quick(Path("out"), **{"evaluator#amp": True, "inferer#handlers": [], "settings#seed": 3})
    assert workflow.evaluator.amp
    assert workflow.inferer.components.handlers == ()
    assert workflow.inferer.settings.seed == 3


def test_words_of_json_are_what_they_say():
    """A command line gives texts."""
    changes = {"settings#unfold": "false", "settings#best_window": "null", "settings#amsgrad": "true"}
    settings = quick(Path("out"), **changes).inferer.settings
    assert (settings.unfold, settings.best_window, settings.amsgrad) == (False, None, True)
    start = quick(Path("out"), **{"settings#initial_transform": EVIL[0]}).inferer.settings.initial_transform
    assert start == EVIL[0]  # a path too
    with pytest.raises(RuntimeError) as info:
        quick(Path("out"), report="no").evaluator  # noqa: B018
    assert "report is 'no', expected True or False" in repr(info.value.__cause__)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"settings#similarity": "lncc"}, ValueError, "lncc"),
        ({"settings#iterations": [0]}, ValueError, "iterations at least 1"),
        ({"moving": "gone.nii.gz"}, PairsFailedError, "there is no such file"),
        ({"output_dir": f"{INFERENCE}/out"}, OSError, "inference.json is a file, and the results need a folder"),
    ],
)
def test_an_error_is_the_exception_that_it_is(change, kind, words, row, tmp_path):
    workflow = quick(**{"output_dir": tmp_path / "out", "fixed": row["fixed"], "moving": row["moving"], **change})
    with pytest.raises(kind, match=words) as info:
        workflow.run()
    assert type(info.value) is not RuntimeError


def make_evaluator(
    output_dir: Path, *rows: Mapping[str, Any], report: bool = False
) -> tuple[SupervisedEvaluator, PairDataset]:
    """A stock evaluator with the handler under test, made in Python as a user would do it."""
    dataset = PairDataset(rows)
    settings = Settings.preset(**SHORT)
    inferer = PairInferer(settings, handlers=())
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=1, collate_fn=list),
        network=inferer.components.velocity,
        inferer=inferer,
        iteration_update=register_pairs,
        decollate=False,
        val_handlers=[SavePairs(output_dir, dataset, report)],
    )
    return evaluator, dataset


def test_the_table_is_complete_after_every_pair(tmp_path, row):
    bad = {"fixed": "nowhere.nii.gz", "moving": row["moving"]}
    rows = [images(row, "a"), {**bad, "id": "bad"}, images(row, "b"), {**bad, "id": "last"}]
    evaluator, dataset = make_evaluator(tmp_path, *rows)
    seen: list[list[tuple[str, str]]] = []

    def look(_: Engine) -> None:
        seen.append([(line["id"], line["status"]) for line in table(tmp_path)])

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, look)
    evaluator.add_event_handler(Events.COMPLETED, look)
    evaluator.run()
    done = [("a", "done"), ("bad", "failed"), ("b", "done"), ("last", "failed")]
    assert seen == [done[:1], done[:3], done]
    assert [failure.row for failure in dataset.failures] == [2, 4]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_pair_that_diverges_is_a_failure_and_the_others_go_on(batch_size, tmp_path, row, monkeypatch):
    workflow = quick(tmp_path / "out", datalist=write_list(tmp_path, row, "a", "wild", "b"), batch_size=batch_size)
    found = workflow.inferer.register

    def register(pairs: Sequence[Pair], *others: Any) -> list[Registration]:
        if any(pair.id == "wild" for pair in pairs):
            raise DivergedError(7)
        return found(pairs, *others)

    monkeypatch.setattr(workflow.inferer, "register", register)
    with pytest.raises(PairsFailedError, match=r"row 2 \(wild\): the positions are not finite at iteration 7; lower"):
        workflow.run()
    assert [(line["id"], line["status"]) for line in table(tmp_path / "out")] == [
        ("a", "done"),
        ("wild", "failed"),
        ("b", "done"),
    ]


def test_a_pair_that_was_not_saved_to_the_end_has_no_figures(tmp_path, row, monkeypatch):
    make_evaluator(tmp_path, images(row))[0].run()
    assert "metrics.json" in names(tmp_path / "pair")

    def disk_full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(folder, "write_history", disk_full)
    with pytest.raises(OSError, match="no space left"):
        make_evaluator(tmp_path, images(row))[0].run()
    assert "metrics.json" not in names(tmp_path / "pair")
    with pytest.raises(FileNotFoundError, match=r"holds no metrics\.json"):
        Registration.load(tmp_path / "pair")


def test_a_second_run_leaves_nothing_of_the_first(tmp_path, row):
    evaluator, dataset = make_evaluator(tmp_path, {**row, "id": "a"}, images(row, "b"))
    evaluator.run()
    assert "warped_label.nii.gz" in names(tmp_path / "a")
    dataset.data = [images(row, "a")]
    evaluator.run()
    assert [line["id"] for line in table(tmp_path)] == ["a"]
    assert "warped_label.nii.gz" not in names(tmp_path / "a")


def test_a_report_that_cannot_be_made_does_not_end_the_run(tmp_path, row, monkeypatch, caplog):
    def fail(*_: Any) -> None:
        raise ValueError("no picture")

    monkeypatch.setattr("monai_nodeo.report.write_report", fail)
    make_evaluator(tmp_path, images(row, "a"), images(row, "b"), report=True)[0].run()
    assert [line["status"] for line in table(tmp_path)] == ["done", "done"]
    assert "a: no report: no picture" in caplog.text
    assert "index.html" in names(tmp_path)
