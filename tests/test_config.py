# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from monai.bundle import ConfigParser

from monai_nodeo.registration.outputs import PairsFailedError
from monai_nodeo.workflow import check_ids, checked, running_config


def parser(**content: Any) -> ConfigParser:
    return ConfigParser({"imports": ["$import monai_nodeo.workflow as config"], **content})


def raise_(error: BaseException) -> None:
    raise error


def check(**content: Any) -> str:
    """What `check_ids`, called by a config as a bundle does it, has to say: the message, or nothing."""
    content["initialize"] = ["$config.checked(config.check_ids)"]
    try:
        parser(**content).get_parsed_content("initialize")
    except SystemExit as error:
        return str(error.code)
    return ""


def test_words_of_json_are_what_they_say() -> None:
    """A command line gives texts."""
    content = {"off": "false", "on": "true", "none": "null", "name": "falsetto", "not_off": "$not @off"}
    expressions = ["$config.read_words()", "$(@off, @on, @none, @name, @not_off)"]
    *_, values = parser(initialize=expressions, **content).get_parsed_content("initialize")
    assert values == (False, True, None, "falsetto", True)


# checked


def test_a_result_passes() -> None:
    assert checked(divmod, 7, 2) == (3, 1)
    assert checked(dict, a=1) == {"a": 1}


@pytest.mark.parametrize("kind", [ValueError, OSError, FileNotFoundError, PairsFailedError])
def test_an_error_of_the_input_ends_the_process_with_the_message_alone(kind: type[Exception]) -> None:
    error = kind("what to do")
    with pytest.raises(SystemExit) as info:
        checked(raise_, error)
    # A code that is a string is printed, and the status is 1.
    assert info.value.code == "error: what to do"
    assert info.value.__cause__ is error


@pytest.mark.parametrize("kind", [TypeError, KeyError, RuntimeError, KeyboardInterrupt])
def test_any_other_error_keeps_its_traceback(kind: type[BaseException]) -> None:
    with pytest.raises(kind):
        checked(raise_, kind("a mistake in the code"))


def test_monai_does_not_bury_the_message() -> None:
    config = parser(number="$config.checked(int, 'three')")
    with pytest.raises(SystemExit, match=r"^error: invalid literal for int\(\)"):
        config.get_parsed_content("number")


# running_config


def test_an_expression_sees_its_config_as_it_was_written() -> None:
    config = parser(a=1, b={"c": "@a"}, d="$@a + 1", seen="$config.running_config()")
    config.update({"b::e": 5, "a": 7})
    seen = config.get_parsed_content("seen")
    assert seen == {
        "imports": ["$import monai_nodeo.workflow as config"],
        "a": 7,
        "b": {"c": "@a", "e": 5},
        "d": "$@a + 1",
        "seen": "$config.running_config()",
    }


def test_what_is_seen_is_a_copy() -> None:
    config = parser(a={"b": [1, 2]}, seen="$config.running_config()")
    config.get_parsed_content("seen")["a"]["b"].append(3)
    assert config["a"] == {"b": [1, 2]}


def test_metadata_is_not_config() -> None:
    config = parser(seen="$config.running_config()")
    config.read_meta({"version": "0.1.0"})
    assert set(config.get_parsed_content("seen")) == {"imports", "seen"}


def test_the_innermost_of_two_configs_is_the_running_one() -> None:
    inner = parser(name="inner", seen="$config.running_config()")
    outer = parser(name="outer", seen="$@inner.get_parsed_content('seen')", inner=inner)
    assert outer.get_parsed_content("seen")["name"] == "inner"


def test_no_config_runs_outside_an_expression() -> None:
    with pytest.raises(RuntimeError, match="expression of a config"):
        running_config()
    with pytest.raises(RuntimeError, match="expression of a config"):
        check_ids()


# check_ids


@pytest.mark.parametrize(
    "use",
    [
        "@steps",
        "$@steps + 1",
        "$abs(@steps)",
        {"_target_": "builtins.dict", "x": "@steps"},
        [{"deep": ["@steps"]}],
    ],
    ids=str,
)
def test_an_id_that_is_referred_to_is_known(use: Any) -> None:
    assert check(steps=3, run=use) == ""


@pytest.mark.parametrize("use", ["@steps::fine", "@steps#fine", "$@steps::fine * 2"])
def test_a_reference_into_an_id_is_a_reference_to_it(use: str) -> None:
    assert check(steps={"fine": 3}, run=use) == ""


def test_ids_that_monai_reads_need_no_reference() -> None:
    assert check(bundle_root=".", run=[], finalize=[], **{"$schema": "s", "_meta_": {"version": "1"}}) == ""


@pytest.mark.parametrize(
    ("typo", "nearest"), [("iteratoins", "iterations"), ("Iterations", "iterations"), ("learning_rte", "learning_rate")]
)
def test_a_mistyped_id_is_refused_with_the_nearest_one(typo: str, nearest: str) -> None:
    message = check(iterations=3, learning_rate=0.1, run=["@iterations", "@learning_rate"], **{typo: 5})
    assert message.startswith(f"error: unknown config id {typo!r} (did you mean {nearest!r}?); valid are ")
    assert "iterations" in message
    assert "learning_rate" in message


def test_every_unknown_id_is_named_and_no_nearest_one_is_made_up() -> None:
    message = check(iterations=3, run="@iterations", zzz=5, itertions=5)
    assert "unknown config id 'zzz', 'itertions' (did you mean 'iterations'?);" in message


def test_an_unknown_id_is_never_offered_as_the_right_one() -> None:
    message = check(iterations=3, run="@iterations", iteratoins=5, iteratoin=4)
    assert message.count("did you mean 'iterations'?") == 2
