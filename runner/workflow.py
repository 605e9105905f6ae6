"""Load API-format workflows, find their nodes by title, and set their inputs from text."""

from __future__ import annotations

import copy
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import RunnerError
from .paths import ROOT

SHIPPED = ROOT / "workflows"


def shipped_names() -> list[str]:
    """Return the names of the shipped workflows."""
    return sorted(file.stem for file in (SHIPPED / "api").glob("*.json"))


def resolve(name_or_file: str) -> Path:
    """Return the API file of a shipped name or a file; an editor file stands for its twin in api/."""
    given = Path(name_or_file)
    names = {name.lower(): name for name in shipped_names()}
    if given.is_file():
        return _api_twin(given)
    if (name := names.get(name_or_file.lower().removesuffix(".json"))) is not None:
        return SHIPPED / "api" / f"{name}.json"
    raise RunnerError(
        f"--workflow: must be a json file or one of {', '.join(names.values()) or '(none shipped)'}; "
        f"got {name_or_file!r}.{_did_you_mean(name_or_file, names.values())}"
    )


def is_shipped(name_or_file: str) -> bool:
    """Return whether a name or file means one of the shipped workflows."""
    return resolve(name_or_file).absolute().parent == (SHIPPED / "api").absolute()


def _api_twin(file: Path) -> Path:
    content = _read_json(file)
    if not (isinstance(content, dict) and isinstance(content.get("nodes"), list)):
        return file  # not of the editor
    twins = (
        file.parent / "api" / file.name,
        file.with_name(f"{file.stem}.api.json"),
        file.with_name(f"{file.stem}_api.json"),
    )
    for twin in twins:
        if twin.is_file():
            return twin
    raise RunnerError(
        f"--workflow: {file} is an editor file, for the editor only; there is no API form at {twins[0]}. "
        "Export it there: in the editor's menu, File > Export (API)."
    )


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RunnerError(f"--workflow: {file} cannot be read ({error}).") from error
    except ValueError as error:
        raise RunnerError(f"--workflow: {file} is not valid json ({error}).") from error


def _did_you_mean(word: str, choices) -> str:
    choices = list(choices)
    lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    return f" Did you mean {lower[close[0]]!r}?" if close else ""


@dataclass
class Workflow:
    """An API-format prompt: {id: {"class_type", "inputs", "_meta": {"title"}}}."""

    prompt: dict[str, dict]
    name: str

    @classmethod
    def load(cls, name_or_file: str) -> Workflow:
        """Read a workflow by shipped name or file."""
        file = resolve(name_or_file)
        content = _read_json(file)
        nodes = list(content.values()) if isinstance(content, dict) else []
        if not nodes or not all(
            isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict) for node in nodes
        ):
            raise RunnerError(f"--workflow: {file} is no API-format workflow (nodes with class_type and inputs).")
        return cls(copy.deepcopy(content), file.stem)

    def title(self, node_id: str) -> str:
        """Return a node's title, else its type."""
        node = self.prompt[node_id]
        return node.get("_meta", {}).get("title") or node["class_type"]

    def titles(self) -> list[str]:
        """Return all titles, sorted."""
        return sorted({self.title(node_id) for node_id in self.prompt})

    def of_type(self, *class_types: str) -> list[str]:
        """Return the ids of the nodes of these types."""
        return [node_id for node_id, node in self.prompt.items() if node["class_type"] in class_types]

    def find(self, title: str) -> str:
        """Return the id of the node with this title, type or #id (upper and lower case alike)."""
        ids = self._matching(title)
        if len(ids) == 1:
            return ids[0]
        if ids:
            choices = ", ".join(f"#{node_id}" for node_id in ids)
            raise RunnerError(
                f"--set: {title!r} names {len(ids)} nodes of {self.name}; write one of {choices} instead."
            )
        raise RunnerError(
            f"--set: {self.name} has no node titled {title!r}.{_did_you_mean(title, self.titles())} "
            f"It has: {', '.join(self.titles())}."
        )

    def _matching(self, title: str) -> list[str]:
        wanted = title.strip().lower()
        if wanted.startswith("#") and wanted[1:] in self.prompt:
            return [wanted[1:]]
        titled = [node_id for node_id in self.prompt if self.title(node_id).lower() == wanted]
        return titled or [node_id for node_id, node in self.prompt.items() if node["class_type"].lower() == wanted]

    def set(self, setting: str) -> None:
        """Apply one "Title.input=value"; the value takes the type of the one it replaces."""
        target, equals, text = setting.partition("=")
        if not equals or "." not in target:
            raise RunnerError(f'--set: must read "Node title.input=value"; got {setting!r}.')
        node_id, name = self._split(target)
        inputs = self.prompt[node_id]["inputs"]
        actual = {key.lower(): key for key in inputs}.get(name.lower(), name)
        where = f"{self.title(node_id)}.{actual}"
        if actual in inputs:
            if isinstance(inputs[actual], list):
                source = self.title(str(inputs[actual][0])) if str(inputs[actual][0]) in self.prompt else "a node"
                raise RunnerError(
                    f"--set: {where} is connected to {source}, so it takes no value. Set that node instead."
                )
            inputs[actual] = convert(text, inputs[actual], where)
        elif "." in actual and not isinstance(inputs.get(actual.rpartition(".")[0], []), list):
            inputs[actual] = _guess(text)  # a widget that appears with another choice of its parent
        else:
            settable = [key for key, value in inputs.items() if not isinstance(value, list)]
            raise RunnerError(
                f"--set: {self.title(node_id)} has no input {name!r}.{_did_you_mean(name, settable)} "
                f"It has: {', '.join(settable) or 'none that takes a value'}."
            )

    def _split(self, target: str) -> tuple[str, str]:
        """Split "Title.input" where both may hold dots: the longest title that exists wins."""
        parts = target.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            if self._matching(".".join(parts[:cut])):
                return self.find(".".join(parts[:cut])), ".".join(parts[cut:]).strip()
        return self.find(parts[0]), ".".join(parts[1:])

    def add(self, class_type: str, title: str, **inputs: Any) -> str:
        """Add a node and return its id."""
        number = max((int(node_id) for node_id in self.prompt if node_id.isdigit()), default=0) + 1
        self.prompt[str(number)] = {"class_type": class_type, "inputs": inputs, "_meta": {"title": title}}
        return str(number)

    def consumers(self, node_id: str) -> list[tuple[str, str]]:
        """Return (id, input) of everything connected to a node's outputs."""
        return [
            (other, name)
            for other, node in self.prompt.items()
            for name, value in node["inputs"].items()
            if isinstance(value, list) and len(value) == 2 and str(value[0]) == node_id
        ]

    def ancestors(self, node_id: str) -> list[str]:
        """Return the ids of a node and of all it depends on."""
        found, open_ids = [], [node_id]
        while open_ids:
            if (current := open_ids.pop()) in found or current not in self.prompt:
                continue
            found.append(current)
            values = self.prompt[current]["inputs"].values()
            open_ids += [str(value[0]) for value in values if isinstance(value, list) and len(value) == 2]
        return found


def convert(text: str, old: Any, where: str) -> Any:
    """Turn text into the type of the value it replaces."""
    try:
        if isinstance(old, bool):
            words = {"true": True, "yes": True, "on": True, "1": True}
            words |= {"false": False, "no": False, "off": False, "0": False}
            return words[text.strip().lower()]
        if isinstance(old, int):
            number = float(text)  # the editor writes a float input that holds 4.0 as 4
            return int(text) if text.strip().lstrip("+-").isdigit() else number
        if isinstance(old, float):
            return float(text)
        if isinstance(old, dict):
            return json.loads(text)
    except (KeyError, ValueError) as error:
        kind = {bool: "true or false", int: "a number", float: "a number"}.get(type(old), "json")
        raise RunnerError(f"--set: {where} must be {kind}; got {text!r}.") from error
    return text


def _guess(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text
