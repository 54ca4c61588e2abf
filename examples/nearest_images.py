"""Which photographs look alike to a trained run: each image's nearest neighbour, from `embed`'s Parquet file.

univip-stream embed runs/first photos --out features.parquet
python examples/nearest_images.py features.parquet
"""

import sys

import numpy as np
import pyarrow.parquet as pq


def main() -> None:
    """Print a line an image: it, its nearest, and their cosine."""
    table = pq.read_table(sys.argv[1])
    rows = [row for row in table.to_pylist() if row["vector"] is not None]  # images that could not be read have none
    vectors = np.array([row["vector"] for row in rows], np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    for row, nearest, cosine in zip(rows, cosines.argmax(1), cosines.max(1), strict=True):
        print(f"{row['key']} {rows[nearest]['key']} {cosine:.3f}")


if __name__ == "__main__":
    main()
