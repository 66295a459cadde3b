"""From YAML files and `key=value` overrides to one tree of plain values that knows where each value
came from.

OmegaConf resolves `${run.seed}`. It is imported only if there is something to resolve, since that
takes as long as all the rest, and merging is done here, so that a mistake can be traced to its file
and line.
"""

import functools
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.bounded import read_bytes
from harness.components import TARGET, target_of
from harness.config.document import Document, MalformedError
from harness.errors import ConfigError
from harness.hidden import TOKEN, Reference, is_secret
from harness.wording import Key, Keys, Mistake, dotted, first_line

MAX_BYTES = 2**20  # of one file; a checkpoint's config may be somebody else's


# Mappings that are a number with its unit: given anew, they are replaced as a whole
_ONE_QUANTITY = ("every", "keep_every", "patience")


# Backslashes before it: an odd number is an escape
_OPENING = re.compile(r"(\\*)\$\{")


_KEY = re.compile(r"\[(\d+)\]|(?:^|\.)([^.\[\]=]+)")


def raise_all(mistakes: Sequence[Mistake]) -> None:
    """Raise a ConfigError with one line for each mistake, if there are any."""
    lines = list(dict.fromkeys(" ".join(str(mistake).splitlines()) for mistake in mistakes))
    if len(lines) == 1:
        raise ConfigError(lines[0])
    if lines:
        raise ConfigError(f"{len(lines)} mistakes:\n" + "\n".join(f"  {line}" for line in lines))


@dataclass
class Draft:
    """A config under construction: files and overrides, merged.

    `origins`: where the value at some keys was given, unless it came with the value around it.
    """

    path: Path
    tree: dict[Any, Any] = field(default_factory=dict)
    origins: dict[Keys, str] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def origin(self, keys: Keys) -> str:
        """Where the value at these keys, or else the innermost value around it, was given."""
        while keys and keys not in self.origins:
            keys = keys[:-1]
        return self.origins.get(keys, str(self.path))

    def has_mistake(self, keys: Keys) -> bool:
        """Whether a mistake was already found at these keys or around them, so that others there
        would only repeat it.
        """
        return any(
            keys[: len(mistake.keys)] == mistake.keys for mistake in self.mistakes if mistake.keys
        )

    def add(self, keys: Keys, message: str) -> None:
        """Note a mistake in the value at these keys."""
        self.mistakes.append(Mistake(keys, message, self.origin(keys)))

    def merge(self, over: dict[Any, Any], origins: dict[Keys, str]) -> None:
        """Merge a tree into this one: sections are merged, everything else is replaced."""
        self._merge(self.tree, over, (), origins)

    def _merge(
        self, into: dict[Any, Any], over: dict[Any, Any], keys: Keys, origins: dict[Keys, str]
    ) -> None:
        for key, value in over.items():
            here = (*keys, key)
            before = into.get(key)
            if (
                isinstance(before, dict)
                and isinstance(value, dict)
                and not _replaces(key, before, value)
            ):
                self.origins[here] = origins[here]
                self._merge(before, value, here, origins)
            else:
                self._forget(here)
                into[key] = value
                self.origins |= {
                    inside: origin
                    for inside, origin in origins.items()
                    if inside[: len(here)] == here
                }

    def override(self, text: str) -> None:
        """Apply `key=value`: the value is YAML, the key is dotted, with list items by number."""
        origin = f"override {text}"
        name, equals, written = text.partition("=")
        keys = _parse_keys(name.strip())
        if not equals or not keys:
            hint = f" Write {name.lstrip('-+~')}=VALUE." if name.lstrip("-+~") else ""
            self.mistakes.append(
                Mistake(
                    (), f"not of the form key=value.{hint or ' Write e.g. run.seed=7.'}", origin
                )
            )
            return
        if keys[0] == "base":
            self.mistakes.append(
                Mistake(
                    keys,
                    "a base cannot be set by an override. Put it into the file.",
                    origin,
                )
            )
            return
        try:
            value = parse_value(written, origin, keys)
        except ConfigError as error:
            self.mistakes += [Mistake((), line) for line in str(error).splitlines()]
            return
        self._set(keys, value, origin)

    def _set(self, keys: Keys, value: Any, origin: str) -> None:
        node: Any = self.tree
        here: Keys = ()
        for wanted in keys[:-1]:
            key = self._key_in(node, wanted, here, origin)
            if key is None:
                return
            here = (*here, key)
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
                self.origins[here] = origin
            node = node[key]
        key = self._key_in(node, keys[-1], here, origin)
        if key is None:
            return
        if isinstance(node, dict) and here and here[-1] in _ONE_QUANTITY:
            node.clear()
        self._forget((*here, key))
        node[key] = value
        self.origins[(*here, key)] = origin

    def _key_in(self, node: Any, key: Key, here: Keys, origin: str) -> Key | None:
        """The key as what is at `here` has it: a list by numbers, a mapping by either.

        None, and a mistake noted, if it can have no such key.
        """
        number = int(key) if str(key).isdecimal() else None
        if isinstance(node, dict):
            return number if number in node else key
        if isinstance(node, list) and number is not None and number < len(node):
            return number
        if isinstance(node, list):
            last = f"its last item is [{len(node) - 1}]" if node else "it is empty"
            message = f"{dotted(here)} is a list and {last}. To add an item, set the whole list."
        else:
            message = f"{dotted(here)} is {node!r} and has no keys. Set it as a whole."
        self.mistakes.append(Mistake((*here, key), message, origin))
        return None

    def _forget(self, keys: Keys) -> None:
        for inside in [one for one in self.origins if one[: len(keys)] == keys]:
            del self.origins[inside]

    def interpolate(self, sections: Sequence[str] | None = None) -> None:
        """Resolve `${...}` in all sections or in those named."""
        open_texts = [(keys, text) for keys, text in _texts(self.tree, ()) if "${" in text]
        if not any(sections is None or keys[0] in sections for keys, _ in open_texts):
            return
        from omegaconf import DictConfig, ListConfig, OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        for keys, text in open_texts:
            try:
                OmegaConf.create({"text": text})
            except OmegaConfBaseException:
                self._put(keys, None)
                if sections is None or keys[0] in sections:
                    self.add(
                        keys,
                        f"{text!r} is no interpolation. Write e.g. ${{run.seed}}, or \\${{ for the "
                        "literal characters.",
                    )
        kept = self._hide(open_texts)
        whole = OmegaConf.create(self.tree)
        for keys, text in open_texts:
            if (sections is not None and keys[0] not in sections) or self.has_mistake(keys):
                continue
            try:
                value: Any = functools.reduce(operator.getitem, keys, whole)
                if isinstance(value, DictConfig | ListConfig):
                    value = OmegaConf.to_container(value, resolve=True)
                self._put(keys, value)
                if kept:
                    self._refer(keys, value, kept)
            except OmegaConfBaseException as error:
                self.add(
                    keys,
                    f"{text!r}: {first_line(error).rstrip('.')}. Name a key of the "
                    "config, or another source of the value.",
                )

    def take_literally(self, sections: Sequence[str] | None = None) -> None:
        """Take the config stored by a run as it is, in all sections or in those named: it is
        already resolved, and nothing is looked up, least of all in the environment.
        """
        for keys, text in list(_texts(self.tree, ())):
            if "${" not in text or (sections is not None and keys[0] not in sections):
                continue
            left = TOKEN.sub("", text)
            if any(len(found[1]) % 2 == 0 for found in _OPENING.finditer(left)) or (
                left != text and not self._in_component(keys)
            ):
                self.add(
                    keys,
                    "an interpolation, which is not resolved in the config stored by a run. Write "
                    "the value.",
                )
            elif left != text:
                self._put(keys, Reference(text))
            else:
                self._put(keys, _OPENING.sub(lambda found: found[1][::2][:-1] + "${", text))

    def _hide(self, texts: Sequence[tuple[Keys, str]]) -> set[str]:
        """Protect references to secrets in arguments of components from interpolation, which would
        insert the values; returns their texts.
        """
        kept: set[str] = set()
        for keys, text in texts:
            if self.has_mistake(keys):
                continue
            inside = self._in_component(keys)
            found = [one for one in TOKEN.finditer(text) if is_secret(one, keys)]
            if inside and found:
                kept.update(one[0] for one in found)
                self._put(keys, TOKEN.sub(functools.partial(_escape, keys), text))
            if not inside and any(one[1] == "secret" for one in found):
                self.add(keys, f"{text!r}: only arguments of components can be secrets.")
        return kept

    def _refer(self, keys: Keys, value: Any, kept: set[str]) -> None:
        """Turn what was resolved to the text of a secret, directly or through another key, into a
        Reference.
        """
        for inner, text in list(_texts(value, keys)):
            if not any(mark in text for mark in kept):
                continue
            if not self._in_component(inner):
                self.add(inner, "only arguments of components take a secret.")
                continue
            self._put(inner, Reference(text))
            missing = Reference(text).missing()
            if missing:
                self.add(inner, f"{text!r}: {missing[0]} is not set in the environment. Set it.")

    def _in_component(self, keys: Keys) -> bool:
        """Whether the value at these keys is an argument of a component, at any depth."""
        node: Any = self.tree
        for key in keys[:-1]:
            node = node[key]
            if isinstance(node, dict) and TARGET in node:
                return True
        return False

    def _put(self, keys: Keys, value: Any) -> None:
        functools.reduce(operator.getitem, keys[:-1], self.tree)[keys[-1]] = value


def _escape(keys: Keys, token: re.Match[str]) -> str:
    return f"\\{token[0]}" if is_secret(token, keys) else token[0]


PYTHON = Path("fermarsi.Config")


def read(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    stored: bool = False,
    links: bool = True,
    over: Mapping[Any, Any] | None = None,
) -> Draft:
    """A config file over its bases, with overrides, not yet interpolated. `over`: what is merged
    over the file, or there instead of one if `path` is PYTHON.

    stored: it is what a run has left, perhaps somebody else's: a regular file, without a base, and
    unless `links` no link, which could show another file.
    Raises ConfigError if a file cannot be read at all.
    """
    draft = Draft(path)
    layers: list[tuple[dict[Any, Any], dict[Keys, str]]] = []
    files: list[Path] = []
    following: Path | None = None if over is not None and path == PYTHON else path
    while following is not None:
        if following.resolve() in [file.resolve() for file in files]:
            raise ConfigError(
                f"{path}: base: {' -> '.join(map(str, [*files, following]))} is a cycle. Remove "
                "one of the bases."
            )
        asked_by = files[-1] if files else None
        data = _bytes_of(following, asked_by, stored=stored, links=links)
        tree, origins = _parse(following, asked_by, data, draft.mistakes)
        files.append(following)
        layers.append((tree, origins))
        base = tree.pop("base", None)
        if base is not None and stored:
            raise ConfigError(
                f"{origins[('base',)]}: base: the config stored by a run must be complete. Remove "
                "base."
            )
        if base is not None and (not isinstance(base, str) or not base):
            raise ConfigError(
                f"{origins[('base',)]}: base: {base!r} is not the path of a file. Give a path "
                f"relative to {files[-1]}."
            )
        following = None if base is None else files[-1].parent / Path(base).expanduser()
    for tree, origins in reversed(layers):
        draft.merge(tree, origins)
    if over is not None:
        draft.merge(dict(over), dict.fromkeys(_keys_of(over, ()), str(PYTHON)))
    for text in overrides:
        draft.override(text)
    return draft


def parse_value(text: str, origin: str, keys: Keys = ()) -> Any:
    """One value as written in YAML, e.g. behind the = of an override. Raises ConfigError."""
    document = Document()
    try:
        value = document.read(text)
    except MalformedError as error:
        message = f"{error}. Put text with special characters in quotes."
        raise ConfigError(str(Mistake(keys, message, origin))) from error
    if document.rest:
        message = f"the text after {document.rest[0]} is not read. Put the whole value in quotes."
        raise ConfigError(str(Mistake(keys, message, origin)))
    if document.mistakes:
        raise ConfigError(
            "\n".join(
                str(Mistake((*keys, *inside), message, origin))
                for _, inside, message in document.mistakes
            )
        )
    return value


def _bytes_of(path: Path, asked_by: Path | None, *, stored: bool, links: bool) -> bytes:
    try:
        if stored:
            return read_bytes(path, MAX_BYTES, links=links)
        with path.open("rb") as file:  # also of a pipe, such as a shell's <(...)
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}{_by(asked_by)}: cannot be read: {error.strerror}. Give the path of a YAML "
            "file."
        ) from error


def _by(asked_by: Path | None) -> str:
    return f" (base of {asked_by})" if asked_by else ""


def _parse(
    path: Path, asked_by: Path | None, data: bytes, mistakes: list[Mistake]
) -> tuple[dict[Any, Any], dict[Keys, str]]:
    by = _by(asked_by)
    try:
        text = data.decode("utf-8-sig")
    except ValueError as error:
        raise ConfigError(
            f"{path}{by}: not UTF-8 text: {error}. Give the path of a YAML file."
        ) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"{path}{by}: larger than {MAX_BYTES:,} bytes. Put data into separate files."
        )
    document = Document()
    try:
        tree = document.read(text)
    except MalformedError as error:
        raise ConfigError(f"{path}:{error.line}: {error}. Fix the file.") from error
    if not isinstance(tree, dict):
        found = "empty" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError(
            f"{path}{by}: {found}, not a mapping of sections. Write e.g. `run: {{seed: 7}}`."
        )
    mistakes += [
        Mistake(keys, message, f"{path}:{line}") for line, keys, message in document.mistakes
    ]
    return tree, {keys: f"{path}:{line}" for keys, line in document.lines.items() if keys}


def _replaces(key: Any, before: dict[Any, Any], value: dict[Any, Any]) -> bool:
    """Whether a mapping replaces the one before instead of adding to it: a quantity,
    or another component with other arguments.
    """
    targets = [target_of(one) for one in (before, value) if TARGET in one]
    return key in _ONE_QUANTITY or len(set(targets)) == 2


def _parse_keys(name: str) -> Keys:
    """`a.b[0].c` -> ("a", "b", 0, "c"); nothing if it is no such path."""
    found = list(_KEY.finditer(name))
    if (
        "".join(match.group() for match in found) != name
        or name.startswith(".")
        or not all(key == key.strip() for key in name.split("."))
    ):
        return ()
    keys = tuple(int(match[1]) if match[1] else match[2] for match in found)
    return () if not keys or not isinstance(keys[0], str) or keys[0][0] in "-+~" else keys


def _keys_of(value: Any, keys: Keys) -> Iterator[Keys]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield (*keys, key)
            yield from _keys_of(item, (*keys, key))


def _texts(value: Any, keys: Keys) -> Iterator[tuple[Keys, str]]:
    if isinstance(value, str):
        yield keys, value
    for key, item in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield from _texts(item, (*keys, key))
