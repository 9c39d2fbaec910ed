"""Readers and deterministic batching."""

from jdeq.data.batches import Dataset, ShuffledBatches, padded_batches, random_shift
from jdeq.data.corpus import Corpus, PerSplit, load_corpus, load_stdlib
from jdeq.data.digits import Digits, load_digits
from jdeq.data.windows import IGNORED, ShuffledWindows, Streams, windows
