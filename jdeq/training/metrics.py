"""Where the numbers of a run go: a file of JSON lines, TensorBoard, the terminal."""

import json
import math
import os
import pathlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.text import Text
from tensorboardX import SummaryWriter

Metrics = dict[str, float]


class Sink(Protocol):
    """Takes the metrics of one kind ("train", "test", "spectrum") after ``step`` steps."""

    def write(self, step: int, kind: str, metrics: Metrics) -> None: ...
    def close(self) -> None: ...


def summarize(records: Sequence[Metrics]) -> Metrics:
    """One record for several steps: a name says how it is put together.

    ``count_*`` are added, ``*_max`` and ``residual_backward`` (a largest value already) keep the
    largest, ``*_seconds`` take the median (a step that compiled does not show), the rest the mean
    over the records that have them.
    """

    def combine(name: str, values: list[float]) -> float:
        if name.startswith("count_"):
            return sum(values)
        if name.endswith("_max") or name == "residual_backward":
            # max() drops or keeps a NaN by its place; one NaN must show
            return math.nan if any(map(math.isnan, values)) else max(values)
        return statistics.median(values) if name.endswith("_seconds") else statistics.fmean(values)

    names = dict.fromkeys(name for record in records for name in record)
    return {n: combine(n, [record[n] for record in records if n in record]) for n in names}


class JsonLines:
    """One JSON object a line, ``{"step": ..., "kind": ..., name: value, ...}``; NaN is null.

    Args:
      path: continued if it exists; lines after ``start_step`` (of a run that went on past its last
        checkpoint) and a line cut short are dropped first.
      start_step: the step the run goes on from.
    """

    def __init__(self, path: pathlib.Path, *, start_step: int):
        kept = [r for r in read_metrics(path) if r["step"] <= start_step] if path.exists() else []
        scratch = path.with_suffix(".tmp")
        scratch.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(scratch, path)
        self._file = path.open("a")

    def write(self, step: int, kind: str, metrics: Metrics) -> None:
        values = {name: v if math.isfinite(v) else None for name, v in metrics.items()}
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a `JsonLines` file; a last line that was cut short is left out.

    Raises:
      ValueError: if another line cannot be read; the file and the line are named.
    """
    records = []
    for number, line in enumerate(pathlib.Path(path).read_text().splitlines(keepends=True), 1):
        if line.endswith("\n"):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} cannot be read: {error}") from error
    return records


class TensorBoard:
    """Scalars "kind/name", and pictures, for TensorBoard.

    Args:
      directory: where event files go.
      start_step: the step the run goes on from; what an earlier file has after it is hidden.
    """

    def __init__(self, directory: pathlib.Path, *, start_step: int):
        self._writer = SummaryWriter(str(directory), purge_step=start_step + 1)

    def write(self, step: int, kind: str, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
        """A picture beside the scalars."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Terminal:
    """A progress bar on a terminal, plain lines elsewhere.

    Args:
      total_steps: the length of the bar.
      start_step: where it starts.
      steps_per_epoch: to show the epoch.
      console: rich's, for its width and whether it is a terminal.
    """

    def __init__(
        self, *, total_steps: int, start_step: int, steps_per_epoch: int, console: Console
    ):
        self._total, self._steps_per_epoch = total_steps, steps_per_epoch
        self._bar = None
        self._print: Callable[[str], None] = lambda line: print(line, flush=True)
        if console.is_terminal:
            self._bar = _Bar(console=console)
            self._task = self._bar.add_task(
                self._epoch(start_step), total=total_steps, completed=start_step
            )
            self._bar.start()
            self._print = lambda line: console.print(line, highlight=False)

    def write(self, step: int, kind: str, metrics: Metrics) -> None:
        if kind == "train" and self._bar is not None:
            self._bar.line = train_line(metrics)
            self._bar.update(self._task, completed=step, description=self._epoch(step))
        elif kind == "train":
            self._print(f"step {step:>5}/{self._total}  {train_line(metrics)}")
        elif kind == "test":
            units = {
                "bits_per_byte": "bits per byte",
                "word_perplexity": "perplexity a word",
                "mean_iou": "mean IoU",
                "rmse": "rmse",
            }
            bits = "".join(f"{units[n]} {metrics[n]:.3f}, " for n in units if n in metrics)
            if "accuracy" in metrics:
                bits += f"accuracy {metrics['accuracy']:.2%}, "
            self._print(
                f"step {step:>5}/{self._total}  test: loss {metrics['loss_nats']:.4f}, "
                f"{bits}nfe {metrics['nfe_forward']:.1f}, "
                f"residual {metrics['residual_mean']:.1e}"
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _epoch(self, step: int) -> str:
        return f"epoch {max(0, step - 1) // self._steps_per_epoch + 1}"


class _Bar(Progress):
    """rich's bar, and a line of metrics below it."""

    line = "compiling"

    def __init__(self, *, console: Console):
        columns = BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn()
        super().__init__("{task.description}", *columns, console=console, expand=True)

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.line)


def train_line(metrics: Metrics) -> str:
    """The metrics of some training steps in one line."""
    rates = (name for name in metrics if name.endswith("_per_second"))
    rate = next(name for name in rates if name != "flops_per_second")
    skipped = f"  skipped {metrics['count_skipped']:.0f}" if metrics["count_skipped"] else ""
    accuracy = f"acc {metrics['accuracy']:6.1%}  " if "accuracy" in metrics else ""
    return (
        f"loss {metrics['loss_nats']:.3f}  {accuracy}"
        f"nfe {metrics['nfe_forward']:.1f}/{metrics['nfe_backward']:.1f}  "
        f"res {metrics['residual_max']:.0e}/{metrics['residual_backward']:.0e}  "
        f"{metrics[rate]:.0f} {rate.removesuffix('_per_second')}/s{skipped}"
    )
