"""Routers come from a hub that answers on loopback: the right files, the right revision, clear sentences when not."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from onebeat import Router
from onebeat.engine.errors import CheckpointError, ConfigError, FetchError
from onebeat.engine.hub import HubReference, fetch, router_folder
from tests.engine.tiny_routers import tiny_router

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class Hub(BaseHTTPRequestHandler):
    """The three requests that snapshot_download makes: the repository's listing, a file's metadata, its bytes."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []
    cut_after: ClassVar[int | None] = None
    """Bytes of the model after which the connection breaks."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *args: object) -> None:
        """Silent."""

    def _answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/mine/router"):
            return self._listing(path)
        parts = path.split("/", 5)  # /mine/router/resolve/COMMIT/NAME
        if parts[1:4] != ["mine", "router", "resolve"] or parts[5] not in self.files:
            return self._refuse(404, "EntryNotFound" if parts[1:3] == ["mine", "router"] else "RepoNotFound")
        content = self.files[parts[5]]
        if body:
            self.asked.append(f"{parts[4][0]}:{parts[5]}")
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMITS.get(parts[4], parts[4]))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            cut = self.cut_after if parts[5] == "model.safetensors" else None
            self.wfile.write(content[:cut])
        return None

    def _listing(self, path: str) -> None:
        revision = path.partition("/revision/")[2] or "main"
        commit = COMMITS.get(revision, revision if revision in COMMITS.values() else None)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        if "/tree/" in path:
            listing: object = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
        else:
            listing = {"id": "mine/router", "sha": commit, "siblings": [{"rfilename": name} for name in self.files]}
        text = json.dumps(listing).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
        return None

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    folder = tiny_router(tmp_path / "published")
    Hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    Hub.files |= {"pytorch_model.bin": b"\x80", "evil.py": b"boom", "onnx/config.json": b"{}", "README.md": b"hello"}
    Hub.asked, Hub.cut_after = [], None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_safetensors_and_json_files_are_fetched_once_and_nothing_else(hub: str, tmp_path: Path) -> None:
    reference = HubReference.parse("hf:mine/router")
    folder = fetch(reference, cache_folder=tmp_path / "cache", endpoint=hub)
    asked = {entry.partition(":")[2] for entry in Hub.asked}
    wanted = {"config.json", "router.json", "tokenizer.json", "tokenizer_config.json"}
    assert asked == wanted | {"model.safetensors", "router_head.safetensors"}
    assert Router.from_pretrained(folder).score(["hello"]).quality.shape == (1, 4)
    Hub.asked.clear()
    assert fetch(reference, cache_folder=tmp_path / "cache", endpoint=hub) == folder
    assert Hub.asked == []


def test_a_revision_is_the_one_that_is_fetched(hub: str, tmp_path: Path) -> None:
    folder = fetch(HubReference.parse("hf:mine/router@v1"), cache_folder=tmp_path / "cache", endpoint=hub)
    assert folder.name == COMMITS["v1"] and {entry[0] for entry in Hub.asked} == {"b"}
    assert HubReference.parse("hf:mine/router", "v1") == HubReference.parse("hf:mine/router@v1")


def test_what_the_hub_does_not_have_is_said(hub: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"hf:mine/router@v9: the repository has no revision 'v9'"):
        fetch(HubReference.parse("hf:mine/router@v9"), cache_folder=tmp_path, endpoint=hub)
    with pytest.raises(FetchError, match="hf:mine/other is not on the hub, or is private"):
        fetch(HubReference.parse("hf:mine/other"), cache_folder=tmp_path, endpoint=hub)


def test_a_broken_transfer_is_a_sentence_and_is_never_picked_up(hub: str, tmp_path: Path) -> None:
    reference = HubReference.parse("hf:mine/router")
    Hub.cut_after = 1000
    with pytest.raises(FetchError, match=r"hf:mine/router could not be fetched \("):
        fetch(reference, cache_folder=tmp_path / "cache", endpoint=hub)
    for snapshot in (tmp_path / "cache").glob("*/snapshots/*"):
        with pytest.raises(CheckpointError, match=r"model\.safetensors|router\.json|config\.json|tokenizer"):
            Router.from_pretrained(snapshot)
    Hub.cut_after = None
    folder = fetch(reference, cache_folder=tmp_path / "cache", endpoint=hub)
    assert (folder / "model.safetensors").read_bytes() == Hub.files["model.safetensors"]


def test_offline_is_a_sentence_unless_everything_is_here(hub: str, tmp_path: Path) -> None:
    reference = HubReference.parse("hf:mine/router")
    nowhere = "http://127.0.0.1:9"
    with pytest.raises(FetchError, match="check the network, or give a folder") as refusal:
        fetch(reference, cache_folder=tmp_path / "cache", endpoint=nowhere)
    assert "\n" not in str(refusal.value)
    folder = fetch(reference, cache_folder=tmp_path / "cache", endpoint=hub)
    assert fetch(reference, cache_folder=tmp_path / "cache", endpoint=nowhere) == folder


@pytest.mark.parametrize(
    "source", ["hf:", "hf:name", "hf:a/b/c", "hf:../etc", "hf:a/b@", "hf:a b/c", "hf:/a/b", "hf:-a/b"]
)
def test_a_malformed_reference_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="write"):
        router_folder(source)


def test_a_revision_must_mean_something(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pins revision 'v1' and revision is 'v2'"):
        router_folder("hf:mine/router@v1", revision="v2")
    with pytest.raises(ConfigError, match="is not on the hub; write hf:org/name"):
        router_folder(tmp_path, revision="v1")
    with pytest.raises(ConfigError, match="is not a folder; give a router's folder"):
        router_folder(tmp_path / "nothing")
