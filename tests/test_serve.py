# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from grids import SLICE, make_image

from monai_nodeo.apps.cli._client import supported
from monai_nodeo.files import write_image

pytestmark = pytest.mark.skipif(not supported(), reason="serve needs Linux")
ROOT = Path(__file__).resolve().parents[1]
PROGRAM = [sys.executable, "-m", "monai_nodeo"]
# A server that has loaded nothing, and that knows `info` as a command that tells about itself.
PROBE = """
import json, os, sys, time
import click
import monai_nodeo.apps.cli.info, monai_nodeo.apps.cli.serve

@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1)
def probe(words):
    click.echo("to the standard error", err=True)
    mask = os.umask(0)
    told = {"words": words, "folder": os.getcwd(), "here": os.environ.get("HERE"), "umask": mask}
    told |= {"process": os.getpid(), "input": "" if words == ("wait",) else sys.stdin.read()}
    click.echo(json.dumps(told))
    sys.stdout.flush()
    if words == ("wait",):
        time.sleep(60)
    sys.exit(7)

monai_nodeo.apps.cli.info.command = probe
monai_nodeo.apps.cli.serve._load = lambda: None
monai_nodeo.apps.cli.main(["serve"])
"""


@contextmanager
def serving(words: list[str], environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder) as server:
        try:
            assert server.stdout is not None
            assert "ctrl-C" in server.stdout.readline()
            yield server
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_RUNTIME_DIR": str(tmp_path_factory.mktemp("sockets"))}
    return os.environ | own


@pytest.fixture(scope="module")
def run(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Starts the command beside a server of `PROBE`; environment, then words."""

    def start(*words: str, **changes: Any) -> subprocess.Popen[str]:
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        env = environment | changes.pop("env", {})
        return subprocess.Popen([*PROGRAM, *words], env=env, text=True, **streams, **changes)

    with serving([sys.executable, "-c", PROBE], environment, tmp_path_factory.mktemp("elsewhere")):
        yield start


def test_a_served_command_is_as_in_a_process_of_its_own(run, tmp_path):
    words = ("info", "a b", "\udcff", "--name=7")
    client = run(*words, cwd=tmp_path, env={"HERE": "yes"}, umask=0o027)
    output, error = client.communicate("typed")
    assert (client.returncode, error) == (7, "to the standard error\n")
    told = json.loads(output)
    del told["process"]
    assert told == {"words": list(words[1:]), "folder": str(tmp_path), "here": "yes", "umask": 0o027, "input": "typed"}


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_signal_to_the_client_ends_the_command(number, status, run):
    # what runs in the background of a shell ignores ctrl-C
    client = run("info", "wait", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    told = json.loads(client.stdout.readline())
    client.send_signal(number)
    _, error = client.communicate()
    assert (client.returncode, "interrupted" in error) == (status, number == signal.SIGINT)
    with pytest.raises(ProcessLookupError):  # the streams have ended with it
        os.kill(told["process"], 0)


def test_a_server_of_other_code_is_not_asked(tmp_path):
    copied = shutil.copytree(ROOT / "monai_nodeo", tmp_path / "monai_nodeo", ignore=shutil.ignore_patterns("*.js"))
    rooms = [room.stem for room in copied.iterdir() if (room / "__init__.py").exists()]

    def address() -> str:
        code = "from monai_nodeo.apps.cli._client import address; print(address())"
        own = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.check_output([sys.executable, "-c", code], env=own, cwd=tmp_path, text=True)

    found = [address()]
    for room in rooms:
        os.utime(copied / room / "__init__.py", (1, 1))
        found.append(address())
    assert len(set(found)) == len(rooms) + 1 > 9


@pytest.mark.parametrize(
    "changes",
    [{"OMP_NUM_THREADS": "2"}, {"MONAI_NODEO_SERVER": "off"}, {"XDG_RUNTIME_DIR": "/nowhere"}],
    ids=lambda changes: "".join(changes),
)
def test_a_command_of_another_kind_runs_by_itself(changes, run):
    output, _ = run("info", "--help", env=changes).communicate()
    assert "Show the steps of a transform" in output


def test_a_command_with_a_closed_stream_runs_by_itself(run):
    output, _ = run("info", "--help", preexec_fn=lambda: os.close(0)).communicate()
    assert "Show the steps of a transform" in output


def test_one_server_is_enough_and_stops_when_asked(environment, tmp_path):
    environment = environment | {"XDG_RUNTIME_DIR": str(tmp_path)}

    def status(*words: str) -> tuple[int, str]:
        found = subprocess.run([*PROGRAM, *words], env=environment, capture_output=True, text=True)
        return found.returncode, found.stderr

    with serving([sys.executable, "-c", PROBE], environment, tmp_path) as server:
        assert status("serve") == (1, f"Error: a server is there, process {server.pid}; --stop ends it.\n")
        assert status("serve", "--stop") == (0, "")
        assert server.wait() == 0
    assert not any((tmp_path / "monai-nodeo").iterdir())
    assert status("serve", "--stop") == (1, "Error: no server is there for commands typed here.\n")
    (tmp_path / "monai-nodeo").chmod(0o755)
    assert status("serve")[1].startswith(f"Error: {tmp_path / 'monai-nodeo'} is not a folder of yours alone")


@pytest.mark.long
@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_served_registration_writes_the_same_files(threads, environment, tmp_path):
    for name in ("fixed", "moving"):
        write_image(tmp_path / f"{name}.nii.gz", make_image(SLICE, seed=len(name)), SLICE)
    environment = environment | {"OMP_NUM_THREADS": threads, "XDG_RUNTIME_DIR": str(tmp_path)}  # a socket of its own
    command = [*PROGRAM, "register", "-f", "fixed.nii.gz", "-m", "moving.nii.gz", "--set", "iterations=[5,5]", "-o"]

    def start(folder: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*command, folder], cwd=tmp_path, env=environment | env, text=True)

    with serving([*PROGRAM, "serve"], environment, tmp_path) as server:
        assert len(list(Path(f"/proc/{server.pid}/task").iterdir())) <= 3  # those of OpenBLAS, which forks well
        clients = [start("own", MONAI_NODEO_SERVER="off"), start("first"), start("second")]
        assert [client.wait() for client in clients] == [0, 0, 0]
    for path in (tmp_path / "own").iterdir():
        if path.name not in ("metrics.csv", "metrics.json", "report.html"):  # they tell the seconds
            assert {path.read_bytes()} == {(tmp_path / name / path.name).read_bytes() for name in ("first", "second")}
