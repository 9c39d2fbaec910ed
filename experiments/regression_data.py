"""What a run learns from where labels are numbers; the same form as in data.py."""

import dataclasses

from experiments.task import Task, fingerprint
from jdeq.data import ShuffledBatches, load_synthetic


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticData:
    """Noisy pairs of a curve; see `jdeq.data.load_synthetic`."""

    train_pairs: int = 4096
    test_pairs: int = 1000
    batch_size: int = 64
    half_width: float = 1.5
    """x is uniform within so much of 0."""

    def build(self, seed: int) -> Task:
        """Shuffled by ``seed``; the pairs are the same for all seeds."""
        pairs = load_synthetic(
            train=self.train_pairs, test=self.test_pairs, half_width=self.half_width
        )
        return Task(
            batches=ShuffledBatches(data=pairs.train, batch_size=self.batch_size, seed=seed),
            test=pairs.test,
            classes=0,
            data=fingerprint(*pairs.train, *pairs.test),
        )
