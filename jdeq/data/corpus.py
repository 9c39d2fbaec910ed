"""Texts as ids: a folder of token files, or the standard library's own source."""

import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt

from jdeq.data import id_cache
from jdeq.data.vocabulary import Bytes, Subwords, Words, split_words

SPLITS = ("train", "valid", "test")
FORMATS = ("wiki.{}.tokens", "wiki.{}.raw", "ptb.{}.txt", "{}.txt")
CHUNK_CHARACTERS = 1 << 20


class PerSplit(NamedTuple):
    """One number for each of the splits ``train``, ``valid`` and ``test``."""

    train: float
    valid: float
    test: float


class Corpus(NamedTuple):
    """A text in three splits, as ids, with what turns a loss into the units of the field.

    From a loss in nats per token of a split:

        bits per byte   = nats / ln(2) / bytes_per_token
        word perplexity = exp(nats / words_per_token)     # exp(nats) if and only if unit is "word"

    A perplexity per subword or per byte, ``exp(nats)``, compares with nothing of another ``unit``.

    Attributes:
      train, valid, test: ids, [tokens]; uint8 (bytes), or memory-mapped uint16 or uint32.
      unit: what a token is.
      vocab_size: ids are below it.
      bytes_per_token: of the text as stored, before words are replaced by ``<unk>``.
      words_per_token: a word is a whitespace-separated piece or the end of a line.
      encode: text -> ids [tokens].
      decode: ids -> text.
    """

    train: UInt[np.ndarray, " train_tokens"]
    valid: UInt[np.ndarray, " valid_tokens"]
    test: UInt[np.ndarray, " test_tokens"]
    unit: Literal["byte", "word", "subword"]
    vocab_size: int
    bytes_per_token: PerSplit
    words_per_token: PerSplit
    encode: Callable[[str], UInt[np.ndarray, " tokens"]]
    decode: Callable[[Iterable[int]], str]


def load_stdlib(
    *,
    valid_fraction: float = 0.05,
    test_fraction: float = 0.05,
    seed: int = 0,
    max_bytes: int | None = None,
) -> Corpus:
    """The .py files of the running Python's standard library as bytes: a text on every machine.

    Files are split by a hash of (seed, relative path), so the shares hold roughly, and a file that
    two versions of Python share is on the same side in both. A split is its files in the order of
    their paths, a 0 byte between them. What is in it, and so every figure measured on it, depends
    on the version of Python and on how it was packaged (some systems leave ``test`` out).

    Args:
      valid_fraction: share of the files, > 0.
      test_fraction: share of the files, > 0; the two sum to less than 1.
      seed: which split.
      max_bytes: keep at most so much, in the shares above: whole files, chosen by their hash.
    Returns:
      unit "byte", vocab_size 256.
    Raises:
      ValueError: if a fraction is out of range or a split comes out empty.
    Cost: reads the library (about 30 MB) at every call; kept in memory.
    """
    if not (valid_fraction > 0 and test_fraction > 0 and valid_fraction + test_fraction < 1):
        raise ValueError(
            "jdeq.data.load_stdlib: valid_fraction and test_fraction must be > 0 and sum to less "
            f"than 1; got {valid_fraction} and {test_fraction}"
        )
    root = Path(sysconfig.get_paths()["stdlib"])
    fractions = {
        "test": test_fraction,
        "valid": valid_fraction,
        "train": 1.0 - valid_fraction - test_fraction,
    }
    chosen: dict[str, list[str]] = {split: [] for split in SPLITS}
    left = {split: (max_bytes or 0) * fraction for split, fraction in fractions.items()}
    for place, name in sorted((_hash(seed, name), name) for name in _stdlib_names(root)):
        if place < test_fraction:
            split = "test"
        else:
            split = "valid" if place < test_fraction + valid_fraction else "train"
        if max_bytes is not None:
            left_after = left[split] - (root / name).stat().st_size - 1
            if left_after < 0:
                continue
            left[split] = left_after
        chosen[split].append(name)
    texts = {s: b"\0".join((root / n).read_bytes() for n in sorted(chosen[s])) for s in SPLITS}
    for split, text in texts.items():
        if not text:
            raise ValueError(
                f"jdeq.data.load_stdlib: {split} must hold at least one file; got none of those in "
                f"{str(root)!r} with its share {fractions[split]:.3g} and max_bytes {max_bytes}"
            )
    codec = Bytes()
    return Corpus(
        **{split: np.frombuffer(text, np.uint8) for split, text in texts.items()},
        unit=codec.unit,
        vocab_size=codec.size,
        bytes_per_token=PerSplit(1.0, 1.0, 1.0),
        words_per_token=PerSplit(
            **{s: (len(t.split()) + t.count(b"\n")) / len(t) for s, t in texts.items()}
        ),
        encode=codec.encode,
        decode=codec.decode,
    )


def _stdlib_names(root: Path) -> Iterator[str]:
    left_out = {"site-packages", "dist-packages", "__pycache__"}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in left_out]
        for name in files:
            # _sysconfigdata is written when Python is built, and names the machine's folders.
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _hash(seed: int, name: str) -> float:
    """Uniform in [0, 1)."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def load_corpus(
    directory: str | os.PathLike,
    *,
    tokenizer: str | os.PathLike | None = None,
    lower: bool = False,
    cache: str | os.PathLike | None = None,
) -> Corpus:
    """The corpus in a folder of train, valid and test files: WikiText, Penn Treebank, or any text.

    The folder holds ``wiki.{train,valid,test}.tokens`` or ``.raw``, ``ptb.{...}.txt``, or
    ``{train,valid,test}.txt``: UTF-8, every line ended by a newline.

    Without a tokenizer the tokens are words: the pieces between whitespace, and ``<eos>`` at the
    end of each line (empty ones too). The vocabulary is that of the training file, the most
    frequent word first, ties by first appearance; other words of the other files become ``<unk>``.

    The ids are computed once, then memory-mapped. They are computed again when the size or time
    of a file, ``lower`` or the content of the tokenizer file changed.

    Args:
      directory: the folder.
      tokenizer: a tokenizer.json (GPT-2's, say); the tokens are then its subwords, each line
        encoded by itself, newline included, without special tokens.
      lower: fold words to lower case; without a tokenizer only.
      cache: folder for the ids; ``directory / "jdeq-cache"`` if None.
    Returns:
      unit "word" or "subword".
    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is empty, truncated (no newline at its end) or not UTF-8, if the folder
        holds more than one format, if a word is unknown and ``<unk>`` too, or if ``lower`` is
        given with a tokenizer.
      ImportError: if a tokenizer is given and tokenizers is not installed.
      OSError: if the cache has to be written and cannot be.
    Cost: the first call reads the training file twice; a few MB of memory and the vocabulary.
    Source: Merity et al. (2017), Pointer sentinel mixture models (WikiText); Dai et al. (2019),
      Transformer-XL, whose words these are, but for ``<eos>``: ranked by its frequency here, first
      there.
    """
    if tokenizer is not None and lower:
        raise ValueError(
            "jdeq.data.load_corpus: lower must be False with a tokenizer, which has its own "
            "normaliser; got True"
        )
    files = _find_files(Path(directory))
    subwords = None if tokenizer is None else Subwords(tokenizer)
    stats = {split: path.stat() for split, path in files.items()}
    key = {
        "format": 1,
        "files": {files[s].name: [stats[s].st_size, stats[s].st_mtime_ns] for s in SPLITS},
        "lower": lower,
        "tokenizer": None if subwords is None else subwords.sha256,
    }
    folder = Path(directory) / "jdeq-cache" if cache is None else Path(cache)
    # The options are part of the name, so that processes with others do not mix their files.
    unit = f"word{'-lower' * lower}" if subwords is None else f"subword-{subwords.sha256[:8]}"
    stem = f"{Path(directory).resolve().name}-{unit}"
    encoded = id_cache.read(folder, stem, key)
    if encoded is None:
        try:
            _encode_files(files, subwords, lower=lower, folder=folder, stem=stem, key=key)
        except OSError as error:
            raise OSError(
                "jdeq.data.load_corpus: cache must be a folder that can be written to; "
                f"got {str(folder)!r} ({error})"
            ) from error
        encoded = id_cache.read(folder, stem, key)
        if encoded is None:
            raise OSError(
                f"jdeq.data.load_corpus: what was written to {str(folder)!r} must be readable; "
                "got nothing back: did another process change it?"
            )
    codec = subwords or Words(encoded.vocabulary or (), lower=lower)
    ids, words = encoded.ids, encoded.words
    return Corpus(
        **{split: ids[split] for split in SPLITS},
        unit=codec.unit,
        vocab_size=codec.size,
        bytes_per_token=PerSplit(**{s: stats[s].st_size / len(ids[s]) for s in SPLITS}),
        words_per_token=PerSplit(**{s: words[s] / len(ids[s]) for s in SPLITS}),
        encode=codec.encode,
        decode=codec.decode,
    )


def _find_files(directory: Path) -> dict[str, Path]:
    """The three files of the one format in the folder, none of them empty or cut off."""
    formats = [[directory / form.format(split) for split in SPLITS] for form in FORMATS]
    complete = [paths for paths in formats if all(path.is_file() for path in paths)]
    if not complete:
        begun = [paths for paths in formats if any(path.is_file() for path in paths)]
        wanted = " or ".join(", ".join(p.name for p in paths) for paths in begun or formats)
        missing = ", ".join(p.name for paths in begun for p in paths if not p.is_file())
        what = f"without {missing}" if begun else "with none of them"
        raise FileNotFoundError(
            f"jdeq.data.load_corpus: directory must hold {wanted}; got {str(directory)!r}, {what}"
        )
    if len(complete) > 1:
        found = " and ".join(", ".join(p.name for p in paths) for paths in complete)
        raise ValueError(
            f"jdeq.data.load_corpus: directory must hold files of one format; got {found} "
            f"in {str(directory)!r}"
        )
    for path in complete[0]:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if file.read() != b"\n":
                state = "no newline at its end: truncated?" if size else "an empty file"
                raise ValueError(
                    "jdeq.data.load_corpus: a file must hold text whose last line is ended; "
                    f"got {str(path)!r}, {state}"
                )
    return dict(zip(SPLITS, complete[0], strict=True))


def _encode_files(
    files: dict[str, Path], subwords: Subwords | None, *, lower: bool, folder: Path, stem, key
) -> None:
    codec = subwords or Words.count(_chunks(files["train"]), lower=lower)

    def encode(path):
        for text in _chunks(path):
            try:
                yield codec.encode(text), len(split_words(text))
            except ValueError as error:
                raise ValueError(f"jdeq.data.load_corpus: {str(path)!r}: {error}") from error

    id_cache.write(
        folder,
        stem,
        key,
        splits={split: encode(path) for split, path in files.items()},
        vocabulary=codec.words if isinstance(codec, Words) else None,
    )


def _chunks(path: Path) -> Iterator[str]:
    """The text in pieces of whole lines."""
    # Lines end at "\n" alone: a "\r" is a byte of the text, and is counted as one.
    with open(path, encoding="utf-8", newline="\n") as file:
        try:
            while text := file.read(CHUNK_CHARACTERS) + file.readline():
                yield text
        except UnicodeDecodeError as error:
            raise ValueError(
                f"jdeq.data.load_corpus: files must be UTF-8; got {str(path)!r}: {error}"
            ) from error
