"""Which rows of a global batch one host makes."""


def check_shards(owner: str, batch_size: int, shard: int, num_shards: int) -> None:
    """Raise ValueError unless a batch divides into ``num_shards`` parts, of which ``shard`` is
    one.
    """
    if num_shards < 1 or not 0 <= shard < num_shards:
        raise ValueError(
            f"jdeq.data.{owner}: shard must be in 0..num_shards - 1; "
            f"got shard {shard} of {num_shards}"
        )
    if batch_size < 1 or batch_size % num_shards:
        raise ValueError(
            f"jdeq.data.{owner}: batch_size must be a positive multiple of num_shards, "
            f"{num_shards}; got {batch_size}"
        )


def shard_rows(batch_size: int, shard: int, num_shards: int) -> slice:
    """The rows of a batch that belong to ``shard``: one of ``num_shards`` equal blocks."""
    size = batch_size // num_shards
    return slice(shard * size, (shard + 1) * size)
