"""Types of the shards' fields for Hugging Face `datasets`, which otherwise guesses them from the first five samples."""

from typing import TYPE_CHECKING

from univip_stream.errors import InputError

if TYPE_CHECKING:
    from datasets import Features

IMAGES = ("jpg", "png", "webp")
"""Suffixes of image members. A sample has one of them; the others are None."""
FIELDS = {
    "key": "string", "source": "string", "width": "int64", "height": "int64", "label": "string", "image_id": "int64",
    "boxes": "boxes", "proposals": "string", "converted": "string", "sha256": "string",
}  # fmt: skip
"""Fields of the JSON members and their types; `boxes` are lists of four int64."""


def huggingface_features() -> "Features":
    """Return the features for `load_dataset("webdataset", data_files="shards/*.tar", features=huggingface_features())`.

    Without them, `datasets` takes the types of the first five samples for those of all. If `converted`, `label` or `image_id`
    is null in those and a text or number later, or if their `boxes` are empty, it stops; and a PNG after five JPEGs is
    dropped silently. With them a sample has `jpg`, `png` and `webp` (one is an image, the others are None), `json` with all
    fields (None where a sample lacks one), `__key__` and `__url__`.

    Returns:
        A `datasets.Features`.

    Raises:
        InputError: `datasets` is not installed.

    """
    try:
        from datasets import Features, Image, Value
    except ImportError as error:
        raise InputError("huggingface_features needs Hugging Face datasets; `pip install datasets` brings it") from error
    types = {name: [[Value("int64")]] if kind == "boxes" else Value(kind) for name, kind in FIELDS.items()}
    return Features(
        {**{suffix: Image() for suffix in IMAGES}, "json": types, "__key__": Value("string"), "__url__": Value("string")}
    )
