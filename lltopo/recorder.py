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
from lltopo.schemas import METRICS_PART
from lltopo.sections import SPLITS
from lltopo.storage import Place, place, safe_name
from lltopo.tables import (
    Field,
    LossTable,
    footer,
    metrics_file,
    read_table,
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

        Where this fails it may be tried again: what the epoch's splits still hold is discarded.

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
            (outputs, labels) -> one loss a sample; default: cross-entropy. Where labels are no
            classes or outputs no scores of classes, neither label nor prediction is recorded.
        """
        from lltopo.evaluation import dataset_losses

        tables = {
            split: dataset_losses(model, dataset, batch_size, loss_function)
            for split, dataset in datasets.items()
        }
        for split, table in tables.items():
            self._open.pop((epoch, split), None)
            ids = np.arange(len(table.loss))
            self.update(
                table.loss, ids, split, epoch, labels=table.label, predictions=table.prediction
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
        """Add the losses of some samples; arrays or tensors of equal length.

        Parameters
        ----------
        losses
            One a sample; kept as float32.
        sample_ids
            Integers: the samples' positions in the split, 0 to n - 1.
        split
            ``train`` or ``val``.
        epoch
            Counted from 1; 0 is the network before training.
        labels, predictions
            Classes from 0 to 32767; -1 where unknown.

        Raises
        ------
        InputError
            For an unknown split, a negative epoch, unequal lengths, or classes out of range.
        """
        if split not in SPLITS:
            raise InputError(f"split: is unknown: expected train or val, got {split!r}.")
        if epoch < 0:
            raise InputError(f"epoch: is negative: expected 0, 1, 2, ..., got {epoch}.")
        loss = _flat(losses).astype(np.float32)
        ids = _integers("sample_ids", sample_ids, len(loss))
        classes = [
            np.full(len(loss), -1) if given is None else _classes(name, given, len(loss))
            for name, given in (("labels", labels), ("predictions", predictions))
        ]
        self._open.setdefault((epoch, split), []).append((ids, loss, *classes))

    def close_epoch(
        self, epoch: int, *, learning_rate: float | None = None, seconds: float | None = None
    ) -> None:
        """Write the tables of an epoch's splits, then its metrics.

        Where nothing was recorded of a split since the epoch was closed before, its table and
        metrics stay.

        Parameters
        ----------
        epoch
            All of its updates have been made.
        learning_rate
            Of the epoch, for the metrics.
        seconds
            What the epoch took, for the metrics.

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
        target = metrics_file(self._out, self._run, epoch)
        before = read_table(target).to_pylist() if footer(target) is not None else []
        metrics = [row for row in before if row["split"] not in tables]
        for split, table in tables.items():
            write_losses(self._out / "losses", Field(self._run, split, epoch), table)
            measured = {"learning_rate": learning_rate, "seconds": seconds}
            metrics.append(split_metrics(split, table) | measured)
            del self._open[epoch, split]
        write_table(target, metrics, METRICS_PART)


def split_metrics(split: str, table: LossTable) -> dict[str, Any]:
    """Average a loss table.

    Parameters
    ----------
    split
        Whose losses they are.
    table
        The accuracy is None unless the label and the prediction of every sample are known.

    Returns
    -------
    dict
        ``split``, ``loss`` (the mean, added up in float64) and ``accuracy``.
    """
    accuracy = None
    classes = (table.label, table.prediction)
    if all(column is not None and column.min(initial=0) >= 0 for column in classes):
        accuracy = float(np.mean(table.label == table.prediction))
    return {
        "split": split,
        "loss": float(np.mean(table.loss, dtype=np.float64)),
        "accuracy": accuracy,
    }


def _flat(values: ArrayLike) -> NDArray[Any]:
    """Copy an array, or a tensor with gradients or on a GPU."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.array(values).reshape(-1)


def _integers(name: str, values: ArrayLike, n: int) -> NDArray[np.int64]:
    integers = _flat(values)
    if integers.dtype.kind not in "iu" or len(integers) != n:
        raise InputError(
            f"{name}: do not fit the losses: expected {n} integers, got {len(integers)} of "
            f"{integers.dtype}. Give one for each loss."
        )
    return integers.astype(np.int64)


def _classes(name: str, values: ArrayLike, n: int) -> NDArray[np.int64]:
    classes = _integers(name, values, n)
    most = np.iinfo(np.int16).max
    if n and not (classes.min() >= -1 and classes.max() <= most):
        raise InputError(
            f"{name}: are out of range: expected 0 to {most}, or -1 where unknown, got "
            f"{classes.min()} to {classes.max()}. Leave them out."
        )
    return classes


def _in_sample_order(pieces: list[tuple[NDArray[Any], ...]], what: str) -> LossTable:
    ids, loss, label, prediction = (np.concatenate(column) for column in zip(*pieces, strict=True))
    n = len(ids)
    order = np.argsort(ids, kind="stable")
    if not np.array_equal(ids[order], np.arange(n)):
        counts = np.bincount(ids[(ids >= 0) & (ids < n)], minlength=n)
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
