"""The copy memory task: remember ten symbols over a long stretch of blanks."""

import numpy as np

from jdeq.data.batches import Dataset

MEMORY = 10
"""How many symbols are to be remembered."""
SYMBOLS = 8
"""They are drawn from 1..SYMBOLS; 0 is the blank, SYMBOLS + 1 the delimiter."""


def copy_memory(examples: int, length: int, seed: int) -> Dataset:
    """Ten symbols of 1..8, ``length - 1`` blanks (0), eleven delimiters (9): answer the symbols.

    The answer is blank everywhere but at the last ten places, where it is the ten symbols in order.
    No label is ignored: the published loss is the mean cross entropy over all ``length + 20``
    places. Who remembers nothing, and knows where to answer, has a loss of
    ``10 ln 8 / (length + 20)`` nats: 0.297 at length 50, 0.0945 at 200.

    Args:
      examples: how many, >= 1.
      length: from one symbol to its place in the answer it is ``length + 10``; >= 1.
      seed: of the symbols.
    Returns:
      inputs and labels, int32 [examples, length + 20].
    Raises:
      ValueError: if a number is out of range.
    Source: Bai, Kolter, Koltun (2018), An Empirical Evaluation of Generic Convolutional and
      Recurrent Networks for Sequence Modeling, section 4.2 (the first of their delimiters is at
      place length + 10, counted from 1); Hochreiter and Schmidhuber (1997).
    """
    for name, value in (("examples", examples), ("length", length)):
        if value < 1:
            raise ValueError(f"jdeq.data.copy_memory: {name} must be >= 1; got {value}")
    rng = np.random.default_rng(seed)
    symbols = rng.integers(1, SYMBOLS + 1, size=(examples, MEMORY), dtype=np.int32)
    inputs = np.zeros((examples, length + 2 * MEMORY), np.int32)
    labels = np.zeros_like(inputs)
    inputs[:, :MEMORY] = symbols
    inputs[:, -MEMORY - 1 :] = SYMBOLS + 1
    labels[:, -MEMORY:] = symbols
    return Dataset(inputs, labels)
