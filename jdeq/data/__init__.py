"""Readers and deterministic batching."""

from jdeq.data.augment import (
    Example,
    PadCropFlip,
    ResizeCentreCrop,
    ResizedCropFlip,
    ScaleCropFlip,
)
from jdeq.data.batches import IGNORED, Dataset, ShuffledBatches, padded_batches, random_shift
from jdeq.data.copy_memory import copy_memory
from jdeq.data.corpus import Corpus, PerSplit, load_corpus, load_stdlib
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
from jdeq.data.scenes import SCENES, Scenes, load_scenes
from jdeq.data.synthetic import Synthetic, load_synthetic
from jdeq.data.windows import ShuffledWindows, Streams, windows
