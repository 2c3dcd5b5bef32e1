# Copyright (c) monai_nodeo contributors
# SPDX-License-Identifier: Apache-2.0
"""The pages of a run for a browser on this machine; viewers are made when they are asked for."""

from __future__ import annotations

import os
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import unquote

from monai.config import PathLike

from monai_nodeo.report.index import index_page
from monai_nodeo.report.page import PAGE
from monai_nodeo.report.view import VIEW, view_page

__all__ = ["RunServer"]


class RunServer(ThreadingHTTPServer):
    """Serves the index of a run, the reports of its pairs and their viewers.

    It listens at 127.0.0.1, on a free port, and answers those who know its address, which holds a secret.

    Args:
        folder: of the run.

    Raises:
        FileNotFoundError: when there is no table of a run.
    """

    daemon_threads = True

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(str(folder)).absolute()
        index_page(self.folder, served=True)  # fails here rather than in the browser
        self.place = f"/{secrets.token_urlsafe(16)}/"
        self.one_at_a_time = Lock()  # viewers take memory
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """Address of the index."""
        return f"http://127.0.0.1:{self.server_port}{self.place}"

    def page(self, path: str) -> str:
        """The HTML at a path below the secret one.

        Raises:
            FileNotFoundError: when there is no such page.
            ValueError: when it cannot be made.
        """
        if not path:
            return index_page(self.folder, served=True)
        pair, _, name = path.rpartition("/")
        if pair not in os.listdir(self.folder) or name not in (PAGE, VIEW):  # so no path leads out of the folder
            raise FileNotFoundError(f"{path}: there is no such page.")
        if name == PAGE:
            return (self.folder / pair / PAGE).read_text(encoding="utf-8")
        with self.one_at_a_time:
            return view_page(self.folder / pair)


class _Handler(BaseHTTPRequestHandler):
    server: RunServer

    def do_GET(self) -> None:
        """Answer with a page, or say why there is none."""
        try:
            if not self.path.startswith(self.server.place):
                raise FileNotFoundError("There is no such page.")
            body = self.server.page(unquote(self.path.removeprefix(self.server.place))).encode()
        except (ValueError, OSError) as error:
            self.send_error(HTTPStatus.NOT_FOUND, explain=str(error))
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the browser shows what is wrong."""
