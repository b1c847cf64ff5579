"""Every paper's preprocessing against Pillow and numpy, to the bit."""

import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from support.pictures import Recorder, picture

from archsearch.models import Preprocessing, validate
from archsearch.space import paper, paper_names
from archsearch.units import sides

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def half_even(numerator: int) -> int:
    """Half of a number of pixels; a half pixel goes to the even neighbour."""
    half = Fraction(numerator, 2)
    whole = half.numerator // half.denominator
    return whole + (half - whole == Fraction(1, 2) and whole % 2 == 1)


def oracle(path: Path, resize: int, crop: int, squash: bool, mean: Any, std: Any) -> NDArray[np.float32]:
    """The papers' preprocessing in Pillow and numpy: (3, crop, crop)."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    if squash:
        width, height = resize, resize
    elif width <= height:
        width, height = resize, resize * height // width
    else:
        width, height = resize * width // height, resize
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    top, left = half_even(height - crop), half_even(width - crop)
    pixels = np.asarray(image)[top : top + crop, left : left + crop].astype(np.float32) / np.float32(255)
    return ((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)


def make_odd_pictures(root: Path) -> list[Path]:
    """Every shape and kind of picture that a validation set may hold, in the order of their names."""
    root.mkdir(parents=True)
    sizes = [(500, 375), (375, 500), (333, 251), (251, 334), (224, 224), (31, 29), (701, 100), (300, 257), (256, 259)]
    for number, (width, height) in enumerate(sizes):
        picture(width, height, number).save(root / f"a{number}.png")
    picture(301, 333, 20).save(root / "b0.jpg", quality=90)
    picture(301, 333, 21, "L").save(root / "b1.jpg")
    picture(301, 333, 22, "CMYK").save(root / "b2.jpg")
    picture(301, 333, 23, "RGBA").save(root / "b3.png")
    picture(301, 333, 24, "LA").save(root / "b4.png")
    picture(301, 333, 25).quantize(200).save(root / "b5.png", transparency=3)
    picture(301, 333, 26, "L").convert("1").save(root / "b6.png")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    picture(301, 233, 27).save(root / "b7.jpg", exif=rotated)
    return sorted(root.iterdir())


@pytest.mark.parametrize(
    ("name", "resize", "squash", "statistics"),
    [
        ("van_b0", 248, False, HALF),
        ("davit_tiny", 248, False, IMAGENET),
        ("crossformer_tiny", 256, False, IMAGENET),
        ("litv2_b_384", 384, True, IMAGENET),
    ],
)
def test_inputs_are_exactly_those_of_pillow_and_numpy(
    tmp_path: Path, name: str, resize: int, squash: bool, statistics: Any
) -> None:
    paths = make_odd_pictures(tmp_path / "class")
    model, (size, _) = Recorder(1), sides(paper(name).image_size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = validate(model, tmp_path, Preprocessing.from_paper(name), image_size=size, batch_size=5, workers=0)
    assert (found.images, found.unreadable) == (len(paths), ())
    assert model.inputs.is_contiguous(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow on the transparent palette
        expected = np.stack([oracle(path, resize, size, squash, *statistics) for path in paths])
    assert model.inputs.numpy().tolist() == expected.tolist()


def test_every_paper_says_how_it_was_evaluated() -> None:
    for name in paper_names():
        preprocessing, size = Preprocessing.from_paper(name), paper(name).image_size
        family = name.split("_")[0]
        resize = 248 if family in ("van", "davit") else 256 if size == 224 else size
        assert preprocessing.resized(size) == (resize, resize), name
        assert (preprocessing.mean, preprocessing.std) == (HALF if family == "van" else IMAGENET), name
        assert (preprocessing.crop, preprocessing.interpolation) == ("centre" if size == 224 else "squash", "bicubic")


def test_another_resolution_is_resized_in_proportion() -> None:
    van, squash = Preprocessing.from_paper("van_b0"), Preprocessing.from_paper("litv2_b_384")
    statistics = "mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5)"
    assert van.describe(224) == f"resize 248 (short side, bicubic), centre crop 224, {statistics}"
    assert van.describe(288) == f"resize 320 (short side, bicubic), centre crop 288, {statistics}"
    assert van.describe((180, 90)) == f"resize to cover 200x100 (bicubic), centre crop 180x90, {statistics}"
    assert squash.describe(384).startswith(
        "resize 384x384 (aspect not kept, bicubic), no crop, mean (0.485, 0.456, 0.406)"
    )
    made = van.transform((180, 90))(picture(400, 300))
    assert (made.shape, made.dtype) == ((3, 180, 90), torch.uint8)
    # The scale at which the picture just covers 200x100 is 2/3, from which the middle is cut.
    whole = np.asarray(picture(400, 300).resize((267, 200), Image.Resampling.BICUBIC))
    assert made.permute(1, 2, 0).tolist() == whole[10:190, 88:178].tolist()
