"""Between text and ids: bytes, words, subwords."""

import collections
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt

UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"


def split_words(text: str, *, lower: bool = False) -> list[str]:
    """The whitespace-separated pieces of ``text``, and one ``<eos>`` a newline.

    This is how the word-level perplexities of WikiText-103 and Penn Treebank count.
    """
    text = text.lower() if lower else text
    return text.replace("\n", f" {END_OF_LINE} ").split()


class Bytes:
    """The UTF-8 bytes of a text: ids 0..255; ``decode(encode(text)) == text``."""

    unit: Literal["byte"] = "byte"
    size = 256

    def encode(self, text: str) -> UInt[np.ndarray, " tokens"]:
        return np.frombuffer(text.encode(), np.uint8)

    def decode(self, ids: Iterable[int]) -> str:
        """Bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return bytes(int(i) for i in ids).decode(errors="replace")  # not an array's memory


class Words:
    """Whitespace-separated words; an id is the rank of a word in ``words``.

    ``decode(encode(text))`` is the text with its whitespace normalised, and ``<unk>`` for every
    word outside the vocabulary.

    Args:
      words: without repeats.
      lower: fold texts to lower case first; ``words`` are taken as they are.
    """

    unit: Literal["word"] = "word"

    def __init__(self, words: Sequence[str], *, lower: bool = False):
        self.words = list(words)
        self.lower = lower
        self.size = len(self.words)
        self._dtype = _smallest_dtype(self.size)
        self._ids = {word: i for i, word in enumerate(self.words)}
        self._unknown = self._ids.get(UNKNOWN, -1)

    @classmethod
    def count(cls, texts: Iterable[str], *, lower: bool = False) -> "Words":
        """Every word of ``texts``, the most frequent first (adaptive softmax needs that order).

        Words of one frequency stand in the order of their first appearance.
        """
        counts: collections.Counter[str] = collections.Counter()
        for text in texts:
            counts.update(split_words(text, lower=lower))
        return cls([word for word, _ in counts.most_common()], lower=lower)

    def encode(self, text: str) -> UInt[np.ndarray, " tokens"]:
        """
        Raises:
          ValueError: at a word outside the vocabulary, if ``<unk>`` is outside too.
        """
        words = split_words(text, lower=self.lower)
        # All in C: a loop in Python takes twice the time.
        found = map(self._ids.get, words, itertools.repeat(self._unknown))
        ids = np.fromiter(found, np.int64, len(words))
        if self._unknown < 0 and ids.size and ids.min() < 0:
            raise ValueError(
                f"every word must be in the vocabulary, because {UNKNOWN} is not; "
                f"got {words[ids.argmin()]!r}"
            )
        return ids.astype(self._dtype)

    def decode(self, ids: Iterable[int]) -> str:
        """Words joined by blanks, lines ended by newlines."""
        words = (self.words[i] for i in ids)
        text = " ".join("\n" if word == END_OF_LINE else word for word in words)
        return re.sub(" ?\n ?", "\n", text)


class Subwords:
    """The pieces of a `tokenizer.json`, through the library tokenizers (extra ``text``).

    A text is encoded line by line, each with its newline, so that the ids of a corpus do not
    depend on where it is cut into chunks; special tokens are not added.

    Args:
      path: the tokenizer file. Truncation and padding that it may ask for are switched off.
    Raises:
      ImportError: without tokenizers.
      FileNotFoundError: if there is no such file.
      ValueError: if it is not a tokenizer file.
    """

    unit: Literal["subword"] = "subword"

    def __init__(self, path: str | os.PathLike):
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError(
                "jdeq.data: a tokenizer file needs the library tokenizers: pip install -e "
                "'.[text]' in the checkout of jdeq"
            ) from error
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"jdeq.data: tokenizer must be a tokenizer.json file; got {os.fspath(path)!r}, "
                "which is not a file"
            )
        content = Path(path).read_bytes()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(
                "jdeq.data: tokenizer must be a tokenizer.json file; "
                f"got {os.fspath(path)!r}: {error}"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Not the number of pieces: some files leave ids out.
        self.size = 1 + max(self._tokenizer.get_vocab().values())
        self._dtype = _smallest_dtype(self.size)
        self.sha256 = hashlib.sha256(content).hexdigest()

    def encode(self, text: str) -> UInt[np.ndarray, " tokens"]:
        *lines, rest = text.split("\n")
        lines = [line + "\n" for line in lines] + ([rest] if rest else [])
        pieces = self._tokenizer.encode_batch_fast(lines, add_special_tokens=False)
        return np.array(list(itertools.chain.from_iterable(p.ids for p in pieces)), self._dtype)

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


def _smallest_dtype(size: int) -> np.dtype:
    return np.dtype(np.uint16 if size <= 2**16 else np.uint32)
