"""A trained model as one file: ``python -m experiments.export --workdir DIR [--output FILE]``.

The file is a program of `jax.export` with the parameters inside it, for batches of any size. To
load it takes jax and flatbuffers, neither flax nor jdeq:

    import pathlib
    import jax.export

    model = jax.jit(jax.export.deserialize(pathlib.Path(FILE).read_bytes()).call)
    outputs = model(inputs)

The inputs are like the run's test examples: tokens; images as ``(pixels - mean) / std``, with what
is printed and stands in FILE.json under "pixels"; or numbers. The outputs
are a dict: logits; nfe, residual and status of the solve of each image, or of each token where the
model solves causally. A model with a memory reads each example without one. Beside the file,
FILE.json says what is in it and how it scores on the test examples.
"""

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flatbuffers  # noqa: F401  jax.export needs it to serialize, and jax does not bring it
import jax
from jax import export
from rich.console import Console

import jdeq
from experiments import run_report, stopping, trained, workdir
from experiments.build import Run, gives_losses
from experiments.cli import command
from experiments.config import ConfigError
from experiments.task import Pixels, Task
from jdeq.data import Dataset
from jdeq.layers.convolution import made_for
from jdeq.training import make_eval_step

_LARGEST = 2**31  # bytes in a file: the offsets inside it have 31 bits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line."""

    workdir: pathlib.Path
    """Directory of a run of experiments.train."""
    output: pathlib.Path | None = None
    """The file to write, not there yet; None: model.jaxexport in the workdir."""
    rtol: float | None = None
    """Tolerance that each sample is solved to, in at most 50 evaluations of the cell (50 steps of
    NewtonKrylov); None, without a budget: stop as in training."""
    budget: int | None = None
    """Hard stop: the state after exactly so many evaluations of the cell. One more measures its
    residual, and nfe counts it."""
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] | None = None
    """Where the program can run; None: on the platform it is exported on."""


def run(arguments: Arguments) -> int:
    """Restore, export, measure what a user would load, write it, print a table."""
    console = Console(highlight=False)
    output = arguments.output or arguments.workdir / workdir.EXPORT_FILE
    facts_file = output.with_name(output.name + ".json")
    for path in (output, facts_file):
        if path.exists():
            raise ConfigError(f"output {path} is there already; nothing was changed")
    if arguments.output and not output.parent.is_dir():
        raise ConfigError(f"output must be in a directory that is there; got {output}")
    loaded, restored = trained.load(arguments.workdir, console)
    model, stop = _stopped(loaded, arguments)
    task = _without_memory(loaded.task)
    here = export.default_export_platform()
    # On one device, or the program would be one for as many as the parameters are on.
    variables = jax.device_put(jax.device_get(restored.state.averaged_variables), jax.devices()[0])
    content = serialize(
        model, variables, task.test_inputs(1), platforms=arguments.platforms or (here,)
    )
    program = export.deserialize(content)

    by_labels, numbers = gives_losses(model), task.regression
    live = make_eval_step(model, by_labels=by_labels, squared_error=numbers)
    rows = {"live": task.evaluate(live, variables)}
    if here in program.platforms:
        loaded_model: Any = _Loaded(program)
        step = make_eval_step(loaded_model, squared_error=numbers)
        # A vocabulary that is too large for the logits of a batch is not for those of a row.
        rows["file"] = task.evaluate(step, {}, batch_size=1 if by_labels else None)
    config_file = arguments.workdir / workdir.CONFIG_FILE
    facts = {
        "run": arguments.workdir.resolve().name,
        "config_sha256": hashlib.sha256(config_file.read_bytes()).hexdigest(),
        "model": type(loaded.config.model).__name__,
        "data": loaded.task.data,
        "step": int(restored.state.step),
        "jax": jax.__version__,
        "platforms": program.platforms,
        "input": _described(program.in_avals[0]),
        "pixels": task.pixels and task.pixels._asdict(),
        "outputs": {name: _described(aval) for name, aval in _outputs(program).items()},
        "statuses": {status.value: status.name for status in jdeq.Status},
        "stop": stop,
        "test": rows,
    }
    workdir.write_bytes(output, content)
    workdir.write_text(facts_file, json.dumps(facts, indent=2) + "\n")

    console.print(
        f"{output}: step {facts['step']} of {loaded.total_steps}, stop: {stop['stop']}, for "
        f"{', '.join(program.platforms)}, {len(content):,} bytes; {task.test_examples} test "
        "examples",
        soft_wrap=True,
    )
    shared = rows["live"].keys()  # there is no accuracy where the live model gives losses
    lines = [{"model": name} | {key: rows[name][key] for key in shared} for name in rows]
    run_report.show_rows(lines, console, key="model")
    if len(rows) == 1:
        console.print(f"not tried: it does not run on this platform, {here}")
    console.print(_snippet(output, program, task.pixels), markup=False, soft_wrap=True)
    return 0


def serialize(
    model: Any, variables: dict[str, Any], inputs: Any, *, platforms: Sequence[str]
) -> bytearray:
    """``model`` on inputs like these, of any batch size, as a program with ``variables`` inside.

    Raises:
      ConfigError: if there are too many of them.
    """
    # A program holds every array once, however often it is read.
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    if size >= _LARGEST:
        raise ConfigError(
            f"workdir must hold a model of less than {_LARGEST / 2**30:g} GiB to be exported; got "
            f"{size / 2**30:.1f} GiB"
        )

    # A Solution would have to be registered wherever the program is loaded; a dict need not.
    def predict(inputs):
        logits, solution = model.apply(variables, inputs)
        return {"logits": logits, **solution.stats._asdict()}

    (batch,) = export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, *inputs.shape[1:]), inputs.dtype)
    with made_for(platforms):
        return export.export(jax.jit(predict), platforms=platforms)(shape).serialize()


class _Loaded(NamedTuple):
    """A program in the form of a model, to be evaluated like one."""

    program: export.Exported

    def apply(self, variables, inputs):
        del variables  # they are in the program
        outputs = dict(self.program.call(inputs))
        logits = outputs.pop("logits")
        return logits, jdeq.Solution(None, jdeq.SolverStats(**outputs), None)


def _stopped(loaded: Run, arguments: Arguments) -> tuple[Any, dict[str, Any]]:
    """The model as it is to be solved, and where that stops."""
    rtol, budget = arguments.rtol, arguments.budget
    asked = {"rtol": rtol, "budget": budget}
    asked = {name: value for name, value in asked.items() if value is not None}
    model = loaded.model
    if not loaded.implicit:
        for name, value in asked.items():
            raise ConfigError(f"{name} must be None for an explicit model; got {value}")
        return model, {"stop": "explicit"}
    if not asked:
        return model, {"stop": "training", "rtol": model.rtol, "max_steps": model.max_steps}
    if len(asked) == 2:
        raise ConfigError(f"rtol and budget must not both be given; got {rtol} and {budget}")
    trained.stops(
        loaded, () if budget is None else (budget,), () if rtol is None else (rtol,)
    )  # refuses what cannot be
    name = f"after {budget}" if rtol is None else f"rtol {rtol:g}"
    stop = {"stop": name, **asked}
    model = model.clone(**stopping.stop_options(model, stop))
    return model, stop | {"max_steps": model.max_steps}


def _without_memory(task: Task) -> Task:
    """The test examples in segments, each an example of its own, where that is how they are read:
    with a memory, which an exported model does not have.
    """
    if task.segment is None:
        return task
    test = Dataset(*(leaf.reshape(-1, task.segment) for leaf in task.test))
    return dataclasses.replace(task, test=test, segment=None)


def _outputs(program: export.Exported) -> dict[str, Any]:
    return jax.tree.unflatten(program.out_tree, program.out_avals)


def _described(aval: Any) -> dict[str, Any]:
    """Shape and dtype for JSON; a size that is open is named."""
    shape = [size if isinstance(size, int) else str(size) for size in aval.shape]
    return {"shape": shape, "dtype": str(aval.dtype)}


def _snippet(output: pathlib.Path, program: export.Exported, pixels: Pixels | None) -> str:
    (inputs,) = program.in_avals
    images = ""
    if pixels is not None:
        mean, std = ([float(f"{value:.7g}") for value in part] for part in pixels[1:])
        images = (
            "  import numpy as np\n"
            f"  mean, std = np.array({mean}), np.array({std})\n"
            "  inputs = ((pixels - mean) / std).astype(np.float32)"
            f"  # pixels in 0..{pixels.largest}\n"
        )
    return (
        "Load it with jax and flatbuffers alone:\n"
        "  import pathlib\n"
        "  import jax.export\n"
        f"  content = pathlib.Path({str(output)!r}).read_bytes()\n"
        "  model = jax.jit(jax.export.deserialize(content).call)\n"
        f"{images}"
        f"  outputs = model(inputs)  # {inputs} -> {', '.join(_outputs(program))}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command("export", Arguments, run, argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
