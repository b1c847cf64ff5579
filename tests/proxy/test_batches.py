"""The stream of batches: order, augmentation and evaluation, the same on every path, and whether it is fast enough."""

import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from archsearch.data import IMAGENET_MEAN, IMAGENET_STD, ProxyData, make_constellation
from archsearch.proxy import STARVED_UNDER, Loader, Recipe, is_starved, train_and_score
from archsearch.proxy.training.augment import augmented
from archsearch.proxy.training.batches import draw_batches

CPU = torch.device("cpu")
RECIPE = Recipe(steps=8, batch_size=16, learning_rate=1e-3, image_size=32, dtype="float32", augment="shift")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def pictures(train: np.ndarray, val: np.ndarray) -> ProxyData:
    """Data of given pictures (N, S, S, C), all labelled 0, normalised as 0..1."""
    one = (1.0,) * train.shape[3]
    zero = (0.0,) * train.shape[3]
    labels = [np.zeros(len(each), dtype=np.int64) for each in (train, val)]
    return ProxyData("pictures", train, labels[0], val, labels[1], ("a", "b"), (), zero, one)


@pytest.mark.parametrize(("num_images", "batch_size"), [(50, 20), (7, 20), (40, 20)])
def test_epochs_are_shuffled_without_replacement(num_images: int, batch_size: int) -> None:
    recipe = replace(RECIPE, steps=12, batch_size=batch_size)
    order = np.concatenate([drawn.indices for drawn in draw_batches(num_images, recipe)])
    assert len(order) == 12 * batch_size
    epochs = [order[start : start + num_images] for start in range(0, len(order) - num_images + 1, num_images)]
    assert all(sorted(epoch) == list(range(num_images)) for epoch in epochs)
    assert not any(np.array_equal(first, second) for first, second in pairwise(epochs))


def test_shift_moves_and_mirrors_whole_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 1), dtype=np.uint8)
    recipe = replace(RECIPE, steps=150, batch_size=4, image_size=12)
    seen = set()
    for (batch, _), drawn in zip(
        Loader(pictures(images, images), CPU).train_batches(recipe), draw_batches(4, recipe), strict=True
    ):
        assert batch.shape == (4, 3, 12, 12)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        for picture, index in zip((batch[:, 0] * 255).round().byte().numpy(), drawn.indices, strict=True):
            seen |= {_explain(picture, images[index, :, :, 0])}
    assert seen == {(down, across, mirror) for down in range(5) for across in range(5) for mirror in (False, True)}


def _explain(picture: np.ndarray, original: np.ndarray) -> tuple[int, int, bool]:
    """Which of the 50 moves by up to 2 px, the border repeated, and mirrorings made `picture`."""
    for mirror in (False, True):
        padded = np.pad(original[:, ::-1] if mirror else original, 2, mode="edge")
        for down in range(5):
            for across in range(5):
                moved = padded[down : down + 12, across : across + 12]
                if np.array_equal(moved, picture):
                    return down, across, mirror
    raise AssertionError("not a moved or mirrored original")


def test_crops_are_boxes_of_the_allowed_area_and_ratio() -> None:
    """Two ramps give for every pixel of a crop its place in the picture."""
    size = 128
    ramp = np.broadcast_to((np.arange(size) * 2).astype(np.uint8), (size, size))
    image = np.stack([ramp, ramp.T, ramp], axis=-1)[None]
    recipe = replace(RECIPE, steps=20, batch_size=16, image_size=64, augment="crop")
    areas, ratios, mirrors = [], [], []
    for batch, _ in Loader(pictures(image, image), CPU).train_batches(recipe):
        across, down = batch[:, 0] * 255 / 2, batch[:, 1] * 255 / 2  # source column and row of every pixel
        assert across.min() >= 0
        assert down.max() <= size - 1
        # The inner pixels, away from where the border is repeated; 48 of 63 steps.
        width = (across[:, 32, 56] - across[:, 32, 8]) / 48 * 64 / size
        height = (down[:, 56, 32] - down[:, 8, 32]) / 48 * 64 / size
        areas += (width.abs() * height).tolist()
        ratios += (width.abs() / height).tolist()
        mirrors += (width < 0).tolist()
    assert 0.33 < min(areas) < 0.40
    assert 0.90 < max(areas) < 1.01
    assert 0.74 < min(ratios) < 0.80
    assert 1.25 < max(ratios) < 1.35
    assert 0.4 < np.mean(mirrors) < 0.6


def test_evaluation_cuts_the_stored_margin_off_and_normalises() -> None:
    val = np.random.default_rng(0).integers(0, 256, (5, 36, 36, 3), dtype=np.uint8)
    data = ProxyData("noise", val, np.arange(5), val, np.arange(5), tuple("abcde"))
    batches = list(Loader(data, CPU).val_batches(replace(RECIPE, batch_size=2, augment="crop")))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1, 2, 3, 4]
    cut = val[:, 2:34, 2:34].astype(np.float64) / 255
    expected = (cut - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(torch.cat([images for images, _ in batches]).permute(0, 2, 3, 1), expected, atol=1e-5)


def test_evaluation_at_another_size_is_resized_like_pillow_does() -> None:
    val = np.random.default_rng(0).integers(0, 256, (1, 48, 48, 1), dtype=np.uint8)
    images, _ = next(Loader(pictures(val, val), CPU).val_batches(RECIPE))
    expected = Image.fromarray(val[0, :, :, 0]).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(images[0, 0] * 255, np.asarray(expected), atol=1.0)


def test_a_batch_is_the_same_kept_or_used_at_once_and_beside_another_stream() -> None:
    """Buffers are reused, by one stream and never by two."""
    loader = Loader(make_constellation(40, 8), CPU)
    expected = [images.clone() for images, _ in loader.train_batches(RECIPE)]
    other = loader.train_batches(replace(RECIPE, seed=1))
    kept = [images for (images, _), _ in zip(loader.train_batches(RECIPE), other, strict=True)]
    assert all(torch.equal(now, before) for now, before in zip(kept, expected, strict=True))


def test_large_batches_are_cropped_like_single_images() -> None:
    """A CPU crops them in pieces."""
    data = make_constellation(70, 8)
    recipe = replace(RECIPE, batch_size=70, image_size=28, augment="crop")
    drawn = next(draw_batches(70, recipe))
    images = torch.from_numpy(data.train_images[drawn.indices])
    whole, _ = next(Loader(data, CPU).train_batches(recipe))
    assert whole.is_contiguous(memory_format=torch.channels_last)
    single = [augmented(images[n : n + 1], drawn.uniforms[n : n + 1], recipe, data) for n in range(70)]
    assert torch.equal(whole, torch.cat(single))


class SlowPictures(np.ndarray[Any, Any]):
    """Takes 30 ms to read any of its images, as a disk might."""

    def __getitem__(self, key: Any) -> Any:
        time.sleep(0.03)
        return super().__getitem__(key)


def test_a_training_measures_whether_it_waits_for_images() -> None:
    quick = make_constellation(64, 16)
    # Every other of twice as many: memory that cannot be gathered from in one go.
    slow = replace(quick, train_images=np.repeat(quick.train_images, 2, axis=0)[::2].view(SlowPictures))
    tiny = [nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 16)) for _ in range(2)]
    tiny[1].load_state_dict(tiny[0].state_dict())
    of_quick, of_slow = (
        train_and_score(model, data, RECIPE, device="cpu") for model, data in zip(tiny, (quick, slow), strict=True)
    )
    assert of_slow.train_loss == of_quick.train_loss
    assert of_quick.loader_images_s > of_slow.loader_images_s
    assert is_starved(of_slow.loader_images_s, of_slow.step_images_s)
    # The wait is no part of a step: 16 images in 30 ms would be at most 533 a second.
    assert of_slow.step_images_s > 16 / 0.03


def test_a_training_is_starved_by_batches_less_than_a_fifth_faster_than_its_steps() -> None:
    assert STARVED_UNDER == 1.2
    assert not is_starved(1200, 1000)
    assert is_starved(1199, 1000)


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", 0)


@pytest.mark.cuda
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("augment", ["shift", "crop"])
def test_cuda_sees_the_same_batches(cuda: torch.device, whole: bool, augment: Any) -> None:
    """Gathered on the device, or on the host into pinned memory."""
    data = make_constellation(160, 48)
    recipe = replace(RECIPE, augment=augment, image_size=28, steps=30)
    loader = Loader(data, cuda, whole=whole)
    streams = [(Loader(data, CPU).train_batches(recipe), loader.train_batches(recipe))]
    streams += [(Loader(data, CPU).val_batches(recipe), loader.val_batches(recipe))]
    for on_cpu, on_cuda in streams:
        # All at once, so that a buffer used too early would show.
        for (images, labels), (there, labels_there) in zip(on_cpu, list(on_cuda), strict=True):
            assert torch.equal(labels, labels_there.cpu())
            torch.testing.assert_close(images, there.cpu(), rtol=0, atol=1e-3)


@pytest.mark.cuda
def test_data_that_fit_lie_on_the_device_as_a_whole(cuda: torch.device) -> None:
    assert Loader(make_constellation(160, 48), cuda).is_whole
    free, _ = torch.cuda.mem_get_info(cuda)
    side = 1000
    num_images = free // 2 // (side * side * 3)
    huge = np.broadcast_to(np.uint8(0), (num_images, side, side, 3))  # one byte of memory
    labels = np.zeros(num_images, dtype=np.int64)
    assert not Loader(ProxyData("huge", huge, labels, huge[:1], labels[:1], ("a",)), cuda).is_whole
