"""Encoded splits on disk: an .npy file a split, to be memory-mapped, beside a JSON of facts.

The JSON is removed first and written last, every file appears by a rename, and the JSON holds the
key it was built for (sizes and times of the sources, options): an interrupted, stale or truncated
cache is never taken for a good one. Contents are not checked beyond their length.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt


class Encoded(NamedTuple):
    """The splits of a corpus, memory-mapped, and what is known of them."""

    ids: dict[str, UInt[np.ndarray, " tokens"]]
    words: dict[str, int]
    vocabulary: list[str] | None


def read(folder: Path, stem: str, key: Mapping[str, Any]) -> Encoded | None:
    """What was written for this ``key``, or None if nothing was or it is damaged."""
    try:
        facts = json.loads(_json_path(folder, stem).read_text(encoding="utf-8"))
        if facts["key"] != key:
            return None
        ids = {
            split: np.load(_ids_path(folder, stem, split), mmap_mode="r")
            for split in facts["tokens"]
        }
        if {split: len(array) for split, array in ids.items()} != facts["tokens"]:
            return None
        return Encoded(ids, facts["words"], facts["vocabulary"])
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def write(
    folder: Path,
    stem: str,
    key: Mapping[str, Any],
    *,
    splits: Mapping[str, Iterable[tuple[UInt[np.ndarray, " tokens"], int]]],
    vocabulary: list[str] | None,
) -> None:
    """Stores the splits, chunk after chunk.

    Processes that write the same at the same time do not disturb each other.

    Args:
      folder: created if need be.
      stem: what the file names begin with.
      key: what `read` compares; anything JSON can hold.
      splits: for each split the chunks of it, at least one: ids and the number of words in them.
      vocabulary: the words, or None.
    Raises:
      OSError: if the folder cannot be written to.
    Cost: the memory of one chunk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{stem}-", dir=folder) as name:
        scratch = Path(name)
        tokens, words = {}, {}
        for split, chunks in splits.items():
            tokens[split], words[split] = _write_ids(_ids_path(scratch, stem, split), chunks)
        facts = {"key": key, "tokens": tokens, "words": words, "vocabulary": vocabulary}
        with open(_json_path(scratch, stem), "w", encoding="utf-8") as file:
            json.dump(facts, file, ensure_ascii=False)
            _flush(file)
        _json_path(folder, stem).unlink(missing_ok=True)
        for split in splits:
            os.replace(_ids_path(scratch, stem, split), _ids_path(folder, stem, split))
        os.replace(_json_path(scratch, stem), _json_path(folder, stem))


def _write_ids(path: Path, chunks: Iterable[tuple[np.ndarray, int]]) -> tuple[int, int]:
    """An .npy file whose length is known at the end only; returns (tokens, words)."""
    tokens, words, dtype, start = 0, 0, None, 0
    with open(path, "wb") as file:
        for ids, count in chunks:
            if dtype is None:
                dtype = ids.dtype
                start = _write_header(file, dtype, 0)
            ids.tofile(file)
            tokens += len(ids)
            words += count
        file.seek(0)
        # numpy leaves room in a header for its length to grow.
        if _write_header(file, dtype, tokens) != start:
            raise RuntimeError(f"{path}: the header of an .npy file changed its size")
        _flush(file)
    return tokens, words


def _write_header(file, dtype: Any, length: int) -> int:
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (length,),
    }
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _flush(file) -> None:
    """To the disk, before the rename: else a power cut can leave a file of zeros."""
    file.flush()
    os.fsync(file.fileno())


def _ids_path(folder: Path, stem: str, split: str) -> Path:
    return folder / f"{stem}.{split}.npy"


def _json_path(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.json"
