"""Augmentations: what they may change, and that labels go where their pixels go."""

import numpy as np
import pytest

from jdeq.data import (
    IGNORED,
    Example,
    PadCropFlip,
    ResizeCentreCrop,
    ResizedCropFlip,
    ScaleCropFlip,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def photograph(height=20, width=30, channels=3, label=7):
    image = rng().integers(1, 256, (height, width, channels)).astype(np.uint8)
    return Example(image, np.asarray(label, np.int32))


def scene(height, width, cell=8):
    """Squares of one class each, and the class written into the pixels: 10 * class + 5."""
    rows, columns = np.arange(height)[:, None] // cell, np.arange(width)[None] // cell
    label = ((3 * rows + 5 * columns) % 19).astype(np.int32)
    return Example(np.stack([label * 10 + 5] * 3, -1).astype(np.uint8), label)


def test_pad_crop_flip_reaches_every_window():
    """Nine shifts, mirrored or not: 18 results, all of them met, none other."""
    example = photograph(5, 6)
    padded = np.pad(example.image, [(1, 1), (1, 1), (0, 0)])
    windows = [padded[y : y + 5, x : x + 6] for y in range(3) for x in range(3)]
    allowed = {w.tobytes() for w in windows} | {w[:, ::-1].tobytes() for w in windows}
    generator, recipe = rng(1), PadCropFlip(pad=1)
    seen = {recipe(example, generator).image.tobytes() for _ in range(300)}
    assert seen == allowed


def test_pad_crop_flip_ignores_what_was_not_there():
    example = scene(16, 16)
    results = [PadCropFlip(pad=6)(example, rng(seed)) for seed in range(20)]
    outside = [(r.image == 0).all(-1) for r in results]  # the scene itself has no black
    assert np.mean(outside) > 0.1
    for result, black in zip(results, outside, strict=True):
        np.testing.assert_array_equal(result.label == IGNORED, black)
        np.testing.assert_array_equal(result.label[~black] * 10 + 5, result.image[~black][:, 0])


def test_results_share_nothing_with_the_source():
    """A source held in memory is read again every epoch."""
    example = scene(40, 40)
    for recipe in (PadCropFlip(pad=0), ResizedCropFlip(size=40), ScaleCropFlip()):
        for seed in range(4):
            for new, old in zip(recipe(example, rng(seed)), example, strict=True):
                assert not np.shares_memory(new, old)


RECIPES = [
    (PadCropFlip(), (20, 30)),
    (ResizedCropFlip(size=16), (16, 16)),
    (ResizeCentreCrop(resize=18, size=16), (16, 16)),
    (ScaleCropFlip(height=12, width=50), (12, 50)),
]


@pytest.mark.parametrize(("recipe", "size"), RECIPES, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("channels", [1, 3])
def test_size_and_kind_of_the_result(recipe, size, channels):
    example = photograph(channels=channels)
    image, label = recipe(example, rng())
    assert image.shape == (*size, channels) and image.dtype == np.uint8
    assert label == 7 and label.dtype == np.int32
    again, _ = recipe(example, rng())
    np.testing.assert_array_equal(image, again)  # all chance is the generator's


def test_resized_crops_cover_the_stated_areas_and_shapes():
    boxes = np.array([ResizedCropFlip()._box(300, 400, rng(seed)) for seed in range(2000)])
    y, x, height, width = boxes.T
    assert (y >= 0).all() and (x >= 0).all()
    assert (y + height <= 300).all() and (x + width <= 400).all()
    area, ratio = height * width / (300 * 400), width / height
    assert 0.08 - 0.002 < area.min() < 0.1 and area.max() > 0.9  # 0.002: whole pixels
    # Also of the fallback, as the image's own shape is in range.
    assert 3 / 4 - 0.01 < ratio.min() < 0.77 and 1.3 < ratio.max() < 4 / 3 + 0.01
    assert np.ptp(y) > 200 and np.ptp(x) > 250


@pytest.mark.parametrize(("height", "width", "box"), [(10, 100, (10, 13)), (100, 10, (13, 10))])
def test_where_no_box_fits_the_largest_centred_one_is_taken(height, width, box):
    recipe = ResizedCropFlip(scale=(1.0, 1.0))
    y, x, h, w = recipe._box(height, width, rng())
    assert (h, w) == box
    assert (y, x) == ((height - h) // 2, (width - w) // 2)


def test_flips_are_even():
    recipe = ResizedCropFlip(size=8, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    ramp = Example(np.arange(0, 240, 30, np.uint8)[None, :, None].repeat(8, 0), np.int32(0))
    flipped = [recipe(ramp, rng(seed)).image[0, 0, 0] > 100 for seed in range(1000)]
    assert abs(np.mean(flipped) - 0.5) < 0.05  # three standard deviations


def test_centre_crop_keeps_the_centre():
    """Shorter side 2x: a ramp's central value stays in the centre, and its slope is halved."""
    ramp = Example(np.arange(0, 240, 2, np.uint8)[None, :, None].repeat(40, 0), np.int32(0))
    image = ResizeCentreCrop(resize=80, size=60)(ramp, rng()).image[30, :, 0].astype(int)
    assert abs(image[[29, 30]].mean() - 119) <= 0.5
    assert image[-1] - image[0] == pytest.approx(59, abs=1)


def test_scaled_labels_stay_on_their_pixels():
    """Within a square the colour says the class, and nearly all pixels lie within one."""
    for seed in range(20):
        image, label = ScaleCropFlip(height=64, width=96)(scene(96, 160, cell=32), rng(seed))
        inside = label != IGNORED
        assert not image[~inside].any()
        agreeing = label[inside] * 10 + 5 == image[inside][:, 0]
        # At scale 1/2 a square has 16 pixels a side; bilinear mixes one on each side of an edge.
        assert agreeing.mean() > 0.75
        error = np.abs(label[inside] * 10 + 5 - image[inside][:, 0].astype(int))
        assert np.median(error) == 0


def test_labels_are_not_mixed():
    """Between classes 0 and 18 there is nothing, at any scale."""
    image, label = scene(64, 64)
    two = Example(image, np.where(label > 9, 18, 0).astype(np.int32))
    for seed in range(10):
        _, label = ScaleCropFlip(height=50, width=50)(two, rng(seed))
        assert set(np.unique(label)) <= {0, 18, IGNORED}


def test_scale_crop_reaches_every_window():
    """At scale 1, of 7 x 12 pixels: 4 x 7 windows, mirrored or not, all of them met, none other."""
    example = photograph(7, 12)
    windows = [example.image[y : y + 4, x : x + 6] for y in range(4) for x in range(7)]
    allowed = {w.tobytes() for w in windows} | {w[:, ::-1].tobytes() for w in windows}
    generator, recipe = rng(1), ScaleCropFlip(height=4, width=6, scale=(1.0, 1.0))
    assert {recipe(example, generator).image.tobytes() for _ in range(1000)} == allowed


def test_scale_crop_fills_at_the_far_sides_before_the_flip():
    recipe = ScaleCropFlip(height=64, width=64, scale=(0.5, 0.5))
    for seed in range(8):
        _, label = recipe(scene(64, 64), rng(seed))
        inside = label != IGNORED
        assert inside.sum() == 32 * 32 and inside[:32].sum() == 32 * 32
        assert inside[:, :32].sum() in (0, 32 * 32)


BAD = [
    (lambda: PadCropFlip(pad=-1), "PadCropFlip: pad must be >= 0; got -1"),
    (lambda: ResizedCropFlip(size=0), "ResizedCropFlip: size must be >= 1; got 0"),
    (lambda: ResizedCropFlip(scale=(0.5, 2.0)), r"scale must be .* <= 1; got \(0.5, 2.0\)"),
    (lambda: ResizedCropFlip(ratio=(0.0, 1.0)), r"ratio must be .* 0 < low <= high; got"),
    (lambda: ResizeCentreCrop(resize=8, size=9), "resize must be >= size, 9; got 8"),
    (lambda: ScaleCropFlip(width=0), "ScaleCropFlip: width must be >= 1; got 0"),
    (lambda: ScaleCropFlip(scale=(2.0, 1.0)), r"scale must be .*; got \(2.0, 1.0\)"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
