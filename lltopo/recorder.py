"""Per-sample losses from anybody's training loop.

The one way a loss gets into a table: our own loop (``loop.py``), a user's, and ``.npy`` files of
somebody else's all write through :class:`LossRecorder`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lltopo.errors import InputError
from lltopo.storage import Place, place, safe_name
from lltopo.study import SPLITS
from lltopo.tables import (
    METRICS_PART,
    Field,
    LossTable,
    metrics_file,
    write_losses,
    write_table,
)

if TYPE_CHECKING:
    import torch


class LossRecorder:
    """Writes one run's per-sample losses to ``losses/`` and its metrics to ``metrics/``.

    Either hand over model and data sets (:meth:`record`), or the losses that your own loop
    already has, in any order and any number of pieces (:meth:`update`), and then close the epoch.

    Parameters
    ----------
    out
        A folder or a URI (file, s3, gs).
    run
        The run's name; must be a safe file name.

    Examples
    --------
    >>> recorder = LossRecorder("results", run="mine")
    >>> recorder.record(model, {"train": train_set, "val": val_set}, epoch=1)  # doctest: +SKIP
    """

    def __init__(self, out: str | os.PathLike[str] | Place, run: str) -> None:
        self._out = out if isinstance(out, Place) else place(out)
        self._run = safe_name(run, "run")
        self._open: dict[tuple[int, str], list[tuple[NDArray[Any], ...]]] = {}

    def record(
        self,
        model: torch.nn.Module,
        datasets: Mapping[str, Any],
        epoch: int,
        *,
        batch_size: int = 1000,
        loss_function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Evaluate a model on whole data sets and write their loss tables.

        Parameters
        ----------
        model
            Evaluated in eval mode, without gradients, on its own device; left as it was.
        datasets
            For each of ``train`` and ``val`` a map-style torch data set of (input, label).
        epoch
            Counted from 1; 0 is the network before training.
        batch_size
            Samples a batch; it may change the last bits of a loss.
        loss_function
            (outputs, labels) -> one loss a sample; default: cross-entropy.
        """
        from lltopo.evaluation import dataset_losses

        for split, dataset in datasets.items():
            found = dataset_losses(model, dataset, batch_size, loss_function)
            ids = np.arange(len(found.loss))
            self.update(
                found.loss, ids, split, epoch, labels=found.label, predictions=found.prediction
            )
        self.close_epoch(epoch)

    def update(
        self,
        losses: ArrayLike,
        sample_ids: ArrayLike,
        split: str,
        epoch: int,
        *,
        labels: ArrayLike | None = None,
        predictions: ArrayLike | None = None,
    ) -> None:
        """Add the losses of some samples; arrays or CPU tensors of equal length.

        ``sample_ids`` are positions in the split, 0 to n - 1.
        """
        if split not in SPLITS:
            raise InputError(f"split: is unknown: expected train or val, got {split!r}.")
        if epoch < 0:
            raise InputError(f"epoch: is negative: expected 0, 1, 2, ..., got {epoch}.")
        loss = np.array(losses, dtype=np.float32).reshape(-1)
        ids = np.array(sample_ids).reshape(-1)
        columns = [
            np.full(len(loss), -1) if column is None else np.array(column).reshape(-1)
            for column in (labels, predictions)
        ]
        if ids.dtype.kind not in "iu" or any(len(c) != len(loss) for c in (ids, *columns)):
            raise InputError(
                f"sample_ids: do not fit the losses: expected {len(loss)} integers, got "
                f"{len(ids)} of {ids.dtype}. Give one for each loss."
            )
        self._open.setdefault((epoch, split), []).append((ids, loss, *columns))

    def close_epoch(
        self, epoch: int, *, learning_rate: float | None = None, seconds: float | None = None
    ) -> None:
        """Write the tables of an epoch's splits, then its metrics.

        Raises
        ------
        InputError
            Unless the updates of each split held every sample exactly once.
        """
        splits = [split for split in SPLITS if (epoch, split) in self._open]
        if not splits:
            raise InputError(f"epoch: nothing was recorded for {epoch}. Call update first.")
        tables = {
            split: _in_sample_order(self._open[epoch, split], f"{split}, epoch {epoch}")
            for split in splits
        }
        metrics = []
        for split, table in tables.items():
            write_losses(self._out / "losses", Field(self._run, split, epoch), table)
            metrics.append(split_metrics(split, table) | {"learning_rate": learning_rate})
            metrics[-1]["seconds"] = seconds
            del self._open[epoch, split]
        write_table(metrics_file(self._out, self._run, epoch), metrics, METRICS_PART)


def split_metrics(split: str, table: LossTable) -> dict[str, Any]:
    """Mean loss (float64) and, where labels and predictions are known, accuracy."""
    accuracy = None
    if table.label is not None and table.prediction is not None:
        accuracy = float(np.mean(table.label == table.prediction))
    return {
        "split": split,
        "loss": float(np.mean(table.loss, dtype=np.float64)),
        "accuracy": accuracy,
    }


def _in_sample_order(pieces: list[tuple[NDArray[Any], ...]], what: str) -> LossTable:
    ids, loss, label, prediction = (np.concatenate(column) for column in zip(*pieces, strict=True))
    n = len(ids)
    order = np.argsort(ids, kind="stable")
    if not np.array_equal(ids[order], np.arange(n)):
        counts = np.bincount(ids[(ids >= 0) & (ids < n)].astype(np.int64), minlength=n)
        raise InputError(
            f"sample_ids ({what}): do not cover the split: expected 0 to {n - 1} once each, got "
            f"{int((counts == 0).sum())} missing and {int((counts > 1).sum())} repeated. "
            "Record every sample once before close_epoch."
        )
    label, prediction = label[order], prediction[order]
    return LossTable(
        loss[order],
        None if (label < 0).all() else label.astype(np.int16),
        None if (prediction < 0).all() else prediction.astype(np.int16),
    )
