"""Where models that are put together on this machine are kept, and whether what is there is whole.

The folder is $COREMAT_CACHE, else $XDG_CACHE_HOME/coremat, else ~/.cache/coremat. Each set of weights has its own
folder in it, by a key of their checksums, so that a new release does not take the weights of an old one for its own.
"""

import hashlib
import json
import os
from pathlib import Path

HERE = Path(__file__).parent
CHECKSUMS = HERE / "checksums.json"  # SHA-256 of the GGUF file, and of each model's weights as `digest` has it
MANIFEST = "assembled.json"  # SHA-256 of every other file of a folder, written last


def cache_root() -> Path:
    own = os.environ.get("COREMAT_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "coremat"


def checksums() -> dict[str, str]:
    return json.loads(CHECKSUMS.read_text(encoding="utf-8"))


def cached_folder(name: str) -> Path:
    """Where the model of this name is, or will be; the folder is called as the model is."""
    known = checksums()
    key = hashlib.sha256(f"{known['gguf']} {known[name]}".encode()).hexdigest()[:12]
    return cache_root() / key / name


def is_whole(folder: Path) -> bool:
    """Whether every file that was written is there as it was written: half a second for a model of 0.3 GB."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(files) and all(file_digest(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def write_manifest(folder: Path) -> None:
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")


def file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
