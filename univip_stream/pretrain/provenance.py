"""Where a run's weights come from: the hashes of weights, settings, code and shards, a chain that `verify` checks."""

import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import univip_stream
from univip_stream import storage
from univip_stream.checkpoint import Checkpoints
from univip_stream.errors import InputError, why
from univip_stream.files import sha256_of, sha256_of_bytes, written_atomically
from univip_stream.methods import method_class
from univip_stream.pretrain.load import BACKBONE, CHECKPOINTS, CONFIG
from univip_stream.shards import ShardSet
from univip_stream.shards.manifest import MANIFEST, has_manifest

PROVENANCE = "provenance.json"
FORMAT = "univip-stream provenance 1"
_LIBRARIES = ("torchvision", "timm", "numpy", "pillow", "opencv-contrib-python-headless")
"""What a result can depend on beside torch."""


def weights_sha256(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 over the names and bytes of a network's tensors, sorted by name: the same in every file format."""
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def digest_of(provenance: Mapping[str, Any]) -> str:
    """SHA-256 of a provenance, whatever its indentation: one number that stands for the whole chain."""
    return sha256_of_bytes(json.dumps(provenance, sort_keys=True, separators=(",", ":")).encode())


def code_here(method: str = "univip") -> dict[str, Any]:
    """This program and what it computes with: versions, the hash of its files, and that of a method of the user's own."""
    package = Path(univip_stream.__file__).parent
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).as_posix()):
        found.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    code: dict[str, Any] = {"univip-stream": univip_stream.__version__, "files_sha256": found.hexdigest(), "with": versions}
    if ":" in method:
        source = inspect.getsourcefile(method_class(method))
        code["method"] = {"name": method, "sha256": None if source is None else sha256_of(Path(source))}
    return code


def read_provenance(path: Path) -> dict[str, Any]:
    """Read a provenance's JSON.

    Raises:
        InputError: it is missing, or none of this format.

    """
    try:
        found = json.loads(path.read_bytes())
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']!r:.60}, expected {FORMAT!r}")
        for name, kind in (("code", list), ("config", dict), ("shards", dict)):
            if not isinstance(found[name], kind):
                raise ValueError(f"its {name} is no {'list' if kind is list else 'object'}")
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is missing; `train` writes it when it begins and when it ends: run the same `train` command again"
        ) from error
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a provenance ({why(error)})") from error
    return dict(found)


def begin(run: Path, index: ShardSet, method: str, *, first: int, total: int) -> None:
    """Write what is known when a run begins or goes on: settings, code and shards.

    Args:
        run: the run folder, with its `config.json`.
        index: of the shards it trains on.
        method: the method's name.
        first: steps that were made before; the code that made them stays in the list.
        total: steps of the whole run; one that is finished keeps what was written when it ended.

    """
    config = sha256_of(run / CONFIG)
    codes: list[dict[str, Any]] = []
    if first:
        try:
            before = read_provenance(run / PROVENANCE)
            if before["config"].get("sha256") == config:
                if first == total and "weights" in before:
                    return
                codes = before["code"]
        except InputError:  # of a run that an earlier version began
            codes = [{"from_step": 0, **json.loads((run / CONFIG).read_bytes()).get("created_by", {})}]
    here = code_here(method)
    if first < total and (not codes or {**codes[-1], "from_step": 0} != {**here, "from_step": 0}):
        codes.append({"from_step": first, **here})
    facts = {"file": CONFIG, "sha256": config}
    _write(run, {"format": FORMAT, "config": facts, "code": codes, "shards": _shards(run, index)})


def stands(run: Path) -> bool:
    """Whether the provenance has the weights that are in the run folder, which need not be written again then."""
    try:
        return bool(read_provenance(run / PROVENANCE)["weights"]["sha256"] == sha256_of(run / BACKBONE))
    except (InputError, KeyError, TypeError, OSError):
        return False


def finish(run: Path, backbone: nn.Module, total: int) -> None:
    """Add the weights, and the checkpoint that they were taken from, when a run ends."""
    found = read_provenance(run / PROVENANCE)
    if "weights" in found:
        # The file was written again from the same weights: the chain leads on from it.
        if found["weights"].get("tensors_sha256") == weights_sha256(backbone):
            _write(run, found | {"weights": {**found["weights"], "sha256": sha256_of(run / BACKBONE)}})
        return
    checkpoint = Checkpoints(run / CHECKPOINTS).path(total)
    found["checkpoint"] = {"file": f"{CHECKPOINTS}/{checkpoint.name}", "sha256": sha256_of(checkpoint)}
    weights = {"file": BACKBONE, "sha256": sha256_of(run / BACKBONE), "tensors_sha256": weights_sha256(backbone)}
    _write(run, {"format": FORMAT, "weights": {**weights, "steps": total}, **found})


def _write(run: Path, provenance: dict[str, Any]) -> None:
    data = (json.dumps(provenance, indent=1, ensure_ascii=False) + "\n").encode()
    with written_atomically(run / PROVENANCE, wanted=len(data)) as file:
        file.write(data)


def _shards(run: Path, index: ShardSet) -> dict[str, Any]:
    """Return the shards by folder, in the run's order; each with its hash, which its manifest has too."""
    folders: list[dict[str, Any]] = []
    last = None
    for location, sha256 in zip(index.shards, index.tar_sha256, strict=True):
        folder = storage.parent(location)
        if folder != last:
            last = folder
            folders.append({"folder": _place(folder, run), "manifest_sha256": _manifest_sha256(folder), "tars": {}})
        folders[-1]["tars"][storage.name_of(location)] = sha256
    return {"fingerprint": index.fingerprint, "images": len(index), "folders": folders}


def _place(folder: str, run: Path) -> str:
    """Write a local folder relative to the run, so that both can move; a remote one without what follows `?`, often a key."""
    return folder.partition("?")[0] if storage.is_remote(folder) else os.path.relpath(folder, run)


def _manifest_sha256(folder: str) -> str | None:
    """None for shards of other programs."""
    return sha256_of_bytes(storage.read(storage.join(folder, MANIFEST))) if has_manifest(folder) else None
