"""A large vocabulary in clusters by frequency: input embedding and softmax from the same tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jdeq import tree
from jdeq.layers.weight_norm import Initializer
from jdeq.types import require_integer


class AdaptiveEmbedding(nn.Module):
    """Embeddings of tokens sorted by frequency, and the softmax over them with the same tables.

        embed(w) = sqrt(width) E_c[w] P_c                    of w's cluster c
        log p(w) = log softmax([h P E_0^T, h C] + b)[w]      in the first cluster, else
                   ... [c] + log softmax(h P_c^T E_c^T + b_c)[w]

    Cluster c holds the tokens ``cutoffs[c-1] <= w < cutoffs[c]`` in ``width // divisor^c``
    dimensions. With a divisor of 1 there are no projections. Else embedding and softmax share
    those of the later clusters; the first cluster has one for each (P, P_0), as in the published
    scripts. Without cut-offs this is one tied softmax.

    Args:
      vocab_size: tokens are 0..vocab_size - 1, the frequent ones first.
      width: of the embeddings and of h.
      cutoffs: increasing, between 1 and vocab_size - 1: the first token of each later cluster.
      divisor: >= 1; every cluster must be left with at least one dimension.
      weight_init: of tables, projections and the clusters' own rows C. Biases start at 0.
      dtype: of the embeddings; None: that of the parameters. Probabilities are in float32 or wider.
    Raises:
      ValueError: when used, for values outside these ranges.
    Source: Grave et al. (2017), Efficient softmax approximation for GPUs; Baevski and Auli (2019),
      Adaptive input representations; the scale and the ties of Dai et al. (2019), Transformer-XL.
    """

    vocab_size: int
    width: int
    cutoffs: Sequence[int] = ()
    divisor: int = 1
    weight_init: Initializer = nn.initializers.normal(0.01)
    dtype: Any = None

    def setup(self):
        self._check()
        edges = (0, *self.cutoffs, self.vocab_size)
        self.clusters = list(zip(edges[:-1], edges[1:], strict=True))
        tables, projections, biases = [], [], []
        zeros = nn.initializers.zeros_init()
        for c, (low, high) in enumerate(self.clusters):
            depth = self.width // self.divisor**c
            tables.append(self.param(f"table{c}", self.weight_init, (high - low, depth)))
            if self.divisor > 1:
                shape = (depth, self.width)
                projections.append(self.param(f"projection{c}", self.weight_init, shape))
            biases.append(self.param(f"bias{c}", zeros, (high - low,)))
        self.tables, self.projections, self.biases = tables, projections, biases
        tails = len(self.cutoffs)
        if self.divisor > 1:
            self.head_projection = self.param("head", self.weight_init, (self.width, self.width))
        if tails:
            self.cluster_rows = self.param("clusters", self.weight_init, (tails, self.width))
            self.cluster_bias = self.param("cluster_bias", zeros, (tails,))

    def __call__(self, tokens: Int[Array, " *shape"]) -> Float[Array, "*shape width"]:
        """Embeddings; NaN for a token beyond the vocabulary.

        Cost: a look-up and a projection in every cluster for every token (static shapes).
        """
        out = jnp.zeros((), self.dtype or self.tables[0].dtype)
        last = len(self.clusters) - 1
        for c, (low, high) in enumerate(self.clusters):
            # Tokens of other clusters look up any row. Nothing bounds the last cluster from above:
            # there alone a look-up may fail.
            rows = jnp.maximum(tokens - low, 0)
            rows = rows if c == last else jnp.minimum(rows, high - low - 1)
            e = jnp.take(self.tables[c].astype(out.dtype), rows, axis=0)
            e = e @ self.projections[c].astype(out.dtype) if self.divisor > 1 else e
            here = tokens >= low if c == last else (tokens >= low) & (tokens < high)
            out = jnp.where(here[..., None] if last else True, e, out)
        return out * jnp.asarray(self.width**0.5, out.dtype)

    def log_probs(self, h: Float[Array, "*shape width"]) -> Float[Array, "*shape vocab"]:
        """Log-probabilities of all tokens.

        Cost: all tables times h; the result has ``vocab_size`` numbers for each h.
        """
        h = h.astype(tree.accumulator(h))
        head = self._head(h)
        size = self.clusters[0][1]
        parts = [head[..., :size]]
        for c in range(1, len(self.clusters)):
            parts.append(head[..., size + c - 1, None] + self._tail(c, h))
        return jnp.concatenate(parts, axis=-1)

    def losses(
        self, h: Float[Array, "*shape width"], labels: Int[Array, " *shape"], *, block: int = 256
    ) -> Float[Array, " *shape"]:
        """``-log p(label)`` in nats; 0 for a negative label, which is none.

        Positions are sorted by the cluster of their label and taken ``block`` at a time, and a
        block computes only the clusters that its labels lie in.

        Args:
          h: float[*shape, width].
          labels: integers; the loss is NaN for one beyond the vocabulary.
          block: positions at a time, >= 1.
        Raises:
          ValueError: if the shapes do not fit.
        Cost: for n positions of which n_c have labels in a later cluster c: the first cluster's
          table times all h, that of c times at most n_c + 2 block of them, all once more in the
          backward pass. Memory: a block of logits of a cluster. Under vmap every block pays
          for every cluster; where a mesh shards the positions, sorting moves them.
        """
        require_integer("jdeq.layers.AdaptiveEmbedding", "block", block, 1)
        if h.shape != (*labels.shape, self.width):
            raise ValueError(
                f"jdeq.layers.AdaptiveEmbedding: h must be [*labels.shape, {self.width}]; got "
                f"{h.shape} with labels {labels.shape}"
            )
        shape, h, labels = labels.shape, h.reshape(-1, self.width), labels.reshape(-1)
        cluster = jnp.sum(labels[:, None] >= jnp.asarray(self.cutoffs, labels.dtype), axis=1)
        order = jnp.argsort(cluster)
        count = len(labels)
        block = min(block, count)
        padding = -count % block
        # The filling has no label: -1.
        sorted_h = jnp.pad(h[order], ((0, padding), (0, 0))).reshape(-1, block, self.width)
        sorted_labels = jnp.pad(labels[order], (0, padding), constant_values=-1)
        losses = jax.lax.map(
            lambda pair: jax.checkpoint(self._block_losses)(*pair),
            (sorted_h, sorted_labels.reshape(-1, block)),
        )
        losses = losses.reshape(-1)[:count]
        return jnp.zeros_like(losses).at[order].set(losses).reshape(shape)

    def _block_losses(self, h, labels):
        h = h.astype(tree.accumulator(h))
        head, size = self._head(h), self.clusters[0][1]
        total = jnp.where(labels < size, _pick(head, labels), jnp.nan)
        for c in range(1, len(self.clusters)):
            low, high = self.clusters[c]
            here = (labels >= low) & (labels < high)

            def tail(h, c=c, low=low):
                return _pick(self._tail(c, h), labels - low)

            own = jax.lax.cond(here.any(), tail, lambda h, like=total: jnp.zeros_like(like), h)
            total = jnp.where(here, head[:, size + c - 1] + own, total)
        return jnp.where(labels < 0, 0.0, -total)

    def _head(self, h):
        """Log-probabilities of the first cluster's tokens and of the later clusters."""
        h_first = h @ self.head_projection if self.divisor > 1 else h
        logits = h_first @ self.tables[0].T + self.biases[0]
        if len(self.clusters) > 1:
            rows = h_first @ self.cluster_rows.T + self.cluster_bias
            logits = jnp.concatenate([logits, rows], axis=-1)
        return jax.nn.log_softmax(logits)

    def _tail(self, c, h):
        """Log-probabilities of the tokens of cluster c, given the cluster."""
        h = h @ self.projections[c].T if self.divisor > 1 else h
        return jax.nn.log_softmax(h @ self.tables[c].T + self.biases[c])

    def _check(self):
        name = "jdeq.layers.AdaptiveEmbedding"
        for option in ("vocab_size", "width", "divisor"):
            require_integer(name, option, getattr(self, option), 1)
        edges = (0, *self.cutoffs, self.vocab_size)
        if any(a >= b for a, b in zip(edges[:-1], edges[1:], strict=True)):
            raise ValueError(
                f"{name}: cutoffs must increase between 0 and vocab_size={self.vocab_size}, "
                f"exclusive; got {tuple(self.cutoffs)}"
            )
        if self.width < self.divisor ** len(self.cutoffs):
            raise ValueError(
                f"{name}: width must be >= divisor^len(cutoffs) = "
                f"{self.divisor ** len(self.cutoffs)}, to leave each cluster a dimension; "
                f"got {self.width}"
            )


def _pick(log_probs: Float[Array, "block tokens"], at: Int[Array, " block"]) -> Array:
    """Entry ``at`` of each row, any entry where it lies outside."""
    at = jnp.clip(at, 0, log_probs.shape[-1] - 1)
    return jnp.take_along_axis(log_probs, at[:, None], axis=-1)[:, 0]
