"""Text from a trained language model: ``python -m experiments.sample --workdir DIR --prompt TEXT``.

Restores the newest readable checkpoint of the run in DIR, finished or not, and changes nothing.
Prints the prompt and the text after it as it comes.
"""

import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from rich.console import Console

import jdeq
from experiments import trained
from experiments.build import Run
from experiments.cli import command
from experiments.config import ConfigError
from experiments.data import CorpusData, StdlibData
from jdeq.data import Corpus
from jdeq.models import Sampling
from jdeq.models.generation import advance, start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line."""

    workdir: pathlib.Path
    """Directory of a run of experiments.train on text."""
    prompt: str
    """What the text begins with; at least one token."""
    steps: int = 256
    """Tokens to generate."""
    temperature: float = 0.8
    """Divides the log-probabilities; 0 takes the most probable token."""
    top_k: int | None = None
    """Draw from the so many most probable tokens; None: from all."""
    top_p: float = 1.0
    """Draw from the most probable tokens that together reach this probability."""
    stop: str | None = None
    """Text of the token after which to stop; None: go on to the end."""
    seed: int = 0
    """Of the draws."""
    rtol: float | None = None
    """Tolerance of the solves; None: as in training."""
    max_steps: int | None = None
    """Budget of a solve; None: as in training."""
    cached: bool = True
    """Solve for the new position only; --no-cached reads the whole text again for each token."""


def run(arguments: Arguments) -> int:
    """Restore, generate, print."""
    console = Console(highlight=False, stderr=True)
    loaded, restored = trained.load(arguments.workdir, console)
    corpus, model = _corpus(loaded), _model(loaded, arguments)
    prompt = _encode(corpus, "prompt", arguments.prompt)
    stop_token = None
    if arguments.stop is not None:
        stop = _encode(corpus, "stop", arguments.stop)
        if len(stop) > 1:
            raise ConfigError(f"stop must be one token; got {len(stop)}: {arguments.stop!r}")
        stop_token = int(stop[0])
    options = {"sampling": _sampling(arguments), "stop_token": stop_token}
    variables = restored.state.averaged_variables

    @jax.jit
    def first(variables, prompt):
        key = jax.random.key(arguments.seed)
        return start(
            model,
            variables,
            prompt,
            key,
            steps=arguments.steps,
            cached=arguments.cached,
            **options,
        )

    following = jax.jit(functools.partial(advance, model, **options))
    try:
        state = first(variables, prompt[None])
    except ValueError as error:
        raise ConfigError(str(error).replace("cached=False", "--no-cached")) from error
    begin, evaluations, solved = time.perf_counter(), [], []

    def tokens() -> Iterator[int]:
        nonlocal state, begin
        yield int(state.token[0])
        for step in range(arguments.steps - 1):
            if bool(state.done[0]):
                return
            state = following(variables, state)
            yield int(state.token[0])
            evaluations.append(int(state.nfe[0]))
            solved.append(int(state.status[0]) == jdeq.Status.CONVERGED)
            if step == 0:
                begin = time.perf_counter()  # from here on nothing is compiled

    print(arguments.prompt, end="", flush=True)
    _stream(corpus.decode, prompt, tokens())
    print()
    seconds = time.perf_counter() - begin
    if len(evaluations) > 1:
        console.print(
            f"{len(evaluations) + 1} tokens, {(len(evaluations) - 1) / seconds:.1f} a second, "
            f"{np.mean(evaluations):.1f} evaluations a token, {np.mean(solved):.0%} converged"
        )
    return 0


def _stream(
    decode: Callable[[Iterable[int]], str], prompt: np.ndarray, tokens: Iterable[int]
) -> None:
    """Print what each token adds to the text, once it is whole: a character may take several."""
    ids = [int(token) for token in prompt]
    shown = decode(ids)
    for token in tokens:
        ids.append(token)
        text = decode(ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(decode(ids)[len(shown) :], end="", flush=True)


def _corpus(loaded: Run) -> Corpus:
    data = loaded.config.data
    if not isinstance(data, StdlibData | CorpusData):
        raise ConfigError(f"workdir must hold a run on text; its data are {data}")
    return data.corpus()


def _encode(corpus: Corpus, name: str, text: str) -> np.ndarray:
    try:
        tokens = corpus.encode(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    if not len(tokens):
        raise ConfigError(f"{name} must have at least one token; got {text!r}")
    return np.asarray(tokens, np.int32)


def _model(loaded: Run, arguments: Arguments):
    changes = {"rtol": arguments.rtol, "max_steps": arguments.max_steps}
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes and not loaded.implicit:
        raise ConfigError(f"{next(iter(changes))} must be None for an explicit model")
    return loaded.model.clone(**changes)


def _sampling(arguments: Arguments) -> Sampling:
    try:
        return Sampling(
            temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command("sample", Arguments, run, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
