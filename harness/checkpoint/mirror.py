"""Copies in the memories of several machines. Of a copy, each machine holds what its own processes
write and what those of the machine before it do, so that all of it is left when one is lost.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.bounded import open_regular
from harness.checkpoint.files import TEMPORARY, translate_errors
from harness.checkpoint.format import bytes_of
from harness.checkpoint.in_memory import forget_others
from harness.checkpoint.manifest import MANIFEST
from harness.checkpoint.read import read_manifest, step_names
from harness.durable import make_directory
from harness.errors import CheckpointError, HarnessError
from harness.ranks.membership import machine_of
from harness.ranks.ranks import Ranks

_CHUNK_BYTES = 16 * 2**20
_MOST_AT_ONCE = 16  # files
_TENSORS = ".safetensors"


class Machines:
    """Which ranks are on which machine, as the launchers number machines."""

    def __init__(self, of_rank: Sequence[str], rank: int) -> None:
        """of_rank: each rank's machine, in order."""
        self._of_rank = list(of_rank)
        self._names = list(dict.fromkeys(of_rank))
        self._here = of_rank[rank]
        # This rank among those of its machine, and how many these are
        self.index = self._of_rank[:rank].count(self._here)
        self.count = self._of_rank.count(self._here)
        self.is_first = self.index == 0
        self.number = len(self._names)

    @classmethod
    def of(cls, ranks: Ranks) -> "Machines":
        """Called by every rank."""
        return cls(ranks.gather(machine_of()), ranks.rank)

    def firsts(self) -> list[int]:
        """The first rank of each machine."""
        return [self._of_rank.index(one) for one in self._names]

    def partner(self, rank: int) -> int:
        """The rank of the next machine that a rank's share also goes to."""
        own = self._of_rank[rank]
        following = self._names[(self._names.index(own) + 1) % self.number]
        index = self._of_rank[:rank].count(own) % Counter(self._of_rank)[following]
        return self._of_rank.index(following) + index


@dataclass(frozen=True)
class _Move:
    name: str
    size_bytes: int
    source: int
    target: int


class Mirror:
    """Spreads the copies that a `CheckpointStore` writes into `directory`, which has this path on
    this machine alone.
    """

    def __init__(self, directory: Path, machines: Machines) -> None:
        self._directory = directory
        self._machines = machines

    def prepare(self, temporary: str) -> None:
        """Make on this machine what rank 0 has made on its own. Raises OSError."""
        if self._machines.is_first:
            for left in self._directory.glob(f"{TEMPORARY}*"):
                if left.name != temporary:
                    shutil.rmtree(left, ignore_errors=True)
        make_directory(self._directory / temporary)

    def share(self, ranks: Ranks, temporary: str, written: Sequence[Mapping[str, Any]]) -> None:
        """Send each rank's tensors to its partner. Called by every rank. Raises CheckpointError.

        written: by rank, its `records`.
        """
        moves = [
            _Move(record["name"], record["size_bytes"], rank, self._machines.partner(rank))
            for rank, one in enumerate(written)
            for record in one["records"]
            if record["name"].endswith(_TENSORS)
        ]
        path = self._directory / temporary
        _send(ranks, moves, path, path)

    def finish(self, ranks: Ranks, temporary: str, name: str) -> None:
        """Once rank 0 has committed it: make it one on all machines, with all that is small, before
        any of them gives up the one before. Called by every rank. Raises CheckpointError.
        """
        path = self._directory / name

        def small() -> list[tuple[str, int]]:
            files = [one for one in sorted(path.iterdir()) if one.suffix != _TENSORS]
            return [(one.name, one.stat().st_size) for one in files]

        def commit() -> None:
            if self._machines.is_first and not ranks.is_first():
                shutil.rmtree(path, ignore_errors=True)
                with translate_errors(f"committing {name}"):
                    (self._directory / temporary).rename(path)

        files = ranks.decide(small)
        others = self._machines.firsts()[1:]
        moves = [_Move(file, size, 0, other) for other in others for file, size in files]
        _send(ranks, moves, path, self._directory / temporary)
        ranks.together(commit)
        if self._machines.is_first and not ranks.is_first():
            forget_others(self._directory, path)


def complete_copies(
    directory: Path, ranks: Ranks, machines: Machines, later_than: int
) -> dict[str, list[str]]:
    """Give every machine what it lacks of the newest copy that they have among them, if it is of a
    later step. Returns why others are of no use, by their path on this machine. Called by every
    rank.
    """
    useless = {name: ["not on each machine"] for _, name in step_names(directory)}
    held = ranks.gather(dict(_held(directory)) if machines.is_first else {})
    names = sorted({name for one in held for name in one}, reverse=True)
    for name in names if machines.number > 1 else ():
        found = {rank: one[name] for rank, one in enumerate(held) if name in one}
        for digest in {one["digest"]: None for one in found.values()}:
            have = {rank: one for rank, one in found.items() if one["digest"] == digest}
            first = next(iter(have.values()))
            sources = {file: rank for rank in reversed(have) for file in have[rank]["here"]}
            if first["step"] <= later_than or sources.keys() != first["files"].keys():
                continue
            moves = [
                _Move(file, size, sources[file], rank)
                for rank in machines.firsts()
                for file, size in first["files"].items()
                if rank not in have or file not in have[rank]["here"]
            ]
            try:
                if machines.is_first and ranks.rank not in have:
                    shutil.rmtree(directory / name, ignore_errors=True)
                _send(ranks, moves, directory / name, directory / name)
            except HarnessError as error:
                useless[name] = [str(error)]
                continue
            useless.pop(name, None)
            return _by_path(directory, useless)
    return _by_path(directory, useless) if machines.number > 1 else {}


def _by_path(directory: Path, useless: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {str(directory / name): why for name, why in useless.items()}


def _held(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """By the name of a copy: what it consists of, and which of that is here."""
    for step, name in step_names(directory):
        path = directory / name
        with suppress(CheckpointError, OSError):
            manifest, written = read_manifest(path), (path / MANIFEST).read_bytes()
            files = {one: entry.size_bytes for one, entry in manifest.files.items()}
            files[MANIFEST] = len(written)
            sizes = {one.name: one.stat().st_size for one in path.iterdir()}
            here = [one for one, size in files.items() if sizes.get(one, -1) >= size]
            digest = hashlib.sha256(written).hexdigest()
            yield name, {"step": step, "digest": digest, "files": files, "here": here}


def _send(ranks: Ranks, moves: Sequence[_Move], source: Path, target: Path) -> None:
    """Files from ranks to ranks, a chunk of each at a time. Called by every rank. Raises
    CheckpointError.
    """
    failures: list[OSError] = []
    for begin in range(0, len(moves), _MOST_AT_ONCE):
        _send_some(ranks, moves[begin : begin + _MOST_AT_ONCE], source, target, failures)

    def check() -> None:
        with translate_errors("sending a copy to another machine's memory"):
            if failures:
                raise failures[0]

    ranks.together(check)


def _send_some(
    ranks: Ranks, moves: Sequence[_Move], source: Path, target: Path, failures: list[OSError]
) -> None:
    """What fails is added to `failures`."""
    mine = [one for one in moves if ranks.rank in (one.source, one.target)]

    def attempt(work: Any, *given: Any) -> None:
        # The peer waits for as many bytes all the same
        try:
            work(*given)
        except OSError as error:
            failures.append(error)

    if any(one.target == ranks.rank for one in mine):
        attempt(make_directory, target)
    for begin in range(0, max((one.size_bytes for one in mine), default=0), _CHUNK_BYTES):
        chunks = [
            (one, torch.zeros(min(_CHUNK_BYTES, one.size_bytes - begin), dtype=torch.uint8))
            for one in mine
            if begin < one.size_bytes
        ]
        out = [(one, octets) for one, octets in chunks if one.source == ranks.rank]
        into = [(one, octets) for one, octets in chunks if one.target == ranks.rank]
        for one, octets in out:
            attempt(_read, source / one.name, begin, bytes_of(octets))
        ranks.exchange(
            [(one.target, octets) for one, octets in out],
            [(one.source, octets) for one, octets in into],
        )
        for one, octets in into:
            attempt(_write, target / one.name, begin, bytes_of(octets))


def _read(path: Path, begin: int, octets: memoryview) -> None:
    with open_regular(path) as file:
        file.seek(begin)
        file.readinto(octets)


def _write(path: Path, begin: int, octets: memoryview) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        done = 0
        while done < len(octets):
            done += os.pwrite(descriptor, octets[done:], begin + done)
    finally:
        os.close(descriptor)
