"""Queue prompts on a running ComfyUI, follow them, and turn its errors into sentences."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import RunnerError

_TEXT = 3  # of the host's binary messages, the kind that is a line on a node


class PromptRejected(RunnerError):
    """The host refused a prompt before running it; `node_errors` is its own answer."""

    def __init__(self, message: str, node_errors: dict) -> None:
        super().__init__(message)
        self.node_errors = node_errors


class ExecutionFailed(RunnerError):
    """A node failed; the host's own facts are attributes."""

    def __init__(self, message: str, facts: dict) -> None:
        super().__init__(message)
        self.node_id = str(facts.get("node_id", ""))
        self.node_type = facts.get("node_type", "")
        self.exception_type = facts.get("exception_type", "")
        self.exception_message = (facts.get("exception_message") or "").strip()
        self.traceback = "".join(facts.get("traceback") or [])


class Interrupted(RunnerError):
    """The prompt was interrupted."""


@dataclass(frozen=True)
class Progress:
    """One step forward: node `title` is at `value` of `total` (0 of 0 when it has only started).

    `text`: the line that it shows on itself, the newest.
    """

    node_id: str
    title: str
    value: float = 0.0
    total: float = 0.0
    text: str = ""


@dataclass
class Result:
    """What a finished prompt left: outputs by node id, and the seconds it took inside the host."""

    prompt_id: str
    outputs: dict[str, dict] = field(default_factory=dict)
    seconds: float = 0.0
    cached_nodes: tuple[str, ...] = ()
    messages: list = field(default_factory=list)


def title_of(prompt: dict, node_id: str) -> str:
    """Return a node's title as the editor shows it, else its type."""
    node = prompt.get(str(node_id), {})
    return node.get("_meta", {}).get("title") or node.get("class_type") or f"node {node_id}"


class HostClient:
    """A client of one host; with its `server` (a HostServer) errors carry the end of the log."""

    def __init__(self, url: str, server=None) -> None:
        self.url, self.server, self.client_id = url.rstrip("/"), server, uuid.uuid4().hex

    def get(self, path: str, timeout: float = 60.0) -> Any:
        """GET a path and return its json."""
        return self._request(urllib.request.Request(self.url + path), timeout)

    def post(self, path: str, data: Any = None, timeout: float = 60.0) -> Any:
        """POST json and return the json answer (None for an empty one)."""
        body = json.dumps(data if data is not None else {}).encode()
        return self._request(
            urllib.request.Request(self.url + path, data=body, headers={"Content-Type": "application/json"}), timeout
        )

    def _request(self, request: urllib.request.Request, timeout: float) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            raise RunnerError(f"ComfyUI at {self.url} does not answer ({error}).{self._tail()}") from error
        return json.loads(text) if text.strip() else None

    def _tail(self) -> str:
        return f"\n{self.server.tail()}" if self.server is not None else ""

    def object_info(self, node: str | None = None) -> dict:
        """Return the host's description of all nodes, or of one."""
        return self.get(f"/object_info/{node}" if node else "/object_info")

    def interrupt(self) -> None:
        """Stop what runs now."""
        self.post("/interrupt")

    def free(self) -> None:
        """Ask the host to unload models and drop its caches."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def queue(self, prompt: dict) -> str:
        """Queue an API-format prompt and return its id."""
        try:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": self.client_id})
        except urllib.error.HTTPError as error:
            raise _rejection(prompt, error.code, error.read().decode("utf-8", "replace")) from error
        if answer.get("node_errors"):  # the host would run the rest without the outputs that these nodes feed
            self.post("/queue", {"delete": [answer["prompt_id"]]})
            self.interrupt()
            raise _rejection(prompt, 200, json.dumps(answer))
        return answer["prompt_id"]

    def history(self, prompt_id: str) -> dict | None:
        """Return the history entry of a prompt, or None while it has not finished."""
        return (self.get(f"/history/{prompt_id}") or {}).get(prompt_id)

    def run(
        self, prompt: dict, on_progress: Callable[[Progress], None] | None = None, timeout: float | None = None
    ) -> Result:
        """Queue a prompt, follow it to its end and return the result; on Ctrl-C interrupt it first."""
        try:
            return asyncio.run(self._run(prompt, on_progress, timeout))
        except KeyboardInterrupt:
            if self.server is None or self.server.alive():
                self.interrupt()
            raise

    async def _run(self, prompt: dict, on_progress, timeout: float | None) -> Result:
        import aiohttp  # the host ships it

        end = time.monotonic() + timeout if timeout else None
        address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            prompt_id, newest = self.queue(prompt), Progress("", "")
            while True:
                if end and time.monotonic() > end:
                    self.interrupt()
                    raise RunnerError(f"The prompt did not finish within {timeout:.0f} s.{self._tail()}")
                try:
                    message = await socket.receive(timeout=2.0)
                except asyncio.TimeoutError:
                    message = None
                if message is not None and message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                    raise RunnerError(f"ComfyUI ended in the middle of the work.{self._tail()}")
                step = None if message is None else _step(prompt, prompt_id, message, newest)
                if step is not None:
                    newest = step
                    if on_progress:
                        on_progress(step)
                finished = message is None or _is_over(prompt_id, message)
                if finished and (entry := self.history(prompt_id)):
                    return _result(prompt, prompt_id, entry)


def _step(prompt: dict, prompt_id: str, message, newest: Progress) -> Progress | None:
    """Read a step forward from a websocket message; `newest` is the one before it."""
    if message.type.name == "BINARY":
        return _line(message.data, newest)
    event = json.loads(message.data) if message.type.name == "TEXT" else {}
    data = event.get("data") or {}
    node = data.get("node")
    if data.get("prompt_id") != prompt_id or not node:
        return None
    title, text = title_of(prompt, node), newest.text if newest.node_id == str(node) else ""
    if event["type"] == "executing":
        return Progress(str(node), title)
    if event["type"] == "progress":
        return Progress(str(node), title, data.get("value", 0), data.get("max", 0), text)
    return None


def _line(data: bytes, newest: Progress) -> Progress | None:
    """Read the line that a node shows on itself: kind and length of the node's id (4 bytes each), both texts."""
    if len(data) < 8 or int.from_bytes(data[:4], "big") != _TEXT:
        return None
    end = 8 + int.from_bytes(data[4:8], "big")
    node, text = data[8:end].decode("utf-8", "replace"), data[end:].decode("utf-8", "replace")
    return replace(newest, text=text) if node == newest.node_id else None


def _is_over(prompt_id: str, message) -> bool:
    """Return whether the prompt may be over after a websocket message."""
    event = json.loads(message.data) if message.type.name == "TEXT" else {}
    data = event.get("data") or {}
    over = ("execution_success", "execution_error", "execution_interrupted")
    ended = event.get("type") in over or (event.get("type") == "executing" and data.get("node") is None)
    return ended and data.get("prompt_id") == prompt_id


def _result(prompt: dict, prompt_id: str, entry: dict) -> Result:
    messages = entry.get("status", {}).get("messages", [])
    events = {name: data for name, data in messages}
    if (facts := events.get("execution_error")) is not None:
        text = (facts.get("exception_message") or "").strip() or "no message"
        title = title_of(prompt, facts.get("node_id"))
        named = text if text.startswith(title) else f"{title} ({facts.get('node_type')}): {text}"
        kind = (facts.get("exception_type") or "").rpartition(".")[2]
        raise ExecutionFailed(named if kind == "ValueError" else f"{named} [{kind}]", facts)
    if "execution_interrupted" in events:
        raise Interrupted("The prompt was interrupted.")
    times = [data["timestamp"] for data in events.values() if isinstance(data, dict) and "timestamp" in data]
    cached = tuple(str(node) for node in events.get("execution_cached", {}).get("nodes", ()))
    seconds = (max(times) - min(times)) / 1000 if times else 0.0
    return Result(prompt_id, entry.get("outputs", {}), seconds, cached, messages)


def _rejection(prompt: dict, code: int, text: str) -> RunnerError:
    try:
        answer = json.loads(text)
    except ValueError:
        return RunnerError(f"ComfyUI refused the workflow (HTTP {code}): {text[:500]}")
    if not isinstance(answer, dict):
        return RunnerError(f"ComfyUI refused the workflow (HTTP {code}): {text[:500]}")
    lines = []
    node_errors = answer.get("node_errors") or {}
    for node_id, facts in node_errors.items():
        for item in facts.get("errors", []):
            details = (item.get("details") or "").strip()
            lines.append(
                f"  {title_of(prompt, node_id)}: {item.get('message', '').strip()}"
                + (f" - {details}" if details else "")
            )
    head = answer.get("error") or {"message": "some of its nodes cannot run"}
    message = head.get("message", "invalid prompt") if isinstance(head, dict) else str(head)
    if not lines and isinstance(head, dict) and head.get("details"):
        lines.append(f"  {head['details']}")
    return PromptRejected("\n".join([f"ComfyUI refused the workflow: {message}", *lines]), node_errors)
