"""AlignDet (liming-ai/AlignDet): COCO's JSON under a choice of its own."""

from univip_stream.formats.base import Choice
from univip_stream.formats.coco import COCO


class AlignDet(COCO):
    """COCO's JSON whose one category is called selective_search."""

    name = "aligndet"
    says = "AlignDet: COCO JSON, ratio 3, size up to 0.8, IoU 0.5"
    framed_at_will = False
    # The name of AlignDet's file says it: ratio 3, size 0 to 0.8, IoU 0.5; its author says that the rest is SoCo's.
    choice = Choice(min_scale=32, max_aspect=3, max_size=0.8, max_iou=0.5)
    category = "selective_search"
