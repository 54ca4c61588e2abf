"""AlignDet (liming-ai/AlignDet): COCO's JSON with a filter of its own."""

from univip_stream.formats.base import Choice
from univip_stream.formats.coco import COCOFormat


class AlignDetFormat(COCOFormat):
    """COCO's JSON with one category, called selective_search."""

    name = "aligndet"
    summary = "AlignDet: COCO JSON, ratio 3, size up to 0.8, IoU 0.5"
    frame_selectable = False
    # From the name of AlignDet's file: ratio 3, size 0 to 0.8, IoU 0.5; according to its author the rest is as in SoCo.
    choice = Choice(min_scale=32, max_aspect=3, max_size=0.8, max_iou=0.5)
    category = "selective_search"
