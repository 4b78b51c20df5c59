"""What an artifact says about itself: manifest.json, read strictly and written whole."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

SCHEMA = 2
NAME = "manifest.json"
SEAL = "sha256"  # of all else in the file


class BadArtifact(ValueError):
    """A folder that is not a sound artifact for this machine; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of the artifact: its size in bytes and the SHA-256 of its content."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PlannedKernel:
    """One row of the kernel library.

    schedules: which counts of tokens (tokens: "1-4", "5+") each schedule serves, with its gain.
    why: where they came from, as in tuning/plan.py ("tuned", "log", "neighbour", "default", ...), and reason,
    a sentence about it; gain: the default's time over its time, where measured; tried: how many schedules
    were ever measured for this kernel on such a machine. uses: nodes with it.
    """

    name: str
    kernel: str
    schedules: Sequence[Mapping[str, Any]]
    why: str
    uses: int
    gain: float = 1.0
    tried: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One weight: the tensors it is made of, its format, and the bytes that all its forms take.

    error: RMS of what is stored less the weight, over RMS of the weight; None where it was not measured.
    """

    name: str
    format: str
    bytes: int
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything `load` checks and `explain` shows. All sizes are in bytes.

    source: name, family, hash. target: name, isa, features (as the CPU names them), library (file or None),
    whole (whether every node is a kernel of it) and, where the library is an execution provider, provider
    (memory, vendor: where its kernels read and write, as onnxruntime names it).
    onnxruntime: the oldest release it loads in, the newest tried. cache: bytes_per_token as stored, and
    unfused_bytes_per_token with all heads' keys and values; in pages, page_rows of one, and page_nodes, which
    are no kernels. proof: see proof.py; None where it was not run.
    positions: the most tokens a text may have, None where the model takes none. tuning: what it cost and
    bought (tuning/worth.py), and what choices hang on where times are not measured (guesses.py).
    """

    source: Mapping[str, str]
    target: Mapping[str, Any]
    onnxruntime: Mapping[str, str]
    files: Mapping[str, File]
    kernels: Sequence[PlannedKernel]
    toolchain: Mapping[str, str]
    cache: Mapping[str, int]
    active_bytes_per_token: int
    passes: Sequence[Mapping[str, Any]]
    weights: Sequence[StoredWeight] = ()
    misses: Sequence[str] = ()
    positions: int | None = None
    proof: Mapping[str, Any] | None = None
    tuning: Mapping[str, Any] | None = None
    schema: int = SCHEMA

    def write(self, folder: Path) -> None:
        """Write manifest.json; the folder is not an artifact before that."""
        content = asdict(self)
        text = json.dumps({**content, SEAL: seal(content)}, indent=1, sort_keys=True)
        (folder / NAME).write_text(text + "\n", encoding="utf-8")

    def proven(self, proof: Mapping[str, Any]) -> Manifest:
        """The manifest with the outcome of the comparison with PyTorch."""
        return replace(self, proof=proof)

    @property
    def size(self) -> int:
        """All bytes of the artifact's files, but for the manifest itself."""
        return sum(file.size for file in self.files.values())


def seal(content: Mapping[str, Any]) -> str:
    """The SHA-256 of a manifest's content however it is spelled, to tell when it was altered."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read(folder: Path) -> Manifest:
    """The manifest of an artifact. Raises BadArtifact where there is none that this version understands."""
    if not folder.is_dir():
        raise BadArtifact(f"{folder} is not a folder; expected an artifact written by `moec compile`")
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadArtifact(f"{folder} has no {NAME}; expected an artifact written by `moec compile`") from None
    except (OSError, ValueError) as error:
        raise BadArtifact(f"{folder / NAME} is not JSON: {error}; compile the model again") from None
    return parse(content, folder / NAME)


def parse(content: Any, path: Path) -> Manifest:
    """A manifest from its JSON form; `path` is for messages. Raises BadArtifact."""
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise BadArtifact(f"{path} names no schema version, expected {SCHEMA} or lower; compile again")
    if content["schema"] > SCHEMA:
        raise BadArtifact(
            f"{path} has schema {content['schema']}, this moec reads {SCHEMA}: use the one that wrote it"
        )
    content = dict(content)
    if content.pop(SEAL, None) != seal(content):
        raise BadArtifact(f"{path} was altered: its SHA-256 is not the one it names; copy it again")
    try:
        listed = content["files"].items()
        files = {str(name): File(int(each["size"]), str(each["sha256"])) for name, each in listed}
        kernels = tuple(PlannedKernel(**each) for each in content["kernels"])
        weights = tuple(StoredWeight(**each) for each in content["weights"])
        manifest = Manifest(**{**content, "files": files, "kernels": kernels, "weights": weights})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadArtifact(
            f"{path} lacks what schema {content['schema']} has: {error}; compile again"
        ) from None
    _expect_types(manifest, path)
    return manifest


def _expect_types(manifest: Manifest, path: Path) -> None:
    """The parts that `load` relies on have the types it relies on."""
    wanted = {"target.features": list, "onnxruntime.oldest": str}
    for place, kind in wanted.items():
        section, _, name = place.partition(".")
        value = getattr(manifest, section)
        if not isinstance(value, dict) or not isinstance(value.get(name), kind):
            raise BadArtifact(f"{path}: {place} is not the {kind.__name__} it should be; compile again")
    provider = manifest.target.get("provider", {"memory": "", "vendor": 0})
    kinds = {"memory": str, "vendor": int}
    if not isinstance(provider, dict) or any(not isinstance(provider.get(k), t) for k, t in kinds.items()):
        raise BadArtifact(f"{path}: target.provider does not name a memory and its vendor; compile again")
    if not isinstance(manifest.positions, int | None):
        raise BadArtifact(f"{path}: positions is no whole number; compile again")
    if not re.match(r"\d+\.\d+", oldest := manifest.onnxruntime["oldest"]):
        raise BadArtifact(
            f"{path}: onnxruntime.oldest is {oldest!r}, expected a release such as 1.27; compile again"
        )
