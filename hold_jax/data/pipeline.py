"""Batches as pure functions of the step: shuffled for training, in order for evaluation.

The training stream is an endless sequence of epochs. Each epoch is a permutation of the examples, keyed by (seed,
epoch), and step k takes the places [k B, (k+1) B) of the stream. A batch may therefore span two epochs: no example is
dropped, and a batch may be larger than the set. The step is the only state, so that `start_step` costs nothing. Process
p takes the p-th contiguous block of each batch; all blocks in process order are the batch of a single process.
"""

import collections
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from concurrent import futures

import numpy as np

from hold_jax.data.dataset import Dataset
from hold_jax.errors import require

Batch = dict[str, np.ndarray]

# Separate keys for flips: seeds are below 2^32, so the key of a step never equals the key of an epoch.
_FLIP_KEY_OFFSET = 1 << 32


def batches(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    flip: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    steps: int | None = None,
) -> Iterator[Batch]:
    """Yields this process's part of the shuffled training batches, from step `start_step` on.

    Each batch has the arrays of `Dataset.gather`, `x`, `label` and conditions, of b = batch_size / process_count
    examples.

    Args:
      dataset: the data; a set that is not in memory is read ahead by threads.
      batch_size: examples in the global batch, a multiple of `process_count`.
      seed: in [0, 2^32); determines order and flips.
      start_step: the first step to yield; the batches are bitwise those of a run from step 0.
      flip: mirror each picture, with its condition picture, left to right with probability 1/2.
      process_index: index of this process, in [0, process_count).
      process_count: number of processes that share each batch.
      steps: number of batches to yield; None: endless.

    Raises:
      UserError: at the call, for any argument out of range.
    """
    local = _local_rows(dataset, batch_size, process_index, process_count)
    require(0 <= seed < 2**32, "seed", seed, "an integer in [0, 2^32)")
    require(start_step >= 0, "start_step", start_step, "0 or more")
    require(steps is None or steps >= 1, "steps", steps, "a positive integer, or None for no end")
    require(not flip or dataset.is_image, "flip", flip, f"False for {dataset.name!r}, which holds no pictures")
    num = len(dataset)

    # A batch not larger than the set spans at most two epochs; reading threads may be a few steps apart.
    @functools.lru_cache(maxsize=4)
    def permutation(epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num)

    def batch_at(step: int) -> Batch:
        indices = _stream(permutation, num, step * batch_size + local.start, step * batch_size + local.stop)
        batch = dataset.gather(indices)
        if flip:
            rng = np.random.Generator(np.random.Philox(key=[seed + _FLIP_KEY_OFFSET, step]))
            mirrored = rng.random(batch_size)[local] < 0.5
            for name in ("x", "picture"):
                if name in batch:
                    _mirror(batch[name], mirrored)
        return batch

    stop = sys.maxsize if steps is None else start_step + steps
    return _run(dataset, batch_at, start_step, stop)


def eval_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields this process's part of one pass over the examples in order.

    All processes yield the same number of batches of equal size. Besides `x` and `label` a batch has `index` `(b,)`
    int32, the place of each example in the set, and `mask` `(b,)` bool, False in the rows that fill the last batch, in
    which the last example is repeated.

    Args:
      dataset: the data.
      batch_size: examples in the global batch, a multiple of `process_count`.
      start: the first example.
      stop: the example after the last; None: the end of the set.
      process_index: index of this process, in [0, process_count).
      process_count: number of processes that share each batch.

    Raises:
      UserError: at the call, for any argument out of range.
    """
    local = _local_rows(dataset, batch_size, process_index, process_count)
    end = len(dataset) if stop is None else stop
    require(0 <= start <= end <= len(dataset), "start, stop", (start, stop), f"a part of {len(dataset)} examples")

    def batch_at(step: int) -> Batch:
        place = start + step * batch_size + np.arange(local.start, local.stop)
        index = np.minimum(place, end - 1)
        return {**dataset.gather(index), "index": index.astype(np.int32), "mask": place < end}

    return _run(dataset, batch_at, 0, -(-(end - start) // batch_size))


def _local_rows(dataset: Dataset, batch_size: int, process_index: int, process_count: int) -> slice:
    """Checks the common arguments of both pipelines; returns the rows of this process in a global batch."""
    require(len(dataset) >= 1, "dataset", dataset.name, "a set of at least one example")
    require(isinstance(batch_size, int) and batch_size >= 1, "batch_size", batch_size, "a positive integer")
    require(process_count >= 1, "process_count", process_count, "a positive integer")
    require(batch_size % process_count == 0, "batch_size", batch_size, f"a multiple of the {process_count} processes")
    require(0 <= process_index < process_count, "process_index", process_index, f"in [0, {process_count})")
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def _stream(permutation: Callable[[int], np.ndarray], num: int, start: int, stop: int) -> np.ndarray:
    """Returns the example indices at places [start, stop) of the endless stream of epochs."""
    parts = []
    while start < stop:
        epoch, offset = divmod(start, num)
        parts.append(permutation(epoch)[offset : offset + stop - start])
        start += len(parts[-1])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _mirror(x: np.ndarray, which: np.ndarray) -> None:
    """Mirrors the pictures `x[which]` left to right, in place."""
    # `take` is twice as fast as a slice with step -1, which is copied channel by channel.
    x[which] = x[which].take(np.arange(x.shape[2])[::-1], axis=2)


def _run(dataset: Dataset, batch_at: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    """Yields `batch_at(step)` for steps [start, stop); reads ahead with threads if `dataset` is on disk."""
    if dataset.in_memory:
        return map(batch_at, range(start, stop))
    return _read_ahead(batch_at, start, stop)


def _read_ahead(batch_at: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    threads = min(16, max(2, os.cpu_count() or 1))
    steps = iter(range(start, stop))
    pool = futures.ThreadPoolExecutor(threads)
    try:
        ahead = collections.deque(pool.submit(batch_at, step) for step in itertools.islice(steps, threads))
        while ahead:
            batch = ahead.popleft().result()
            ahead.extend(pool.submit(batch_at, step) for step in itertools.islice(steps, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
