"""Export a trained backbone for torchvision, timm, Detectron2, MMDetection, or as safetensors."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from univip_stream.augment import AugmentConfig
from univip_stream.errors import InputError, UsageError
from univip_stream.export.detectron2 import EXTRA_NORM, FIRST_WORDS, as_yaml, detection_of, settings_of
from univip_stream.files import written_atomically
from univip_stream.formats.pickles import pickled
from univip_stream.networks import Backbone
from univip_stream.pretrain import PretrainConfig
from univip_stream.pretrain.load import BACKBONE, as_safetensors, backbone_facts

_RESNET = re.compile(r"resnet(18|34|50|101|152)")
"""Depths that all five formats support."""
TABLE = 2
"""The table of the paper whose configuration Detectron2 gets if none is named: Mask R-CNN R50-FPN, 1x."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The files of an export."""

    files: list[Path]
    """Paths of the weights and, if the library has one, of the configuration."""
    tensors: int
    """Number of tensors written."""
    use: str
    """A line of code that reads it."""


def export_backbone(
    backbone: Backbone, config: PretrainConfig, format: str, out: Path, *, table: int | None = None
) -> Exported:
    """Write a backbone in the form that a library reads.

    Args:

        backbone: backbone of a run.
        config: settings of its pre-training, which name the architecture.
        format: a name of `FORMATS`.
        out: file of the weights; a configuration goes beside it under the same stem, and names it by its absolute path.
        table: of detectron2, the table of the paper whose configuration is written; None is 2.

    Raises:
        UsageError: there is no such format, it lacks the architecture, or the file's suffix belongs to another format; no
            detection is in that table, or another format than detectron2 is asked for one.
        InputError: `out` is a folder, or a file that we did not write is in the configuration's place.

    """
    if format not in FORMATS:
        raise UsageError(f"there is no format {format!r}; expected one of {', '.join(FORMATS)}")
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; expected the name of a file")
    check_table(format, table)
    weights = {name: value.detach().cpu().contiguous() for name, value in backbone.trunk.state_dict().items()}
    if format == "detectron2":
        written = _detectron2(weights, config, out, table=TABLE if table is None else table)
    else:
        written = FORMATS[format](weights, config, out)
    pixels, usual = config.augment, AugmentConfig()
    if (pixels.mean, pixels.std) != (usual.mean, usual.std):
        # Not every format can record these, and its reader assumes ImageNet's.
        note = f"{written.use}  # RGB pixels of 0 to 1, less {list(pixels.mean)}, divided by {list(pixels.std)}"
        return replace(written, use=note)
    return written


def check_table(format: str, table: int | None) -> None:
    """Raise UsageError if another format than detectron2 is asked for a table, or if no detection is in it."""
    if table is None:
        return
    if format != "detectron2":
        raise UsageError(f"--table is for --format detectron2, whose configurations the tables have; found {format}")
    detection_of(table)


def detectron2_name(name: str) -> str:
    """Return Detectron2's name of a torchvision ResNet's parameter (its tools/convert-torchvision-to-d2.py).

    `layerN` becomes `res(N+1)`, a normalisation becomes part of its convolution, `downsample` becomes `shortcut`, and all else
    belongs to the stem.
    """
    layer = re.match(r"layer(\d)\.(.*)", name)
    place, rest = (f"res{int(layer[1]) + 1}", layer[2]) if layer else ("stem", name)
    rest = re.sub(r"\bbn(\d)\b", r"conv\1.norm", rest)
    rest = rest.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    return f"{place}.{rest}"


def _torchvision(weights: dict[str, Tensor], config: PretrainConfig, out: Path) -> Exported:
    _require_resnet(config, "torchvision", any_family=True)
    name = config.method.backbone
    use = f'torchvision.models.{name}().load_state_dict(torch.load("{out}"), strict=False)  # all but fc'
    return _saved(weights, out, use)


def _timm(weights: dict[str, Tensor], config: PretrainConfig, out: Path) -> Exported:
    _require_usual_stem(config, "timm")
    name = config.method.backbone.removeprefix("timm/")
    return _saved(weights, out, f'timm.create_model("{name}", num_classes=0).load_state_dict(torch.load("{out}"))')


def _safetensors(weights: dict[str, Tensor], config: PretrainConfig, out: Path) -> Exported:
    _check_suffix(out, "safetensors", only=".safetensors")
    _write(out, as_safetensors(weights, backbone_facts(config)))
    return Exported(files=[out], tensors=len(weights), use=f'safetensors.torch.load_file("{out}")')


def _detectron2(weights: dict[str, Tensor], config: PretrainConfig, out: Path, *, table: int = TABLE) -> Exported:
    depth = _require_resnet(config, "detectron2")
    _check_suffix(out, "detectron2", only=".pkl")  # its checkpointer recognises a pickle by that suffix only
    detection = detection_of(table)
    several = len(detection.schedules) > 1
    stem = out.with_suffix("")
    places = {
        schedule: _config_path(stem.with_name(f"{stem.name}-{schedule}") if several else stem, ".yaml", out)
        for schedule in detection.schedules
    }
    named = {
        detectron2_name(name): value.numpy() for name, value in weights.items() if not name.endswith("num_batches_tracked")
    }
    program = "tools/train_net.py"
    files = [out, *places.values()]
    if detection.model == "c4":
        head = _config_path(stem, ".py", out)
        files.append(head)
        program = str(head)
        first = next(iter(places.values()))
        line = f"# {detection.says.format(depth=depth)}: the program of its configuration.\n"
        _write(head, (line + EXTRA_NORM.format(name=head.name, config=first.name)).encode())
    # Detectron2 reads a pickle; this one holds only arrays and text.
    _write(out, pickled({"model": named, "__author__": "univip-stream", "matching_heuristics": True}))
    for schedule, place in places.items():
        settings = settings_of(detection, schedule, weights=str(out.absolute()), depth=depth, **_grey_levels(config))
        title = f"# {detection.says.format(depth=depth)}, {schedule}, from this backbone; nothing frozen. UniVIP's Table {table}.\n"
        _write(place, (title + as_yaml(settings)).encode())
    uses = [f"python {program} --config-file {place}" for place in places.values()]
    return Exported(files=files, tensors=len(named), use="\n     ".join(uses) if several else uses[0])


def _mmdet(weights: dict[str, Tensor], config: PretrainConfig, out: Path) -> Exported:
    depth = _require_resnet(config, "mmdet")
    _check_suffix(out, "mmdet")
    settings = _config_path(out, ".py")
    channels = (64, 128, 256, 512) if depth < 50 else (256, 512, 1024, 2048)
    buffer = io.BytesIO()
    torch.save({"state_dict": weights}, buffer)
    _write(out, buffer.getvalue())
    place = ascii(str(out.absolute()))
    _write(settings, MMDET.format(weights=place, depth=depth, channels=list(channels), **_grey_levels(config)).encode())
    return Exported(files=[out, settings], tensors=len(weights), use=f"tools/train.py {settings}")


FORMATS: dict[str, Callable[[dict[str, Tensor], PretrainConfig, Path], Exported]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "detectron2": _detectron2,
    "mmdet": _mmdet,
    "safetensors": _safetensors,
}
"""Writers by the name of the library."""

MMDET = """# Mask R-CNN R{depth}-FPN, 1x, from this backbone; nothing frozen. For MMDetection 3.
_base_ = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    data_preprocessor=dict(mean={mean}, std={std}, bgr_to_rgb=True),
    backbone=dict(
        depth={depth}, frozen_stages=-1, norm_cfg=norm_cfg, norm_eval=False, style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint={weights}),
    ),
    neck=dict(in_channels={channels}, norm_cfg=norm_cfg),
    roi_head=dict(
        bbox_head=dict(type="Shared4Conv1FCBBoxHead", conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
"""


_OTHERS = (".pkl", ".safetensors", ".yaml", ".yml", ".py", ".json")
"""Suffixes that a file of torch.save must not have: a library would read it as something else."""
_OURS = tuple(words.encode() for words in FIRST_WORDS)
"""Beginnings of every configuration that we write."""


def _check_suffix(out: Path, format: str, only: str | None = None) -> None:
    """Check that the suffix of `out` fits its format.

    Raises:
        UsageError: it does not.

    """
    suffix = out.suffix.lower()
    if only is not None and out.suffix != only:
        raise UsageError(
            f"--out {out}: {format} reads weights from files that end in {only}; expected {out.with_suffix(only)}"
        )
    if only is None and suffix in _OTHERS:
        raise UsageError(
            f"--out {out}: {format} reads a file of torch.save, and {suffix} says another kind; expected another suffix, such as "
            f"{out.with_suffix('.pth')}"
        )


def _config_path(out: Path, suffix: str, weights: Path | None = None) -> Path:
    """Return the path of the configuration with the stem of `out`, beside the weights (`out`, if they are not named).

    Raises:
        InputError: a folder or a file that we did not write is there, or the path is not valid UTF-8.

    """
    # A stem without suffix may have a dot in it.
    path, out = (out.with_suffix(suffix), out) if weights is None else (out.with_name(out.name + suffix), weights)
    if path.is_dir():
        raise InputError(f"{path} is a folder, and the configuration beside {out} would have its name; choose another --out")
    if path.exists() and not _is_our_config(path):
        raise InputError(
            f"{path} exists and is not ours, and the configuration beside {out} would replace it; choose another --out"
        )
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"--out {out!r} is not text, and the configuration names it; choose a path of valid UTF-8"
        ) from error
    return path


def _is_our_config(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(max(map(len, _OURS))).startswith(_OURS)


def _grey_levels(config: PretrainConfig) -> dict[str, list[float]]:
    """Return mean and standard deviation of the training's pixels, in grey levels of 0 to 255."""
    return {name: [round(255 * value, 4) for value in getattr(config.augment, name)] for name in ("mean", "std")}


def _saved(weights: dict[str, Tensor], out: Path, use: str) -> Exported:
    _check_suffix(out, "torch.load")
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    _write(out, buffer.getvalue())
    return Exported(files=[out], tensors=len(weights), use=use)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(path) as file:
        file.write(data)


def _require_usual_stem(config: PretrainConfig, format: str) -> None:
    if config.method.small_stem:
        raise UsageError(
            f"this run's {config.method.backbone} has the small stem (3 x 3, no pooling), which {format}'s has not; expected a run "
            f"without method.small_stem, or --format safetensors ({BACKBONE} is that already)"
        )


def _require_resnet(config: PretrainConfig, format: str, *, any_family: bool = False) -> int:
    """Return the depth of a torchvision ResNet; 0 for ResNeXt and Wide ResNet if `any_family`.

    Raises:
        UsageError: the backbone is not one, or has the small stem.

    """
    _require_usual_stem(config, format)
    name = config.method.backbone
    found = _RESNET.fullmatch(name)
    if found:
        return int(found[1])
    if any_family and re.match(r"(resnext|wide_resnet)", name):
        return 0
    raise UsageError(
        f"this run's backbone is {name}; {format} takes a ResNet of torchvision's such as resnet50. --format timm has all"
    )
