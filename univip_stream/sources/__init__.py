"""Where images come from: every kind of source gives the same thing, a sorted list of named images with labels."""

from univip_stream.sources.folder import Listing, SourceImage, list_sources, read_bytes

__all__ = ["Listing", "SourceImage", "list_sources", "read_bytes"]
