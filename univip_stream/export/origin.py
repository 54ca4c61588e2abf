"""The provenance of a run, carried along with what is exported of it."""

import json
from pathlib import Path
from typing import Any

from univip_stream.errors import InputError
from univip_stream.files import sha256_of, written_atomically
from univip_stream.networks import Backbone
from univip_stream.pretrain.load import CONFIG
from univip_stream.pretrain.provenance import PROVENANCE, digest_of, read_provenance, weights_sha256

SUFFIX = ".provenance.json"
"""Comes after the name of the exported file."""


def carry_along(
    source: Path, backbone: Backbone, files: list[Path], format: str, out: Path
) -> tuple[Path | None, str | None]:
    """Write the provenance of exported weights beside them.

    Args:
        source: what was exported: a run folder, one of its checkpoints, or its backbone.safetensors.
        backbone: with its weights.
        files: that were written, all in one folder or below it.
        format: in which.
        out: the file or folder of the weights; of a folder the provenance lies inside.

    Returns:
        The file, and why there is none.

    """
    tensors = weights_sha256(backbone)
    found, why_not = _of_run(source, tensors)
    path = out / PROVENANCE if out.is_dir() else out.with_name(out.name + SUFFIX)
    if found is None:
        path.unlink(missing_ok=True)  # of an earlier export, whose weights are gone
        return None, why_not
    said = {
        "exported": {
            "format": format,
            "tensors_sha256": tensors,
            "files": {file.relative_to(path.parent).as_posix(): sha256_of(file) for file in files},
        },
        "provenance_sha256": digest_of(found),
        "provenance": found,
    }
    with written_atomically(path) as file:
        file.write((json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode())
    return path, None


def _of_run(source: Path, tensors: str) -> tuple[dict[str, Any] | None, str | None]:
    """(provenance of the run that holds the source, why there is none)."""
    folders = [source] if source.is_dir() else [source.parent, source.parent.parent]
    run = next((folder for folder in folders if (folder / CONFIG).is_file()), None)
    if run is None:
        return None, f"{source} lies in no run folder, so nothing says where its weights come from"
    try:
        found = read_provenance(run / PROVENANCE)
    except InputError as error:
        return None, str(error)
    weights = found.get("weights")
    if weights is None and source.is_dir():
        return found, None
    if weights is None or weights.get("tensors_sha256") != tensors:
        return None, f"these are not the weights that {run} ended with, which its {PROVENANCE} is of"
    return found, None
