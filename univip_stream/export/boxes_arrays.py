"""Boxes for repositories that read numpy arrays: DETReg, SiameseDETR, Detectron2."""

import io
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from univip_stream.errors import InputError
from univip_stream.export.pickled import PROTOCOL, pickled
from univip_stream.files import folder_written_atomically, written_atomically

if TYPE_CHECKING:
    from univip_stream.export.boxes import Job


def write_detreg(job: "Job") -> None:
    """`{stem}.npy`: float32 N x 4, x1, y1, x2, y2."""
    _write_folder(job, _save_detreg)


def write_siamesedetr(job: "Job") -> None:
    """`{path up to its first dot}.npy`: a pickled dictionary, `box` int64 N x 4 x1, y1, x2, y2, `score` float64 N x 1.

    Mining has no scores: they fall from 1 in the order of the boxes. Only `box` is read.
    """
    _write_folder(job, _save_siamesedetr)


def _save_detreg(file: BinaryIO, corners: np.ndarray) -> None:
    array = io.BytesIO()  # to a real file numpy writes past Python, and of a full disk it says only two numbers
    np.save(array, corners.astype(np.float32), allow_pickle=False)
    file.write(array.getbuffer())


def _save_siamesedetr(file: BinaryIO, corners: np.ndarray) -> None:
    count = len(corners)
    scores = (np.arange(count, 0, -1) / max(count, 1)).reshape(-1, 1)
    whole = np.empty((), object)
    whole[()] = {"box": corners, "score": scores}
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    file.write(pickled(whole))


def _write_folder(job: "Job", save: Any) -> None:
    for fact in job.facts():
        if name := _escaping(job.named(fact)):
            raise InputError(f"{fact.source}: its name {name!r} leads out of --out; rename it and mine again")
    with folder_written_atomically(job.out) as folder:
        made: set[Path] = set()
        for fact, candidates in job.rows():
            boxes = job.chosen(fact, candidates)
            path = folder / f"{job.named(fact)}.npy"
            if path.parent not in made:
                path.parent.mkdir(parents=True, exist_ok=True)
                made.add(path.parent)
            with path.open("xb") as file:
                save(file, _corners(boxes))
            job.written.count(boxes)
    job.written.files = [str(job.out)]


def write_detectron2(job: "Job") -> None:
    """A pickle of ids, boxes (float32 N x 4 x1, y1, x2, y2), objectness_logits (float32 N) and bbox_mode (0, XYXY_ABS).

    Detectron2 sorts by the logits, which here say no more than the order: 0, -1, -2, ... It is written array after array.
    """
    facts = job.facts()
    with written_atomically(job.out) as file:
        file.write(pickle.PROTO + bytes([PROTOCOL]) + pickle.EMPTY_DICT + pickle.MARK)
        file.write(pickled("ids", piece=True) + pickled([_id(job.named(fact)) for fact in facts], piece=True))
        file.write(pickled("boxes", piece=True) + pickle.EMPTY_LIST)
        counts = []
        for fact, candidates in job.rows():
            boxes = job.chosen(fact, candidates)
            file.write(pickled(_corners(boxes).astype(np.float32), piece=True) + pickle.APPEND)
            counts.append(len(boxes))
            job.written.count(boxes)
        file.write(pickled("objectness_logits", piece=True) + pickle.EMPTY_LIST)
        for count in counts:
            file.write(pickled(-np.arange(count, dtype=np.float32), piece=True) + pickle.APPEND)
        file.write(pickled("bbox_mode", piece=True) + pickled(0, piece=True) + pickle.SETITEMS + pickle.STOP)
    job.written.files = [str(job.out)]


def _corners(boxes: np.ndarray) -> np.ndarray:
    """int64 N x 4: x1, y1, x2, y2 with the latter just outside."""
    return np.ascontiguousarray(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))


def _id(name: str) -> int | str:
    return int(name) if name.isdecimal() and str(int(name)) == name else name


def _escaping(name: str) -> str | None:
    return name if name.startswith("/") or ".." in name.split("/") else None
