"""Weights by name: found where such files lie, else fetched, because somebody named them.

Only the names of PUBLISHED are fetched, and only without a folder. What comes is held against size and SHA-256, where
those of its address are known, and read by the safe loader, before it gets its name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from utils.base.files import printable
from utils.base.log import LOGGER, one_line
from utils.base.paths import ROOT, existing_weights, find_weights
from utils.checkpoints.checkpoint import load_checkpoint
from utils.distributed.processes import agreed, broadcast, is_joined, local_rank
from utils.prepare.downloads import alone, download_file, reason

FOLDER, BASE, OFFLINE = "YOLOV5_WEIGHTS_DIR", "YOLOV5_WEIGHTS_URL", ("YOLOV5_OFFLINE", "HF_HUB_OFFLINE")
PUBLISHED = tuple(f"yolov5{size}{tail}.pt" for tail in ("", "6") for size in "nsmlx")
PYRAMIDS = tuple(f"biformer_{size}_best.pth" for size in ("tiny", "small", "base", "stl"))
RELEASE = "https://github.com/ultralytics/yolov5/releases/download/v6.1"
HUB, REPOSITORY = "https://huggingface.co", "Ultralytics/YOLOv5/resolve/main"
OPTIONS = ("argparse.Namespace",)  # that classifiers' training leaves beside the weights; read as an inert stand-in
AUTHORS = "https://github.com/rayleizhu/BiFormer"  # whose OneDrive addresses have ceased to answer
# Files of the Hugging Face repository: bytes, SHA-256. Whether the release page has the same ones is not known.
KNOWN = {
    "yolov5n.pt": (4_062_133, "4f180cf23ba0717ada0badd6c685026d73d48f184d00fc159c2641284b2ac0a3"),
    "yolov5s.pt": (14_808_437, "8b3b748c1e592ddd8868022e8732fde20025197328490623cc16c6f24d0782ee"),
    "yolov5m.pt": (42_806_829, "61d933360ba5a7733a36764996c800287d973889d875227f5beedd2473a97a56"),
    "yolov5n6.pt": (7_190_229, "496c05a2b991da15acc6c4408c63da287f2513a46c6756618776d4dd71170781"),
}


class Address(NamedTuple):
    """Where a file can be had, under which licence, and what it is there: bytes and SHA-256, where they are known."""

    url: str
    licence: str
    size: int = 0
    sha256: str = ""


def cache_folder() -> Path:
    """Return where this user's programs keep such files; the repository's `weights` for a user without a home."""
    given = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    try:
        base = Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return ROOT / "weights"
    return base / "yolov5-biformer/weights"


def weights_folder() -> Path:
    """Return the folder that fetched weights go to: YOLOV5_WEIGHTS_DIR if set, else the cache folder."""
    chosen = os.environ.get(FOLDER)
    return Path(chosen).expanduser() if chosen else cache_folder()


def addresses(name: str) -> list[Address]:
    """Return where a file of this name is fetched from, in the order in which they are tried."""
    if base := os.environ.get(BASE):
        return [Address(f"{base.rstrip('/')}/{name}", "licence: ask its owner")]
    if name in PYRAMIDS:
        return []
    hub = os.environ.get("HF_ENDPOINT") or HUB
    return [
        Address(f"{RELEASE}/{name}", "GPL-3.0"),
        Address(f"{hub.rstrip('/')}/{REPOSITORY}/{name}", "AGPL-3.0", *KNOWN.get(name, ())),
    ]


def named_weights(weights: str | Path) -> Path:
    """Return a file of weights: as given, or of that name where such files lie, else fetched where the name is known.

    A name alone is looked for in the current folder and the repository, `weights` of both, YOLOV5_WEIGHTS_DIR and the
    cache folder. Raises ValueError, in one line with the remedy, for weights that are not there and cannot be had.
    """
    name = os.fspath(weights)
    is_bare = name == Path(name).name
    places = [Path(), Path("weights"), weights_folder(), cache_folder()] if is_bare else [Path()]
    for place in places:
        if found := existing_weights(place / name):
            return found
    if is_bare and name in PUBLISHED + PYRAMIDS:
        return _fetched(name)
    try:
        return find_weights(weights)
    except ValueError as error:
        known = "yolov5{n,s,m,l,x}.pt and yolov5{n,s,m,l,x}6.pt"
        more = f" or to {printable(weights_folder())}; only {known} are fetched by name" if is_bare else ""
        if not is_bare and Path(name).name in PUBLISHED:
            more = f"; {Path(name).name} alone, without a folder, would be fetched"
        raise ValueError(f"{error}{more}") from error


def weights_of_run(weights: str | Path) -> Path:
    """Return `named_weights`, as the first process of each machine finds or fetches it; every process must call it."""
    with agreed():
        path = named_weights(weights) if local_rank() <= 0 or not is_joined() else None
    return Path(broadcast(path, machine=True))


def _fetched(name: str) -> Path:
    """Fetch a file of a known name, unless another process is faster. Raises ValueError, in one line."""
    folder, known = weights_folder(), addresses(name)
    remedy = f"put the file into {printable(folder)}, or give its path"
    if not known:
        raise ValueError(f"{name} is not here, and no address has it: get it from its authors, {AUTHORS}, and {remedy}")
    chosen = [variable for variable in OFFLINE if os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")]
    if chosen:
        there = " or ".join(printable(address.url) for address in known)
        raise ValueError(f"{name} is not here, and {chosen[0]} forbids to fetch it: get it from {there}, and {remedy}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / name):
            if not (folder / name).is_file():
                _fetch(name, folder, known, remedy)
    except OSError as error:
        raise ValueError(f"{name} cannot be kept: {one_line(error)}; {FOLDER} names another folder") from error
    return folder / name


def _fetch(name: str, folder: Path, known: Sequence[Address], remedy: str) -> None:
    """Fetch from the first address that has the right file. Raises ValueError when none has, OSError for the disk."""
    failures: list[str] = []
    for address in known:
        if failures:
            LOGGER.warning(f"not fetched: {failures[-1]}; trying the next address")
        staged = folder / f".{name}.{hashlib.sha256(address.url.encode()).hexdigest()[:8]}"  # each goes on with its own
        size = f"{address.size:,} bytes" if address.size else "of a size not known before"
        where = f"from {printable(address.url)} to {printable(folder / name)}"
        LOGGER.info(f"{name} is not here: fetching it {where} ({size}; {address.licence})")
        try:
            download_file(address.url, staged, address.sha256 and f"sha256:{address.sha256}", size=address.size)
            _check(staged)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            failures.append(f"{printable(address.url)} ({reason(error)})")
            continue
        with staged.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        same = f", the file that {REPOSITORY.partition('/resolve')[0]} has at {HUB}" * (digest in KNOWN.get(name, ()))
        LOGGER.info(f"{name}: {staged.stat().st_size:,} bytes, SHA-256 {digest}{same}")
        os.replace(staged, folder / name)
        for rest in folder.glob(f".{name}.????????.part*"):  # of addresses that broke off
            rest.unlink(missing_ok=True)
        return
    raise ValueError(f"{name} cannot be fetched: {', '.join(failures)}; check the network and proxies, or {remedy}")


def _check(file: Path) -> None:
    """Remove a file that the safe loader refuses, and raise ValueError with its reason."""
    try:
        load_checkpoint(file, OPTIONS)
    except ValueError as error:
        file.unlink()
        raise ValueError(str(error).removeprefix(f"{file}: ")) from None
