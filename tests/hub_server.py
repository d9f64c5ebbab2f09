"""A small hub on loopback that speaks ModelScope's and Hugging Face's data set protocols."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

from tests.loopback import Handler, Server, running

REVISION = "0123456789abcdef0123456789abcdef01234567"
_README = b"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: train.jsonl
---
"""


class _Handler(Handler):
    server: HubServer

    def do_GET(self) -> None:  # noqa: N802
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.server.requests.append(self.path)
        for name in self.server.data_sets:
            if self._modelscope(name, url.path, query) or self._huggingface(name, url.path):
                return
        self.send_error(404)

    do_HEAD = do_POST = do_GET  # noqa: N815

    def _modelscope(self, name: str, path: str, query: dict[str, str]) -> bool:
        number = 1 + list(self.server.data_sets).index(name)
        if path == f"/api/v1/datasets/{name}":
            self._json({"Code": 200, "Success": True, "Data": {"Id": number, "Type": 4}})
        elif path == f"/api/v1/datasets/{number}/repo/tree":
            files = [
                {
                    "Type": "blob",
                    "Path": file,
                    "Size": len(content),
                    "Sha256": hashlib.sha256(content).hexdigest(),
                }
                for file, content in self.server.files(name).items()
            ]
            self._json({"Code": 200, "Success": True, "Data": {"Files": files}})
        elif path == f"/api/v1/datasets/{name}/repo":
            self._file(name, query.get("FilePath", ""))
        else:
            return False
        return True

    def _huggingface(self, name: str, path: str) -> bool:
        if path in (f"/api/datasets/{name}", f"/api/datasets/{name}/revision/{REVISION}"):
            siblings = [{"rfilename": file} for file in self.server.files(name)]
            self._json({"id": name, "sha": REVISION, "tags": [], "siblings": siblings})
        elif path.startswith(f"/api/datasets/{name}/tree/{REVISION}"):
            self._json(
                [
                    {
                        "type": "file",
                        "path": file,
                        "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
                    for file, content in self.server.files(name).items()
                ]
            )
        elif path.startswith(f"/datasets/{name}/resolve/{REVISION}/"):
            self._file(name, path.rpartition("/")[2])
        else:
            return False
        return True

    def _json(self, value: object) -> None:
        self.send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def _file(self, name: str, file: str) -> None:
        content = self.server.files(name).get(file)
        if content is None:
            self.send_error(404)
            return
        etag = hashlib.sha256(content).hexdigest()
        self.send(content, headers={"ETag": f'"{etag}"', "X-Repo-Commit": REVISION})


class HubServer(Server):
    """Serves data sets by id; each is the content of its one file, `train.jsonl`."""

    handler = _Handler

    def __init__(self) -> None:
        super().__init__()
        self.data_sets: dict[str, bytes] = {}

    def files(self, name: str) -> dict[str, bytes]:
        return {"README.md": _README, "train.jsonl": self.data_sets[name]}


@contextmanager
def hub() -> Iterator[HubServer]:
    """A hub that runs while the block does."""
    with running(HubServer()) as server:
        yield server
