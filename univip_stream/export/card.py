"""Export a model card: facts about a run in a text that its owner completes."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from univip_stream import __version__
from univip_stream.errors import InputError, why
from univip_stream.files import written_atomically
from univip_stream.pretrain import load_backbone
from univip_stream.pretrain.load import CONFIG, told_now
from univip_stream.pretrain.recipes import RECIPES
from univip_stream.pretrain.results import collect
from univip_stream.pretrain.settings import flat, flat_dict

MARK = "CHANGE:"
"""Marker of places that a person must fill in."""
_ALWAYS_SHOWN = {"recipe", "method.name", "method.backbone", "stream.batch_size", "seed", "stream.seed", "steps", "epochs"}
"""Settings that the card always shows."""


def export_card(run: Path, out: Path, *, hub: bool = False) -> int:
    """Write the card of a run folder; return the number of places that a person must fill in.

    Args:
        run: the run folder.
        out: the Markdown file.
        hub: for a folder that timm and transformers load, and the Hub shows: it says so, and how.

    Raises:
        InputError: there is no run, or it has no checkpoint.

    """
    [row] = collect([run])
    try:
        facts = json.loads((run / CONFIG).read_bytes())
        shards, settings = facts["shards"], flat_dict(told_now(facts["config"]))
        values = {
            "run": row,
            "version": facts.get("created_by", {}).get("univip-stream", __version__),
            "images": shards["images"],
            "shards": len(shards["paths"]),
            "fingerprint": shards["fingerprint"][:16],
            "settings": settings,
            "changed": _changed(settings),
            "hub": hub,
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{run} cannot be read as a run ({why(error)})") from error
    backbone, _ = load_backbone(run)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters["thousands"] = lambda number: f"{number:,}"
    source = resources.files("univip_stream.export") / "templates" / "model_card.md.jinja"
    text = environment.from_string(source.read_text(encoding="utf-8")).render(**values, width=backbone.width)
    with written_atomically(out) as file:
        file.write((text.rstrip() + "\n").encode())
    return text.count(MARK)


def _changed(settings: dict[str, Any]) -> dict[str, str]:
    """Return the settings in which a run differs from its recipe."""
    recipe = RECIPES.get(str(settings.get("recipe")))
    known = flat(recipe()) if recipe is not None else {}
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in settings.items()
        if known and key not in _ALWAYS_SHOWN and known.get(key, ...) != value
    }
