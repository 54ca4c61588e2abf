"""Export a run as a folder of the Hugging Face Hub: timm and transformers load it, from the Hub or from a disk."""

import json
from pathlib import Path
from typing import Any

import timm

from univip_stream.errors import InputError, UsageError
from univip_stream.export.backbone import Exported
from univip_stream.export.card import export_card
from univip_stream.files import folder_written_atomically
from univip_stream.networks import Backbone
from univip_stream.pretrain import PretrainConfig
from univip_stream.pretrain.load import CONFIG

WEIGHTS = "model.safetensors"
CARD = "README.md"
CROP = 224 / 256
"""Share of the short side that evaluation crops, here and in timm's `crop_pct`."""


def export_huggingface(backbone: Backbone, config: PretrainConfig, run: Path, out: Path) -> Exported:
    """Write weights, timm's configuration and the model card into a folder.

    Args:
        backbone: backbone of the run.
        config: settings of its pre-training.
        run: the run folder, which the card is about.
        out: a folder that does not exist, or is empty.

    Raises:
        UsageError: timm has no such network, or `run` is no run folder.
        InputError: `out` is a file, or holds files.

    """
    if not (run / CONFIG).is_file():
        raise UsageError(f"{run} is no run folder, which --format huggingface needs for the model card; expected one")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"--out {out} exists and is no empty folder; expected a new one, for --format huggingface")
    from safetensors.torch import save_file

    weights = {name: value.detach().cpu().contiguous() for name, value in backbone.trunk.state_dict().items()}
    facts = _timms(backbone, config)
    out.parent.mkdir(parents=True, exist_ok=True)
    with folder_written_atomically(out) as folder:
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        export_card(run, folder / CARD, hub=True)
    files = [out / name for name in (WEIGHTS, "config.json", CARD)]
    return Exported(files=files, tensors=len(weights), use=f'timm.create_model("local-dir:{out}", pretrained=True)')


def _timms(backbone: Backbone, config: PretrainConfig) -> dict[str, Any]:
    """timm's `config.json` of this backbone; what it builds takes these weights, each by name and shape."""
    name = config.method.backbone.removeprefix("timm/")
    if config.method.small_stem:
        raise UsageError(
            f"this run's {name} has the small stem (3 x 3, no pooling), which timm's has not; expected a run without "
            "method.small_stem, or --format safetensors"
        )
    if not timm.is_model(name):
        raise UsageError(f"timm has no network {name}, and --format huggingface is timm's; --format torchvision has it")
    # What the run was built with: a vision transformer takes images of any side, from positions of its own.
    arguments: dict[str, Any] = {"dynamic_img_size": True}
    try:
        network: Any = timm.create_model(name, num_classes=0, **arguments)
    except TypeError:
        arguments = {}
        network = timm.create_model(name, num_classes=0)
    if hasattr(getattr(network, "patch_embed", None), "img_size"):
        arguments["img_size"] = list(network.patch_embed.img_size)
    try:
        network.load_state_dict(backbone.trunk.state_dict())
    except RuntimeError as error:
        raise UsageError(
            f"timm's {name} is another network than this run's (torchvision's); --format torchvision has it"
        ) from error
    pooling = getattr(network, "global_pool", "avg")
    own, side = network.pretrained_cfg, config.views.scene_size
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": backbone.width,
        "global_pool": pooling if isinstance(pooling, str) else "avg",
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {
            "tag": "univip_stream",
            "custom_load": False,
            "input_size": [3, side, side],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": CROP,
            "crop_mode": "center",
            "mean": list(config.augment.mean),
            "std": list(config.augment.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": own.get("first_conv"),
            "classifier": own.get("classifier"),
        },
    }
