"""Which devices hold what: the mesh, the placement of a training state on it, and of a batch."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jdeq.training.state import TrainState
from jdeq.types import require_integer

PyTree = Any

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
"""The mesh axes that split a batch: examples are spread over both, parameters over "fsdp" only."""
_SMALLEST = 1024  # elements; smaller leaves cost more to gather than to keep


def make_mesh(
    *, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Devices as a mesh with the automatic axes "data", "fsdp" and "tensor".

    Args:
      data: devices along which only the batch is split.
      fsdp: devices along which the batch is, and parameters and optimiser are, split.
      tensor: devices along which the matrices of a layer are split.
      devices: by default all of all processes. One of the three may be -1: as many as there are.
    Raises:
      ValueError: if a number is neither >= 1 nor -1, more than one is -1, or their product is not
        the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes: dict[str, int] = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    for name, size in sizes.items():
        if size != -1:
            require_integer("jdeq.training.make_mesh", name, size, 1)
    known = math.prod(size for size in sizes.values() if size != -1)
    open_ = [name for name, size in sizes.items() if size == -1]
    if len(open_) > 1:
        raise ValueError(
            f"jdeq.training.make_mesh: at most one of data, fsdp, tensor may be -1; got {sizes}"
        )
    if open_ and len(devices) % known == 0:
        sizes[open_[0]] = len(devices) // known
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            "jdeq.training.make_mesh: data * fsdp * tensor must be the number of devices, "
            f"{len(devices)}; got {sizes}"
        )
    auto = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=auto, devices=devices)


def partition_spec(
    path: str, shape: tuple[int, ...], mesh: Mesh, rules: Mapping[str, int]
) -> PartitionSpec:
    """How a parameter is split: one axis over "tensor" where a rule says so, and the largest other
    one over "fsdp".

    Args:
      path: names joined by "/", "deq/cell/up/kernel".
      shape: of the leaf. An axis that the mesh axis does not divide is not split, nor is a leaf of
        fewer than 1024 elements.
      rules: by regular expression, searched in ``path``, the axis to split over "tensor"; the
        first that is found counts.
    Raises:
      ValueError: if a rule names an axis that the leaf does not have.
    """
    spec: list[str | None] = [None] * len(shape)
    if math.prod(shape) < _SMALLEST:
        return PartitionSpec()
    found = next((axis for rule, axis in rules.items() if re.search(rule, path)), None)
    if found is not None:
        if not -len(shape) <= found < len(shape):
            raise ValueError(
                f"jdeq.training.partition_spec: rules must name an axis of {path}, which has the "
                f"shape {shape}; got {found}"
            )
        if mesh.shape["tensor"] > 1 and shape[found] % mesh.shape["tensor"] == 0:
            spec[found] = "tensor"
    free = [i for i, size in enumerate(shape) if not spec[i] and size % mesh.shape["fsdp"] == 0]
    if free and mesh.shape["fsdp"] > 1:
        spec[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*spec)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a training state and its batches live.

    Parameters, and what the optimiser keeps of each, are split by `partition_spec`; the collection
    "memory" by its rows, as the batch; the rest is on every device.

    Args:
      mesh: from `make_mesh`.
      rules: the splits over "tensor", see `partition_spec`.
    """

    mesh: Mesh
    rules: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def batch(self) -> NamedSharding:
        """Of every leaf of a batch: rows over "data" and "fsdp"."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    @property
    def replicated(self) -> NamedSharding:
        """On every device, whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch_parts(self) -> int:
        """Into how many parts a batch is split."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    def state(self, abstract: TrainState) -> TrainState:
        """The placement of each leaf of a state with these shapes."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.placed(abstract))

    def placed(self, abstract: TrainState) -> TrainState:
        """The same shapes and dtypes with their placement: what a restore asks for."""
        leaves = jax.tree_util.tree_leaves_with_path(abstract.params)
        by_path = {_joined(path): leaf.shape for path, leaf in leaves}

        def place(path, leaf):
            field, *rest = _joined(path).split("/")
            spec = PartitionSpec()
            if field == "params":
                spec = self._spec("/".join(rest), leaf.shape)
            elif field == "opt_state":
                # A statistic of a parameter has its path at the end, and its shape.
                tails = ("/".join(rest[i:]) for i in range(len(rest)))
                owner = next((t for t in tails if by_path.get(t) == leaf.shape), None)
                spec = PartitionSpec() if owner is None else self._spec(owner, leaf.shape)
            elif field == "model_state" and rest[0] == "memory":
                spec = PartitionSpec(BATCH_AXES)
            sharding = NamedSharding(self.mesh, spec)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree_util.tree_map_with_path(place, abstract)

    def gathered(self, params: PyTree) -> PyTree:
        """Inside jit: parameters as a solve should find them, whole along "fsdp".

        Gathered here, once, and not at every evaluation of a cell.
        """

        def gather(path, leaf):
            spec = self._spec(_joined(path), leaf.shape)
            kept = PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))
            return jax.lax.with_sharding_constraint(leaf, NamedSharding(self.mesh, kept))

        return jax.tree_util.tree_map_with_path(gather, params)

    def rows(self, batch_size: int) -> slice:
        """Which rows of a global batch this process has to make.

        Raises:
          ValueError: if ``batch_size`` is no multiple of `batch_parts`, or if the rows of this
            process's devices do not follow one another.
        """
        if batch_size % self.batch_parts:
            raise ValueError(
                f"jdeq.training.Layout: batch_size must be a multiple of {self.batch_parts}, the "
                f"data * fsdp devices of the mesh; got {batch_size}"
            )
        held = self.batch.addressable_devices_indices_map((batch_size,)).values()
        parts = sorted({part[0].indices(batch_size)[:2] for part in held if part is not None})
        rows = slice(parts[0][0], parts[-1][1])
        if sum(stop - start for start, stop in parts) != rows.stop - rows.start:
            raise ValueError(
                "jdeq.training.Layout: the rows of a process must follow one another; got "
                f"{parts} in process {jax.process_index()}"
            )
        return rows

    def put(self, rows: PyTree, batch_size: int) -> PyTree:
        """The global batch, on the devices, from this process's `rows` of it (numpy arrays)."""

        def put(leaf):
            shape = (batch_size, *leaf.shape[1:])
            return jax.make_array_from_process_local_data(self.batch, np.asarray(leaf), shape)

        return jax.tree.map(put, rows)

    def local(self, tree: PyTree) -> PyTree:
        """Whole copies of global arrays on this process's first device; a collective."""
        whole = jax.jit(lambda t: t, out_shardings=self.replicated)(tree)
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)

    def _spec(self, path: str, shape: tuple[int, ...]) -> PartitionSpec:
        return partition_spec(path, shape, self.mesh, self.rules)


def _joined(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
