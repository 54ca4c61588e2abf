"""Sources of images: every kind of source gives named images with labels, in a fixed order."""

from univip_stream.sources.listing import Boxes, Listing, SourceImage, read_bytes
from univip_stream.sources.open import list_sources

__all__ = ["Boxes", "Listing", "SourceImage", "list_sources", "read_bytes"]
