"""An artifact on disk: written whole or not at all, verified before anything in it is opened."""

from __future__ import annotations

import ctypes
import fcntl
import glob
import hashlib
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

from . import manifest as manifests
from . import rooms, verified
from .blobs import Blobs, labels
from .interpret import Observe, WeightSource
from .ir import Graph, Value
from .manifest import BadArtifact, File, Manifest
from .onnx_graph import Naming, Stored, frontier, to_onnx
from .session import MODEL
from .slices import evaluated, nbytes

# The oldest onnxruntime that runs functions where no kernel is registered, and the newest that was tried.
ONNXRUNTIME = {"oldest": "1.27", "tested": "1.32"}

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux

Verify = Literal["full", "size"]
Slice = TypeVar("Slice")


class OutputTaken(ValueError):
    """The output folder holds something that may not be overwritten, or cannot be made."""


@contextmanager
def writing(out: Path, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends well, and vanishes otherwise.

    Where a killed process could not make its own vanish, the next one does. With `force` an earlier artifact
    stays as it is until then. Raises OutputTaken where `out` is not empty and not to be replaced, or, even
    with `force`, is not an artifact.
    """
    out = out.resolve()
    _expect_free(out, force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder, claim = _claimed(out)
    except OSError as error:
        raise OutputTaken(f"cannot write into {out.parent}: {error.strerror}; give another -o") from None
    try:
        folder.chmod(0o755)
        yield folder
        _expect_free(out, force)
        _swap(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(claim)


def _claimed(out: Path) -> tuple[Path, int]:
    """A new temporary folder of `out` and the lock on it, which this process lets go of however it ends."""
    parent = os.open(out.parent, os.O_RDONLY)
    try:
        fcntl.flock(parent, fcntl.LOCK_EX)  # nobody may sweep a folder away before it is claimed
        _sweep(out)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        claim = os.open(folder, os.O_RDONLY)
        fcntl.flock(claim, fcntl.LOCK_EX)
    finally:
        os.close(parent)
    return folder, claim


def _sweep(out: Path) -> None:
    """Remove temporary folders of `out` that no living process claims."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        try:
            claim = os.open(left, os.O_RDONLY)
        except FileNotFoundError:
            continue  # who made it has just ended
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(claim)


def _expect_free(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputTaken(f"{out} is a file; expected a folder, or a name that does not exist yet")
    if not any(out.iterdir()):
        return
    if not force:
        raise OutputTaken(f"{out} is not empty; give another -o, or --force to replace the artifact in it")
    if not (out / manifests.NAME).is_file():
        raise OutputTaken(f"{out} is not empty and no artifact, so --force leaves it alone; give another -o")


def _swap(folder: Path, out: Path) -> None:
    """Put `folder` in the place of `out`, in one step; what was there is then in `folder`."""
    if not out.exists() or not any(out.iterdir()):
        os.replace(folder, out)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(folder), AT_FDCWD, os.fsencode(out), RENAME_EXCHANGE):
        raise OutputTaken(f"cannot replace {out}: {os.strerror(ctypes.get_errno())}; give another -o")


def place(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write further files of a target, by their paths in the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def store(
    folder: Path,
    graph: Graph,
    weights: WeightSource,
    naming: Naming,
    progress: Callable[[int, int], None],
    observe: Observe | None = None,
) -> dict[str, File]:
    """Write the model and its weights, some slices of a tensor at a time; gives all files of the folder.

    naming: the op name of each region with a kernel (see onnx_graph). progress: told bytes done and all.
    observe: called with all that is computed of the weights (see interpret).
    Raises ValueError for a graph that ONNX cannot express.
    """
    values, blobs = frontier(graph), Blobs(folder)
    stored: dict[Value, Stored] = {}
    names = dict(zip(values, labels(values)))
    total = sum(nbytes(value.type) for value in values)
    for group, slices in evaluated(values, weights, observe):
        named = [(names[value], value) for value in group]
        stored.update(zip(group, blobs.add(named, telling(slices, lambda: progress(blobs.written, total)))))
    blobs.close()
    (folder / MODEL).write_bytes(to_onnx(graph, stored, naming).SerializeToString())
    written = (path for path in sorted(folder.rglob("*")) if path.is_file())
    others = {path.relative_to(folder).as_posix(): path for path in written}
    prints = {name: fingerprint(path) for name, path in others.items() if name not in blobs.files}
    return {**prints, **blobs.files}


def telling(slices: Iterable[Slice], tell: Callable[[], None]) -> Iterator[Slice]:
    """The slices; `tell` is called when one has been used."""
    for each in slices:
        yield each
        tell()


def fingerprint(path: Path) -> File:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return File(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def verify(folder: Path, how: Verify = "full", kernels: bool = True) -> Manifest:
    """The manifest of a sound artifact that this machine can run; nothing is opened but to read or hash it.

    "full" hashes every byte that may have changed since it was last hashed here; "size" only compares sizes.
    kernels: whether it is to run with its own kernels, which take a machine of their target; where that has
    another processor than the library is for, the manifest names the one that was linked there. Raises
    BadArtifact: newer schema; file missing, altered or outside the folder; unfit machine or onnxruntime.
    """
    found = manifests.read(folder)
    for name, file in found.files.items():
        _expect_inside(folder, name, file)
    for needed in (MODEL, found.target.get("library")):
        if needed and needed not in found.files:
            raise BadArtifact(f"{folder / manifests.NAME} does not list {needed!r}; compile the model again")
    if how == "full":
        _expect_content(folder, found)
    _expect_machine(folder, found, kernels)
    linked = found.target.get("linked")
    return found if not kernels or linked in (None, platform.machine()) else _linked_here(folder, found)


def _linked_here(folder: Path, found: Manifest) -> Manifest:
    """The manifest with the library that was linked for this processor, in a copy of this artifact: a file of
    sums beside it says so.
    """
    own, machine = str(found.target["library"]), platform.machine()
    name = f"{own.removesuffix('.so')}.{machine}.so"
    sums = f"{name}.sha256"
    if not (folder / sums).exists():
        raise BadArtifact(
            f"{folder / own} is for {found.target['linked']}, and this machine is {machine}: run "
            f"{folder / str(found.target.get('finish'))} here, which links one for it"
        )
    for each in (name, sums):
        if not (folder / each).exists() or not stat.S_ISREG((folder / each).lstat().st_mode):
            raise BadArtifact(f"{folder / each} is no regular file; run finish.sh --again")
    lines = (line.split() for line in (folder / sums).read_text("utf-8", "replace").splitlines())
    written = {line[-1]: line[0] for line in lines if line}
    for each in (name, manifests.NAME):
        if written.get(each) != fingerprint(folder / each).sha256:
            raise BadArtifact(
                f"{folder / name} was not linked for this artifact as it is: {each} has another SHA-256 than "
                f"{sums} says; run finish.sh --again"
            )
    return replace(found, target={**found.target, "library": name})


def _expect_content(folder: Path, found: Manifest) -> None:
    """Files that may have changed since they were last hashed here have the SHA-256 of the manifest."""
    known = verified.unchanged(folder)
    files = {name: file for name, file in found.files.items() if name not in known}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(lambda name: fingerprint(folder / name), files)
        for (name, file), actual in zip(files.items(), digests):
            if actual != file:
                raise BadArtifact(
                    f"{folder / name} was altered: its SHA-256 is not the manifest's; copy it again"
                )
    if files:
        verified.remember(folder, found.files)


def _expect_inside(folder: Path, name: str, file: File) -> None:
    """A regular file in the folder or below, by way of no link, of the size the manifest gives."""
    path, parts = folder / name, name.split("/")
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise BadArtifact(
            f"{folder / manifests.NAME} lists {name!r}, which is no file name inside the artifact"
        )
    try:
        for depth in range(1, len(parts)):
            between = folder.joinpath(*parts[:depth])
            if not stat.S_ISDIR(between.lstat().st_mode):
                raise BadArtifact(f"{between} is no folder; links are not followed: copy what they lead to")
        status = path.lstat()
    except OSError:
        raise BadArtifact(f"{path} is missing; the artifact is incomplete: copy it again") from None
    if not stat.S_ISREG(status.st_mode):
        raise BadArtifact(f"{path} is no regular file; links are not followed: copy what they lead to")
    if status.st_size != file.size:
        raise BadArtifact(f"{path} has {status.st_size} bytes, the manifest says {file.size}; copy it again")


def _expect_machine(folder: Path, found: Manifest, kernels: bool) -> None:
    """This machine is what the kernels were built for, and this onnxruntime has the interface they use."""
    import onnxruntime

    room = rooms.room_for(found.target)
    if kernels and (why := room.unfit(found.target)):
        raise BadArtifact(f"{folder} {why}; {room.REMEDY}")
    oldest = found.onnxruntime["oldest"]
    if _release(onnxruntime.__version__) < _release(oldest):
        raise BadArtifact(
            f"{folder} needs onnxruntime {oldest} or newer, this is {onnxruntime.__version__}: upgrade it"
        )


def _release(version: str) -> tuple[int, ...]:
    """1.32.0 as (1, 32)."""
    return tuple(int(part) for part in version.split(".")[:2])
