"""Readers and deterministic batching."""

from jdeq.data.augment import (
    IGNORED,
    Example,
    PadCropFlip,
    ResizeCentreCrop,
    ResizedCropFlip,
    ScaleCropFlip,
)
from jdeq.data.batches import Dataset, ShuffledBatches, padded_batches, random_shift
from jdeq.data.digits import Digits, load_digits
from jdeq.data.image_batches import ImageBatches, OrderedImageBatches, prefetched
from jdeq.data.images import (
    CIFAR10,
    CITYSCAPES,
    IMAGENET,
    MNIST,
    SVHN,
    ImageSet,
    ImageSource,
    open_images,
)
