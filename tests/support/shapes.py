"""A tiny data set in COCO's layout: coloured rectangles, ellipses and triangles on noise.

    python tests/support/shapes.py DIR [TRAIN] [VAL]

The same numbers give the same pictures everywhere.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE = 96  # pixels
CATEGORIES = {3: "rectangle", 7: "ellipse", 8: "triangle"}  # ids with gaps, as COCO's
COLOURS = {3: (220, 40, 40), 7: (40, 200, 60), 8: (60, 80, 230)}


def draw(pen: ImageDraw.ImageDraw, category: int, corners: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = corners
    inside = (left, top, right - 1, bottom - 1)  # Pillow counts the last pixel in
    if category == 3:
        pen.rectangle(inside, fill=COLOURS[3])
    elif category == 7:
        pen.ellipse(inside, fill=COLOURS[7])
    else:
        tip = ((left + right) // 2, top)
        pen.polygon([tip, (right - 1, bottom - 1), (left, bottom - 1)], fill=COLOURS[8])


def make_shapes(root: Path, train: int = 24, val: int = 8, seed: int = 0) -> Path:
    """Write both splits with 1 to 3 objects an image; every eighth training image has none."""
    rng = np.random.default_rng(seed)
    number = 0
    for split, count in (("train2017", train), ("val2017", val)):
        (root / split).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for i in range(count):
            pixels = rng.integers(90, 160, (SIDE, SIDE, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels)
            pen = ImageDraw.Draw(picture)
            objects = 0 if split == "train2017" and i % 8 == 7 else int(rng.integers(1, 4))
            for place in rng.permutation(4)[:objects]:  # a quarter of the image each
                width, height = (int(side) for side in rng.integers(20, 44, 2))
                left = int(place % 2 * 48 + rng.integers(0, 48 - width + 1))
                top = int(place // 2 * 48 + rng.integers(0, 48 - height + 1))
                category = int(rng.choice(list(CATEGORIES)))
                draw(pen, category, (left, top, left + width, top + height))
                number += 1
                annotations.append(
                    {
                        "id": number,
                        "image_id": 100 + i,
                        "category_id": category,
                        "bbox": [left, top, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                    }
                )
            name = f"{100 + i:012d}.{'jpg' if i % 2 else 'png'}"
            picture.save(root / split / name)
            images.append({"id": 100 + i, "file_name": name, "height": SIDE, "width": SIDE})
        categories = [{"id": key, "name": name} for key, name in CATEGORIES.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


if __name__ == "__main__":
    make_shapes(Path(sys.argv[1]), *map(int, sys.argv[2:4]))
