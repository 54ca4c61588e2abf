"""Render a report as one self-contained HTML page.

Everything that comes from the shards reaches the page in two ways: through jinja2, which escapes it, or as JSON in a data
block, in which `<`, `>` and `&` are written as escapes; the script puts it into the page as text. The page's policy allows no
script but its own (by its hash), and no request at all.
"""

import base64
import hashlib
import json
from importlib import resources
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup

from univip_stream import __version__
from univip_stream.report.build import Picked, Report
from univip_stream.report.charts import histogram, pretty, share
from univip_stream.report.crops import Crop
from univip_stream.report.numbers import WINDOW
from univip_stream.storage import name_of

_QUALITY = 82
"""Quality of the JPEG pictures in the page."""
_STATUS_NAMES = {
    "ok": "with boxes", "no_boxes": "without boxes", "unreadable": "unreadable", "too_small": "too small",
    "too_large": "too large", "opted_out": "opted out",
}  # fmt: skip


def render(report: Report) -> bytes:
    """Return the page as UTF-8. The same shards and options give the same bytes."""
    files = resources.files("univip_stream.report") / "page"
    style, script = ((files / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(share=share, pretty=pretty)
    template = environment.from_string((files / "page.html.jinja").read_text(encoding="utf-8"))
    page = template.render(
        report=report,
        version=__version__,
        name=_name(report),
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        data=Markup(json_for_script(_data(report))),
        tiles=_tiles(report),
        statuses=[(status, _STATUS_NAMES.get(status, status), count) for status, count in report.outcomes.by_status.items()],
        charts=[(found, histogram(found)) for found in report.distributions],
        window=WINDOW,
    )
    return page.encode("utf-8", "backslashreplace")


def json_for_script(value: Any) -> str:
    """Return JSON that is safe in an HTML `<script>` block: nothing in it can end the block or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def jpeg(pixels: np.ndarray) -> str:
    """Return an RGB picture as a data: URL."""
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _name(report: Report) -> str:
    shards = report.index.shards
    return report.specs[0] if len(report.specs) == 1 else f"{name_of(shards[0])} to {name_of(shards[-1])}"


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """Return the tiles: (number, what it counts, a remark)."""
    index, outcomes = report.index, report.outcomes
    failed = outcomes.images - len(index)
    empty = outcomes.by_status.get("no_boxes", 0)
    per_image = report.distributions[0]
    drawn = "all images" if report.drawn == len(index) else f"{report.drawn:,} images at random"
    size = sum(index.tar_bytes)
    unit, scale = ("GB", 1e9) if size >= 1e9 else ("MB", 1e6)
    return [
        (f"{len(index):,}", "samples", f"in {len(index.shards):,} shards, {pretty(size / scale, unit)}"),
        (
            f"{report.boxes:,}",
            "boxes",
            f"{pretty(per_image.median)} an image (median), at most {pretty(per_image.high)}",
        ),
        (f"{empty:,}", "without boxes", f"{share(empty, len(index))} of the samples"),
        (f"{failed:,}", "failures", f"{share(failed, outcomes.images)} of {outcomes.images:,} images"),
        (
            share(report.filled, report.drawn * report.views.instances),
            "filled",
            f"of the instances are random boxes, {drawn}",
        ),
    ]


def _data(report: Report) -> dict[str, Any]:
    views = report.views
    items = [_item(report, picked) for picked in report.picked]
    failures = [
        {"key": f.key, "source": f.source, "label": None, "shard": f.shard, "problem": f.reason,
         "marks": [["failure", _STATUS_NAMES.get(f.status, f.status)]]}
        for f in report.outcomes.failures
    ]  # fmt: skip
    broken = sum(picked.crops is None for picked in report.picked)
    return {
        "items": items[:broken] + failures + items[broken:],
        "seed": report.seed,
        "tries": views.tries,
        "scene": views.scene_size,
        "instance": views.instance_size,
        "failed": report.outcomes.images - len(report.index),
    }


def _item(report: Report, picked: Picked) -> dict[str, Any]:
    index, sample = report.index, picked.sample
    item: dict[str, Any] = {
        "key": index.text("key", sample),
        "source": index.text("source", sample),
        "label": index.text("label", sample),
        "shard": name_of(index.shards[index.shard_of(sample)]),
        "width": index.size_of(sample)[0],
        "height": index.size_of(sample)[1],
        "boxes": index.boxes_of(sample).tolist(),
        "note": report.outcomes.reasons.get(sample),
        "converted": report.outcomes.converted.get(sample),
        "marks": [[mark.kind, mark.text] for mark in picked.marks],
        "problem": picked.problem,
    }
    crops = picked.crops
    if crops is not None:
        item |= {
            "image": jpeg(crops.image),
            "scenes": crops.views.scenes.tolist(),
            "overlap": crops.views.overlap.tolist(),
            "instances": crops.views.instances.tolist(),
            "filled": crops.views.filled,
            "tries": crops.views.tries,
            "ranks": crops.ranks,
            "cuts": {"scenes": list(map(_crop, crops.scenes)), "instances": list(map(_crop, crops.instances))},
        }
    return item


def _crop(crop: Crop) -> dict[str, Any]:
    return {"before": jpeg(crop.before), "after": jpeg(crop.after), "flipped": crop.flipped}
