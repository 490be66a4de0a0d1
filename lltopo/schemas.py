"""Every Parquet schema of lltopo.

One row a sample in a loss table, one row a pair in a diagram.
"""

from __future__ import annotations

import pyarrow as pa

LOSSES = pa.schema(
    [
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("loss", pa.float32(), nullable=False),
        pa.field("label", pa.int16()),
        pa.field("prediction", pa.int16()),
    ]
)
METRICS_PART = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("accuracy", pa.float64()),
        pa.field("learning_rate", pa.float64()),
        pa.field("seconds", pa.float64()),
    ]
)
METRICS = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        METRICS_PART.field("split"),
        pa.field("epoch", pa.int32(), nullable=False),
        *[METRICS_PART.field(i) for i in range(1, 5)],
    ]
)
DIAGRAM = pa.schema(
    [
        pa.field("birth", pa.float64(), nullable=False),
        pa.field("death", pa.float64(), nullable=False),
        pa.field("birth_sample", pa.int32(), nullable=False),
        pa.field("death_sample", pa.int32(), nullable=False),
        pa.field("essential", pa.bool_(), nullable=False),
    ]
)
SERIES = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("tree", pa.string(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("reference_epoch", pa.int32()),
        pa.field("order", pa.float64(), nullable=False),
        pa.field("degree", pa.float64(), nullable=False),
        pa.field("essential", pa.string(), nullable=False),
        pa.field("n_pairs", pa.int64()),
        pa.field("total_persistence", pa.float64()),
        pa.field("max_persistence", pa.float64()),
        pa.field("wasserstein", pa.float64()),
        pa.field("n_nonfinite", pa.int64(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
    ]
)
CORRELATIONS = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("tree", pa.string(), nullable=False),
        pa.field("measure", pa.string(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        pa.field("differenced", pa.bool_(), nullable=False),
        pa.field("pearson", pa.float64()),
        pa.field("spearman", pa.float64()),
        pa.field("n", pa.int64(), nullable=False),
    ]
)
CONTOURS = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("n_maxima", pa.int64(), nullable=False),
        pa.field("n_minima", pa.int64(), nullable=False),
        pa.field("n_merges", pa.int64(), nullable=False),
        pa.field("n_arcs", pa.int64(), nullable=False),
    ]
)
DISTANCES = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("tree", pa.string(), nullable=False),
        pa.field("order", pa.float64(), nullable=False),
        pa.field("run_a", pa.string(), nullable=False),
        pa.field("epoch_a", pa.int32(), nullable=False),
        pa.field("run_b", pa.string(), nullable=False),
        pa.field("epoch_b", pa.int32(), nullable=False),
        pa.field("distance", pa.float64(), nullable=False),
    ]
)
SURFACE_ROW = pa.schema(
    [
        pa.field(name, pa.float64(), nullable=False)
        for name in ("x", "y", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
    ]
)
SURFACES = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("n_points", pa.int64(), nullable=False),
        pa.field("n_nonfinite", pa.int64(), nullable=False),
        pa.field("centre", pa.float64()),
        pa.field("min", pa.float64()),
        pa.field("q25", pa.float64()),
        pa.field("median", pa.float64()),
        pa.field("q75", pa.float64()),
        pa.field("max", pa.float64()),
        pa.field("total_persistence_join", pa.float64()),
        pa.field("total_persistence_split", pa.float64()),
        pa.field("cosine", pa.float64()),
        pa.field("digest", pa.string(), nullable=False),
    ]
)
COMPARISON = pa.schema(
    [
        pa.field("group_a", pa.string(), nullable=False),
        pa.field("group_b", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("tree", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("n_between", pa.int64(), nullable=False),
        pa.field("n_within", pa.int64(), nullable=False),
        pa.field("distance", pa.float64()),
        pa.field("spread", pa.float64()),
        pa.field("ratio", pa.float64()),
        pa.field("reason", pa.string()),
    ]
)
JUMP_POINTS = pa.schema(
    [
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("train_loss", pa.float64(), nullable=False),
        pa.field("train_accuracy", pa.float64(), nullable=False),
        pa.field("val_loss", pa.float64(), nullable=False),
        pa.field("val_accuracy", pa.float64(), nullable=False),
        pa.field("weights", pa.string(), nullable=False),
    ]
)
JUMP = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("step", pa.float64(), nullable=False),
        JUMP_POINTS.field("epoch"),
        pa.field("x", pa.float64()),
        pa.field("y", pa.float64()),
        *[JUMP_POINTS.field(i) for i in range(1, 5)],
    ]
)
JUMP_DIAGRAMS = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("dimension", pa.int8(), nullable=False),
        pa.field("birth", pa.float64(), nullable=False),
        pa.field("death", pa.float64(), nullable=False),
        pa.field("essential", pa.bool_(), nullable=False),
    ]
)
JUMP_SUMMARY = pa.schema(
    [
        pa.field("run", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("dimension", pa.int8(), nullable=False),
        pa.field("n_points", pa.int64(), nullable=False),
        pa.field("n_pairs", pa.int64(), nullable=False),
        pa.field("n_essential", pa.int64(), nullable=False),
        pa.field("total_persistence", pa.float64(), nullable=False),
        pa.field("max_persistence", pa.float64(), nullable=False),
        pa.field("persistent_entropy", pa.float64(), nullable=False),
    ]
)
