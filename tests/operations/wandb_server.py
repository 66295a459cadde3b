"""What the wandb package needs of a W&B server, on loopback, with failures to order: GraphQL by the
operations' names, and the file stream.
"""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

Fault = Literal["none", "error", "hang", "slow"]


class WandbServer:
    """The state of a server.

    `runs`: what was upserted by id; lines of history by run and offset, where a later one replaces
    an earlier one.

    `fault`: what comes over the requests from now on: answered by status 500, never, or after a
    second.
    """

    def __init__(self) -> None:
        self.fault: Fault = "none"
        self.runs: dict[str, dict[str, Any]] = {}
        self.lines: dict[str, dict[int, str]] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self.ends: dict[str, list[Any]] = {}
        self.alerts: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.closed = threading.Event()
        self._http: ThreadingHTTPServer | None = None
        self.port = 0
        self.accept()

    def accept(self) -> None:
        """Listen, on the same port as before."""
        self._http = _Http(("127.0.0.1", self.port), _Answer)
        self._http.state = self  # type: ignore[attr-defined]
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def refuse(self) -> None:
        """Refuse connections from now on."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    def environment(self, home: Path) -> dict[str, str]:
        """What leads the wandb package here, and away from the user's own settings."""
        return {
            "WANDB_BASE_URL": f"http://127.0.0.1:{self.port}",
            "WANDB_API_KEY": "0" * 40,
            "HOME": str(home),
            "NETRC": str(home / "none"),
        }

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """The rows that the server would show, in their order."""
        return [json.loads(line) for _, line in sorted(self.lines.get(run_id, {}).items())]

    def __enter__(self) -> "WandbServer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closed.set()
        self.refuse()

    def take(self, run_id: str, body: dict[str, Any]) -> None:
        """A post to the file stream."""
        for name, part in (body.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                self.lines.setdefault(run_id, {}).update(enumerate(part["content"], part["offset"]))
            elif name == "wandb-summary.json":
                self.summaries[run_id] = json.loads(part["content"][-1])
        if body.get("complete"):
            self.ends.setdefault(run_id, []).append(body.get("exitcode"))

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL operation."""
        project = {
            "id": "p",
            "name": given.get("project") or "tests",
            "entity": {"id": "e", "name": "me"},
        }
        if operation == "RunResumeStatus":
            return {
                "model": {
                    **project,
                    "bucket": self._bucket(given["name"]) if given["name"] in self.runs else None,
                }
            }
        if operation == "UpsertBucket":
            run_id = given.get("name") or given["id"]
            inserted = run_id not in self.runs
            self.runs.setdefault(run_id, {}).update(
                {name: value for name, value in given.items() if value is not None}
            )
            return {
                "upsertBucket": {
                    "bucket": {**self._bucket(run_id), "sweepName": None, "project": project},
                    "inserted": inserted,
                }
            }
        if operation == "CreateRunFiles":
            files = [
                {"name": name, "uploadUrl": f"http://127.0.0.1:{self.port}/upload"}
                for name in given["files"]
            ]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        if operation == "NotifyScriptableRunAlert":
            self.alerts.append(given)
            return {"notifyScriptableRunAlert": {"success": True}}
        if operation == "CreateArtifact":
            self.artifacts.append(given["input"])
            return {
                "createArtifact": {
                    "artifact": {
                        "id": "a",
                        "state": "COMMITTED",
                        "artifactSequence": {"latestArtifact": None},
                    }
                }
            }
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        viewer = {
            "id": "u",
            "entity": "me",
            "username": "me",
            "email": "me@example.org",
            "flags": "{}",
            "teams": {"edges": []},
        }
        return {"viewer": viewer, "serverInfo": {"features": []}}

    def _bucket(self, run_id: str) -> dict[str, Any]:
        lines = self.lines.get(run_id, {})
        counts = {"historyLineCount": len(lines), "eventsLineCount": 0, "logLineCount": 0}
        tails = {
            "historyTail": json.dumps([lines[max(lines)]] if lines else []),
            "eventsTail": "[]",
            "wandbConfig": '{"t": 1}',
        }
        texts = {
            "summaryMetrics": "{}",
            "config": self.runs[run_id].get("config", "{}"),
            "notes": "",
            "description": "",
            "tags": [],
        }
        return {"id": run_id, "name": run_id, "displayName": run_id, **counts, **tails, **texts}


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of a test's business."""


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silence."""

    def do_PUT(self) -> None:
        self._reply(self._body() and {})

    def do_POST(self) -> None:
        body = json.loads(self._body())
        state: WandbServer = self.server.state  # type: ignore[attr-defined]
        if state.fault == "hang":
            state.closed.wait()
            return
        if state.fault == "slow":
            time.sleep(1.0)
        if state.fault == "error":
            self._reply({}, 500)
        elif self.path.endswith("/file_stream"):
            state.take(self.path.split("/")[-2], body)
            self._reply({})
        else:
            named = re.search(r"(?:query|mutation)\s+(\w+)", body["query"])
            self._reply(
                {"data": state.answer(named[1] if named else "", body.get("variables") or {})}
            )

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _reply(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content or {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
