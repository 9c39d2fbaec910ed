"""Corpora: the ids are those of a naive reading, and a damaged file is one clear error."""

import collections
import json
import math
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdeq.data import corpus as corpus_module
from jdeq.data import load_corpus, load_stdlib
from jdeq.data.vocabulary import Bytes, Subwords, Words

# In the manner of the WikiText files: headings, empty lines, <unk>, words of more than ASCII.
TRAIN = """ \n = Café = \n \n The cat sat on the mat , and the <unk> sat on the cat .
 The cité of Ōsaka @-@ the one — has 2 @,@ 718 cats . \n \n = = Dogs = = \n the the dog\n"""
VALID = " \n = Café = \n A zebra sat on the mat . \n"
TEST = " the dog of Ōsaka \n sat .\n"
FORMATS = ["wiki.{}.tokens", "wiki.{}.raw", "ptb.{}.txt", "{}.txt"]


def write(folder, form="wiki.{}.tokens", train=TRAIN, valid=VALID, test=TEST):
    folder.mkdir(exist_ok=True)
    for split, text in (("train", train), ("valid", valid), ("test", test)):
        (folder / form.format(split)).write_text(text, encoding="utf-8")
    return folder


def naive_words(text):
    return [word for line in text.splitlines() for word in [*line.split(), "<eos>"]]


def naive(train, texts):
    """Vocabulary and ids, the slow way."""
    words = naive_words(train)
    counts = collections.Counter(words)
    vocabulary = sorted(counts, key=lambda w: (-counts[w], words.index(w)))
    known = [[w if w in vocabulary else "<unk>" for w in naive_words(t)] for t in texts]
    return vocabulary, [[vocabulary.index(w) for w in text] for text in known]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])
def test_words_against_a_naive_reading(tmp_path, monkeypatch, form, chunk):
    monkeypatch.setattr(corpus_module, "CHUNK_CHARACTERS", chunk)
    corpus = load_corpus(write(tmp_path / "text", form))
    vocabulary, expected = naive(TRAIN, (TRAIN, VALID, TEST))
    assert corpus.unit == "word"
    assert corpus.vocab_size == len(vocabulary)
    for ids, wanted, text in zip(corpus[:3], expected, (TRAIN, VALID, TEST), strict=True):
        assert isinstance(ids, np.memmap) and ids.dtype == np.uint16
        np.testing.assert_array_equal(ids, wanted)
        plain = [[w if w in vocabulary else "<unk>" for w in t.split()] for t in text.split("\n")]
        assert corpus.decode(ids) == "\n".join(" ".join(line) for line in plain)
        np.testing.assert_array_equal(corpus.encode(text), wanted)
    counts = np.bincount(corpus.train, minlength=corpus.vocab_size)
    assert np.all(np.diff(counts) <= 0) and counts[-1] > 0


def test_units_of_the_splits(tmp_path):
    corpus = load_corpus(write(tmp_path / "text"))
    assert corpus.words_per_token == (1.0, 1.0, 1.0)
    for ratio, ids, text in zip(
        corpus.bytes_per_token, corpus[:3], (TRAIN, VALID, TEST), strict=True
    ):
        assert ratio * len(ids) == pytest.approx(len(text.encode()))


WORD = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=3)
LINE = st.lists(WORD, max_size=6)


@settings(max_examples=50, deadline=None)
@given(st.lists(LINE, min_size=1, max_size=8), st.lists(LINE, min_size=1, max_size=4))
def test_any_words_against_a_naive_reading(train, other):
    train = "".join(" ".join(line) + "\n" for line in [*train, ["<unk>"]])
    other = "".join(" ".join(line) + "\n" for line in other)
    words = Words.count([train])
    vocabulary, (one, two) = naive(train, (train, other))
    assert words.words == vocabulary
    np.testing.assert_array_equal(words.encode(train), one)
    np.testing.assert_array_equal(words.encode(other), two)
    assert words.decode(words.encode(train)) == train


def test_many_words_need_wider_ids(tmp_path):
    text = " ".join(f"w{i}" for i in range(70_000)) + " <unk>\n"
    corpus = load_corpus(write(tmp_path / "text", train=text))
    assert corpus.train.dtype == np.uint32
    np.testing.assert_array_equal(corpus.train, np.arange(70_002))


def test_lower(tmp_path):
    folder = write(tmp_path / "text")
    cased, folded = load_corpus(folder), load_corpus(folder, lower=True)
    assert folded.vocab_size < cased.vocab_size
    np.testing.assert_array_equal(folded.encode("The CAT"), folded.encode("the cat"))
    assert load_corpus(folder).vocab_size == cased.vocab_size  # not taken from the other's cache


def test_a_word_unknown_where_unk_is_unknown_too(tmp_path):
    folder = write(tmp_path / "text", train="a b\n", valid="a\n", test="a\nzebra\n")
    with pytest.raises(ValueError, match="wiki.test.tokens.*<unk> is not; got 'zebra'"):
        load_corpus(folder)
    assert not list((folder / "jdeq-cache").glob("*"))
    write(folder, train="a b\n", valid="a\n", test="b\n")
    assert list(load_corpus(folder).test) == [1, 2]  # a word and <eos>: no <unk> needed


@pytest.fixture
def built(monkeypatch):
    """How often a corpus was encoded."""
    calls = []
    encode = corpus_module._encode_files
    monkeypatch.setattr(
        corpus_module, "_encode_files", lambda *a, **k: (calls.append(1), encode(*a, **k))
    )
    return calls


def same(one, two):
    assert one.vocab_size == two.vocab_size
    assert (one.bytes_per_token, one.words_per_token) == (two.bytes_per_token, two.words_per_token)
    for a, b in zip(one[:3], two[:3], strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_cache_is_used(tmp_path, built):
    folder = write(tmp_path / "text")
    first, second = load_corpus(folder), load_corpus(folder)
    assert len(built) == 1
    same(first, second)
    assert second.decode(second.test) == first.decode(first.test)
    elsewhere = load_corpus(folder, cache=tmp_path / "new" / "folder")
    assert len(built) == 2
    same(first, elsewhere)
    cached = sorted(p.name for p in (tmp_path / "new" / "folder").iterdir())
    ids = ["text-word.test.npy", "text-word.train.npy", "text-word.valid.npy"]
    assert cached == ["text-word.json", *ids]


@pytest.mark.parametrize("name", ["text-word.json", "text-word.train.npy", "text-word.test.npy"])
@pytest.mark.parametrize("damage", ["half", "empty", "missing", "noise"])
def test_a_damaged_cache_is_built_again(tmp_path, built, name, damage):
    folder = write(tmp_path / "text")
    first = load_corpus(folder)
    path = folder / "jdeq-cache" / name
    content = path.read_bytes()
    del first
    if damage == "missing":
        path.unlink()
    else:
        damaged = {"half": content[: len(content) // 2], "empty": b"", "noise": b"\xff" * 99}
        path.write_bytes(damaged[damage])
    again = load_corpus(folder)
    assert len(built) == 2
    np.testing.assert_array_equal(again.train, naive(TRAIN, [TRAIN])[1][0])
    assert path.read_bytes() == content


def test_ids_one_short_are_built_again(tmp_path, built):
    folder = write(tmp_path / "text")
    load_corpus(folder)
    path = folder / "jdeq-cache" / "text-word.valid.npy"
    np.save(path, np.load(path)[:-1])
    assert len(load_corpus(folder).valid) == len(naive_words(VALID))
    assert len(built) == 2


def test_a_changed_file_is_encoded_again(tmp_path, built):
    folder = write(tmp_path / "text")
    old = load_corpus(folder)
    write(folder, valid=VALID.replace("zebra", "mouse"))  # the size is the same
    os.utime(folder / "wiki.valid.tokens", ns=(1, 1))
    load_corpus(folder)
    assert len(built) == 2
    write(folder, train=TRAIN + "the dog\n")
    assert len(load_corpus(folder).train) == len(old.train) + 3
    assert len(built) == 3
    np.testing.assert_array_equal(old.train, naive(TRAIN, [TRAIN])[1][0])  # still mapped


def test_an_interrupted_build_leaves_nothing_that_counts(tmp_path, monkeypatch):
    folder = write(tmp_path / "text")
    encode, calls = Words.encode, []

    def interrupted(self, text):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, text)

    monkeypatch.setattr(Words, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_corpus(folder)
    assert not list((folder / "jdeq-cache").iterdir())
    monkeypatch.undo()
    assert len(load_corpus(folder).test) == len(naive_words(TEST))


@pytest.mark.parametrize("form", FORMATS)
def test_missing_file(tmp_path, form):
    folder = write(tmp_path / "text", form)
    (folder / form.format("valid")).unlink()
    wanted = ", ".join(form.format(split) for split in ("train", "valid", "test"))
    with pytest.raises(FileNotFoundError, match="directory must hold") as error:
        load_corpus(folder)
    assert f"hold {wanted}; got '{folder}', without {form.format('valid')}" in str(error.value)


def test_no_files_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="wiki.train.tokens.*or ptb.train.txt.*none"):
        load_corpus(tmp_path / "nowhere")


def test_two_formats(tmp_path):
    folder = write(write(tmp_path / "text"), "{}.txt")
    with pytest.raises(ValueError, match=r"one format; got wiki.train.tokens.* and train.txt"):
        load_corpus(folder)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "wiki.test.tokens', an empty file"),
        (TEST.encode()[:-5], "wiki.test.tokens', no newline at its end: truncated?"),
        ("caf\u00e9\n".encode("latin-1"), "UTF-8; got .*wiki.test.tokens"),
    ],
)
def test_unreadable_file(tmp_path, content, message):
    folder = write(tmp_path / "text")
    (folder / "wiki.test.tokens").write_bytes(content)
    with pytest.raises(ValueError, match=f"jdeq.data.load_corpus: .*{message}"):
        load_corpus(folder)


def test_a_cache_that_cannot_be_written(tmp_path):
    folder = write(tmp_path / "text")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cache must be a folder that can be written to; got .*file"):
        load_corpus(folder, cache=tmp_path / "file")


@pytest.fixture
def tokenizer(tmp_path):
    """Byte-level BPE, as GPT-2's, trained on the text above."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    made.train_from_iterator([TRAIN], trainer)
    made.enable_truncation(4)  # as some published files have it
    made.enable_padding(length=8)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_subwords(tmp_path, monkeypatch, tokenizer, built, chunk):
    monkeypatch.setattr(corpus_module, "CHUNK_CHARACTERS", chunk)
    folder = write(tmp_path / "text", "wiki.{}.raw")
    corpus = load_corpus(folder, tokenizer=tokenizer)
    assert corpus.unit == "subword"
    assert corpus.vocab_size == len(json.loads(tokenizer.read_text())["model"]["vocab"])
    for i, text in enumerate((TRAIN, VALID, TEST)):
        ids = corpus[i]
        assert ids.dtype == np.uint16 and len(ids) < len(text.encode())
        assert corpus.decode(ids) == text  # nothing lost: neither to chunks nor to truncation
        np.testing.assert_array_equal(ids, corpus.encode(text))
        assert corpus.bytes_per_token[i] * len(ids) == pytest.approx(len(text.encode()))
        assert corpus.words_per_token[i] * len(ids) == pytest.approx(len(naive_words(text)))
    same(corpus, load_corpus(folder, tokenizer=tokenizer))
    assert len(built) == 1
    load_corpus(folder)  # the words have a cache of their own
    load_corpus(folder, tokenizer=tokenizer)
    assert len(built) == 2


def test_another_tokenizer_is_another_corpus(tmp_path, tokenizer, built):
    folder = write(tmp_path / "text")
    first = load_corpus(folder, tokenizer=tokenizer)
    content = json.loads(tokenizer.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-10]
    tokenizer.write_text(json.dumps(content))
    assert len(load_corpus(folder, tokenizer=tokenizer).train) > len(first.train)
    assert len(built) == 2


def test_tokenizer_errors(tmp_path, tokenizer):
    folder = write(tmp_path / "text")
    with pytest.raises(FileNotFoundError, match="tokenizer must be .*nowhere.*not a file"):
        load_corpus(folder, tokenizer=tmp_path / "nowhere")
    (tmp_path / "broken.json").write_text(tokenizer.read_text()[:100])
    with pytest.raises(ValueError, match="tokenizer must be a tokenizer.json.*broken"):
        load_corpus(folder, tokenizer=tmp_path / "broken.json")
    with pytest.raises(ValueError, match="lower must be False with a tokenizer"):
        load_corpus(folder, tokenizer=tokenizer, lower=True)


def test_without_tokenizers(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install -e '.\[text\]'"):
        Subwords(tokenizer)
    load_corpus(write(tmp_path / "text"))


def test_importing_the_readers_does_not_import_tokenizers():
    code = "import sys, jdeq.data; sys.exit('tokenizers' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


@given(st.text())
def test_bytes_round_trip(text):
    codec = Bytes()
    assert codec.decode(codec.encode(text)) == text
    assert codec.decode(codec.encode(text).astype(np.int32)) == text  # as models give them


@pytest.fixture(scope="module")
def stdlib():
    return load_stdlib()


def test_stdlib_is_the_library_split_by_file(stdlib):
    root = Path(sysconfig.get_paths()["stdlib"])
    splits = [split.tobytes() for split in stdlib[:3]]
    for name in ("abc.py", "json/decoder.py", "asyncio/base_events.py", "argparse.py"):
        source = (root / name).read_bytes()
        assert sum(source in split for split in splits) == 1
    assert (stdlib.unit, stdlib.vocab_size) == ("byte", 256)
    assert all(split.dtype == np.uint8 for split in stdlib[:3])
    sizes = np.array([len(split) for split in splits])
    assert sizes.sum() > 5e6
    np.testing.assert_allclose(sizes / sizes.sum(), [0.9, 0.05, 0.05], atol=0.03)
    assert stdlib.bytes_per_token == (1.0, 1.0, 1.0)
    for split, ratio in zip(splits, stdlib.words_per_token, strict=True):
        assert ratio == pytest.approx((len(split.split()) + split.count(b"\n")) / len(split))
    assert "import" in stdlib.decode(stdlib.test)


def test_stdlib_depends_on_the_seed_alone(stdlib):
    again, other = load_stdlib(), load_stdlib(seed=1)
    for one, two in zip(stdlib[:3], again[:3], strict=True):
        np.testing.assert_array_equal(one, two)
    assert len(other.test) != len(stdlib.test)


def test_stdlib_leaves_out_what_is_not_its_source(tmp_path, monkeypatch):
    kept = {"c.py": 0.9, "pkg/b.py": 0.8, "d.py": 0.06, "e.py": 0.01}  # name: hash
    left_out = ["site-packages/f.py", "pkg/__pycache__/g.py", "h.txt", "_sysconfigdata_x.py"]
    for name in [*kept, *left_out]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    monkeypatch.setattr(corpus_module, "_hash", lambda seed, name: kept[name])
    splits = [split.tobytes() for split in load_stdlib()[:3]]
    assert splits == [b"c.py\0pkg/b.py", b"d.py", b"e.py"]


def test_stdlib_cut_to_size(stdlib):
    small = load_stdlib(max_bytes=400_000)
    sizes = [len(split) for split in small[:3]]
    assert 300_000 < sum(sizes) <= 400_000
    for part, whole in zip(small[:3], stdlib[:3], strict=True):
        assert part.tobytes().split(b"\0")[0] in whole.tobytes()


@pytest.mark.parametrize("options", [{"valid_fraction": 0.0}, {"test_fraction": 0.96}])
def test_stdlib_fractions_out_of_range(options):
    with pytest.raises(ValueError, match="must be > 0 and sum to less than 1; got"):
        load_stdlib(**options)


def test_stdlib_too_small():
    with pytest.raises(ValueError, match="must hold at least one file.*max_bytes 10"):
        load_stdlib(max_bytes=10)


def test_perplexity_and_bits_from_nats(tmp_path, tokenizer):
    """A uniform model over words has the word perplexity V in any unit that codes words alike."""
    folder = write(tmp_path / "text")
    words, pieces = load_corpus(folder), load_corpus(folder, tokenizer=tokenizer)
    total = len(words.test) * math.log(words.vocab_size)  # nats for the whole test text
    for corpus in (words, pieces):
        nats = total / len(corpus.test)
        assert math.exp(nats / corpus.words_per_token.test) == pytest.approx(words.vocab_size)
        bits = nats / math.log(2) / corpus.bytes_per_token.test
        assert bits == pytest.approx(total / math.log(2) / len(TEST.encode()))
