"""Check the chain from a run's weights to its images, and name the link that is broken."""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from univip_stream import storage
from univip_stream.checkpoint import load_checkpoint
from univip_stream.errors import InputError, counted, in_words, why
from univip_stream.files import sha256_of, sha256_of_bytes
from univip_stream.pretrain.config import HARMLESS
from univip_stream.pretrain.load import BACKBONE, CONFIG, load_backbone
from univip_stream.pretrain.provenance import PROVENANCE, code_here, digest_of, read_provenance, weights_sha256
from univip_stream.pretrain.results import EVALUATIONS
from univip_stream.pretrain.settings import flat_dict
from univip_stream.shards.entry import tar_names
from univip_stream.shards.manifest import MANIFEST, has_manifest, read_manifest
from univip_stream.shards.verify import CheckTask, Finding, check_shard, check_tasks


@dataclass(frozen=True, kw_only=True)
class StrangeTask:
    """A shard of another program, of which its hash alone is known."""

    folder: str
    """Where it lies."""
    name: str
    """Of the tar."""
    sha256: str
    """That it had when the run read it."""


Task = CheckTask | StrangeTask


@dataclass(kw_only=True)
class Chain:
    """What was found along a chain so far, and the shards that are still to be read."""

    findings: list[Finding] = field(default_factory=list)
    """Broken links; `shard` is the file, or the folder."""
    notes: list[str] = field(default_factory=list)
    """What a person should know, and what breaks nothing."""
    tasks: list[Task] = field(default_factory=list)
    """Shards to read back with `check_link`, each once."""
    images: int = 0
    """That the chain leads to."""
    digest: str = ""
    """`digest_of` the provenance."""

    def broken(self, where: str | Path, problem: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(shard=str(where), problem=problem))


def verify_run(
    run: Path, *, shards: str | None = None, progress: Callable[[int], None] = lambda images: None
) -> list[Finding]:
    """Check a run from its weights to every image; [] when the chain holds.

    Args:
        run: a run folder.
        shards: folder its shards lie in now; None is where they were.
        progress: called after each shard with the number of its images.

    Raises:
        InputError: there is no run, or its provenance cannot be read.

    """
    chain = follow(run, shards=shards)
    return chain.findings + [finding for task in chain.tasks for finding in check_link(task, progress)]


def follow_any(path: Path, *, shards: str | None = None) -> Chain:
    """`follow` of a run folder, `follow_exported` of what was exported: a file, or the folder that has it.

    Raises:
        InputError: as those.

    """
    if not path.is_dir():
        return follow_exported(path, shards=shards)
    try:
        exported = "exported" in json.loads((path / PROVENANCE).read_bytes())
    except (OSError, ValueError, TypeError):
        exported = False
    return follow_exported(path / PROVENANCE, shards=shards) if exported else follow(path, shards=shards)


def follow(run: Path, *, shards: str | None = None) -> Chain:
    """Check the links in the run folder and those to the manifests; return the checks of the shards as tasks.

    Raises:
        InputError: there is no run, or its provenance cannot be read.

    """
    if not (run / CONFIG).is_file():
        raise InputError(f"{run} is no run folder: it holds no {CONFIG}")
    provenance = read_provenance(run / PROVENANCE)
    chain = Chain(digest=digest_of(provenance))
    try:
        facts = json.loads((run / CONFIG).read_bytes())
        _settings(chain, run, provenance, facts)
        _weights(chain, run, provenance, facts)
        _code(chain, provenance, facts)
        _shards(chain, run, provenance["shards"], shards)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        chain.broken(PROVENANCE, f"cannot be followed ({why(error)})")
    return chain


def follow_exported(path: Path, *, shards: str | None = None) -> Chain:
    """Check the links of a `.provenance.json` beside an exported file: to that file and, by its run's provenance, to the shards.

    Raises:
        InputError: it cannot be read as such.

    """
    try:
        said = json.loads(path.read_bytes())
        provenance, exported = said["provenance"], said["exported"]
        chain = Chain(digest=digest_of(provenance))
        if said["provenance_sha256"] != chain.digest:
            chain.broken(path.name, "the provenance of its run was changed: it has another SHA-256 than is written beside it")
        weights = provenance.get("weights")
        if weights is None:
            chain.notes.append("the run was not finished when its weights were exported")
        elif weights["tensors_sha256"] != exported["tensors_sha256"]:
            chain.broken(path.name, "the weights that were exported are not those that its run ended with")
        for name, sha256 in exported["files"].items():
            _file(chain, path.parent, {"file": name, "sha256": sha256})
        if shards is None:
            chain.notes.append("its images were not looked at; --shards names the folder that they lie in")
        else:
            _shards(chain, path.parent, provenance["shards"], shards)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"{path} cannot be read as the provenance of an exported backbone ({why(error)})") from error
    return chain


def check_link(task: Task, progress: Callable[[int], None] = lambda images: None) -> list[Finding]:
    """Read one shard back: every image of ours, the bytes of another program's."""
    if isinstance(task, CheckTask):
        return check_shard(task, progress)
    location = storage.join(task.folder, task.name)
    try:
        with tempfile.TemporaryDirectory() as place:
            path = Path(location)
            if storage.is_remote(location):
                path = Path(place) / "shard.tar"
                storage.copy_in(location, path)
            same = sha256_of(path) == task.sha256
    except OSError as error:
        return [Finding(shard=task.name, problem=in_words(error))]
    return (
        [] if same else [Finding(shard=task.name, problem="has another SHA-256 than when the run read it: its bytes changed")]
    )


def _file(chain: Chain, folder: Path, link: Mapping[str, Any]) -> bool:
    """Check that a file is there and has the recorded hash."""
    path = folder / link["file"]
    if not path.is_file():
        chain.broken(link["file"], "is missing")
        return False
    if sha256_of(path) != link["sha256"]:
        chain.broken(link["file"], f"has another SHA-256 than {PROVENANCE} says: its bytes changed")
        return False
    return True


def _settings(chain: Chain, run: Path, provenance: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    _file(chain, run, provenance["config"])
    there = provenance["shards"]["fingerprint"]
    if facts["shards"]["fingerprint"] != there:
        chain.broken(CONFIG, f"names other shards than {PROVENANCE} (fingerprints differ)")
    tars = [sha256 for folder in provenance["shards"]["folders"] for sha256 in folder["tars"].values()]
    if sha256_of_bytes("\n".join(tars).encode()) != there:
        chain.broken(PROVENANCE, "its shards' hashes do not make its fingerprint")


def _weights(chain: Chain, run: Path, provenance: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Check the links from the weights' file to its checkpoint, and to the settings that this was trained with."""
    if "weights" not in provenance:
        chain.notes.append("the run is not finished: its weights are not in the chain yet")
        if (run / BACKBONE).exists():
            chain.broken(BACKBONE, f"is there, and {PROVENANCE} does not name it")
        return
    weights = provenance["weights"]
    if _file(chain, run, weights):
        try:
            own = {f"trunk.{name}": value for name, value in load_file(run / weights["file"]).items()}
            if weights_sha256(own) != weights["tensors_sha256"]:
                chain.broken(weights["file"], f"holds other tensors than {PROVENANCE} says")
        except (SafetensorError, OSError) as error:
            chain.broken(weights["file"], f"cannot be read as safetensors: {why(error)}")
    if _file(chain, run, provenance["checkpoint"]):
        _checkpoint(chain, run / provenance["checkpoint"]["file"], weights["tensors_sha256"], facts)
    for path in sorted((run / EVALUATIONS).glob("*.json")):
        try:
            judged = json.loads(path.read_bytes()).get("weights_sha256", weights["tensors_sha256"])
        except (ValueError, AttributeError):  # no result of ours
            continue
        if judged != weights["tensors_sha256"]:
            chain.notes.append(f"{EVALUATIONS}/{path.name} judged other weights than the run ended with")


def _checkpoint(chain: Chain, path: Path, tensors_sha256: str, facts: Mapping[str, Any]) -> None:
    try:
        theirs, ours = flat_dict(json.loads(load_checkpoint(path)["config"])), flat_dict(facts["config"])
        backbone, _ = load_backbone(path)
    except (InputError, KeyError, ValueError, TypeError, AttributeError) as error:
        chain.broken(path.name, f"cannot be read as the run's checkpoint: {why(error)}")
        return
    if weights_sha256(backbone) != tensors_sha256:
        chain.broken(path.name, f"its backbone is not the one in {BACKBONE}")
    differ = [name for name in ours.keys() | theirs.keys() if name not in HARMLESS and ours.get(name) != theirs.get(name)]
    if differ:
        chain.broken(path.name, f"was trained with other settings than {CONFIG} says: {', '.join(sorted(differ)[:3])}")


def _code(chain: Chain, provenance: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Code is named and not kept: what differs here is said, and breaks nothing."""
    codes = provenance["code"]
    if len(codes) > 1:
        steps = ", ".join(str(code["from_step"]) for code in codes[1:])
        chain.notes.append(f"the code, or what it computes with, changed on the way (from step {steps})")
    last = codes[-1] if codes else {}
    here = code_here()
    if last.get("files_sha256") != here["files_sha256"]:
        version = last.get("univip-stream", "unknown")
        chain.notes.append(
            f"trained by univip-stream {version} with files of SHA-256 {str(last.get('files_sha256'))[:16]}; those here are "
            f"{here['univip-stream']}, {here['files_sha256'][:16]}"
        )
    if facts["config"].get("init_from") is not None:
        chain.notes.append(
            f"it began with weights from {facts['config']['init_from']} (SHA-256 {str(facts.get('first_weights'))[:16]}): another "
            "chain, which is not followed"
        )


def _shards(chain: Chain, run: Path, said: Mapping[str, Any], elsewhere: str | None) -> None:
    chain.images = said["images"]
    for folder in said["folders"]:
        there = elsewhere or (folder["folder"] if storage.is_remote(folder["folder"]) else str(run / folder["folder"]))
        if folder["manifest_sha256"] is None:
            chain.tasks += [StrangeTask(folder=there, name=name, sha256=sha256) for name, sha256 in folder["tars"].items()]
        else:
            _of_manifest(chain, there, folder)


def _of_manifest(chain: Chain, there: str, folder: Mapping[str, Any]) -> None:
    """Check the shards of one folder: its manifest must name each with the hash that the run read."""
    if not has_manifest(there):
        chain.broken(there, f"has no {MANIFEST}; --shards names the folder that the run's shards lie in now")
        return
    manifest = read_manifest(there)
    of = {entry.name: entry.sha256 for entry in manifest.shards}
    held: set[str] = set()
    for name, sha256 in folder["tars"].items():
        if of.get(name) == sha256:
            held.add(name)
        else:
            what = "does not name it" if name not in of else "gives it another SHA-256 than when the run read it"
            chain.broken(storage.join(there, name), f"its {MANIFEST} {what}")
    if sha256_of_bytes(storage.read(storage.join(there, MANIFEST))) != folder["manifest_sha256"]:
        more = len(tar_names(manifest.shards)) - len(folder["tars"])
        chain.notes.append(
            f"the {MANIFEST} of {there} is another than when the run began"
            + (f" ({counted(more, 'shard')} came to it)" if more > 0 and held == set(folder["tars"]) else "")
        )
    chain.tasks += [task for task in check_tasks(there, manifest) if task.name in held]
