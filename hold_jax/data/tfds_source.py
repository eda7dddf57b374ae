"""`tfds:NAME`: pictures of TensorFlow Datasets, read without TensorFlow from ArrayRecord files.

TFDS is imported inside the functions, because the import is slow and no other source needs it.
"""

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from hold_jax.data.dataset import Dataset, Lazy, array_dataset
from hold_jax.data.images import Size, fit_array, sides
from hold_jax.errors import UserError
from hold_jax.runtime import fetch

_FALLBACK_URL = "https://storage.googleapis.com"
_ELSEWHERE = "or use pictures you have with folder:PATH or npz:PATH"
_CHUNK = 256
# Labels that are looked at in a set that is not read into memory, spread over it.
_PROBED = 256


def load(
    name: str,
    *,
    split: str,
    image_size: Size = None,
    channels: int | None = None,
    data_dir: str | None = None,
    memory_limit_bytes: int,
) -> Dataset:
    """Loads the feature `image` and, if there is one, `label`; downloads and prepares the set on first use.

    If a set has no "test" split, its "validation" split is used. `tfds:cifar10` never needs TensorFlow; other sets may
    need it once, for their preparation.

    TFDS gives -1 to an example without a label. A split with such a label, or another that is none of the classes, is
    used without labels, with a warning. Of a set that is not read into memory 256 labels are looked at; a later one is
    said when it is read.

    Args:
      name: "tfds:NAME".
      split: "train" or "test".
      image_size: side of square pictures, or (height, width); None: as in the set.
      channels: 1 or 3; None: as in the set.
      data_dir: folder of the prepared data; None: the default of TFDS.
      memory_limit_bytes: larger sets are not read into memory; a picture is decoded each time it is used.

    Raises:
      UserError: if the set does not exist, has no usable pictures, or cannot be prepared.
    """
    builder = _builder(name, data_dir)
    features = dict(builder.info.features.items()) if hasattr(builder.info.features, "items") else {}
    _check_features(name, features, image_size, channels)
    source = _data_source(name, builder, split)

    native = features["image"].shape
    shape = (*(sides(image_size) or native[:2]), channels or native[2])
    num_classes = getattr(features.get("label"), "num_classes", None) or 0

    read = functools.partial(_read, source, image_size, channels)
    pictures = Lazy(len(source), functools.partial(read, num_classes > 0))
    if len(pictures) * int(np.prod(shape)) > memory_limit_bytes:
        rows = np.unique(np.linspace(0, len(pictures) - 1, _PROBED).astype(int)) if num_classes else ()
        labels = np.array([pictures[int(row)]["label"] for row in rows])
        num_classes = num_classes if _are_classes(name, split, labels, num_classes) else 0
        pictures = Lazy(len(source), functools.partial(_said, functools.partial(read, num_classes > 0), num_classes))
        return Dataset(name, split, pictures, None, shape, num_classes)
    x, labels = _read_all(pictures, shape)
    num_classes = num_classes if _are_classes(name, split, labels, num_classes) else 0
    return array_dataset(name, split, x, labels if num_classes else None, num_classes)


def _read(source: Any, image_size: Size, channels: int | None, labeled: bool, index: int) -> dict[str, Any]:
    example = source[index]
    x = fit_array(example["image"], image_size, channels)
    return {"x": x, "label": int(example["label"]) if labeled else 0}


def _said(read: Callable[[int], dict[str, Any]], num_classes: int, index: int) -> dict[str, Any]:
    example = read(index)
    if num_classes and not 0 <= example["label"] < num_classes:
        _warn_of(example["label"])
    return example


@functools.cache
def _warn_of(label: int) -> None:
    """Warns once. A set that is not in memory is not read through at its start; models without classes go on."""
    logging.getLogger(__name__).warning(
        "an example has the label %d, which is none of the classes: a model with model.class_conditional takes it for "
        "the class of none; remove such examples for it",
        label,
    )


def require_reachable(name: str, urls: Iterable[str]) -> None:
    """Checks that the server of a download can be reached; without this check TFDS retries for minutes.

    Args:
      name: name of the data set, for the error.
      urls: URLs of the download; the first one is tried, through the proxy if there is one.

    Raises:
      UserError: if no connection is accepted within seconds.
    """
    reason = fetch.unreachable(next(iter(urls), _FALLBACK_URL))
    if reason is not None:
        raise UserError(
            f"`name` is {name!r}; it is not prepared in the data_dir, and it cannot be downloaded, because {reason}: "
            f"give the data_dir that has it, {_ELSEWHERE}"
        )


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    asked = name.partition(":")[2]
    directory = os.path.expanduser(data_dir) if data_dir else None
    if asked == "cifar10":
        from hold_jax.data.cifar10_builder import HoldCifar10

        return HoldCifar10(data_dir=directory, file_format="array_record")
    try:
        return tfds.builder(asked, data_dir=directory, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"`name` is {name!r}; TFDS has no data set {asked!r}: see tensorflow.org/datasets") from error
    except ImportError as error:
        raise UserError(f"`name` is {name!r}; TFDS needs a missing package for it ({error}); {_ELSEWHERE}") from error
    except (AssertionError, ValueError) as error:
        raise UserError(f"`name` is {name!r}; TFDS does not accept it: {_first_line(error)}") from error


def _check_features(name: str, features: dict[str, Any], image_size: Size, channels: int | None) -> None:
    image = features.get("image")
    if image is None or len(image.shape) != 3 or np.dtype(image.np_dtype) != np.uint8:
        found = ", ".join(sorted(features)) or "no named ones"
        raise UserError(f"`name` is {name!r}; it needs a feature `image` of uint8 pictures; its features: {found}")
    if image_size is None and None in image.shape[:2]:
        raise UserError(f"`image_size` is None; the pictures of {name!r} differ in size: give an image_size")
    if channels is None and image.shape[2] not in (1, 3):
        raise UserError(f"`channels` is None; the pictures of {name!r} have {image.shape[2]}: give 1 or 3")


def _prepare(name: str, builder: Any) -> None:
    from tensorflow_datasets.core.download import download_manager, util

    urls = list(builder.url_infos or {})
    require_reachable(name, urls)
    more = f" and {len(urls) - 1} more" if len(urls) > 1 else ""
    # TFDS shows the progress itself.
    print(f"fetching {name}: {''.join(urls[:1])}{more} -> {builder.data_path}", file=sys.stderr, flush=True)
    try:
        builder.download_and_prepare()
    except ImportError as error:
        raise UserError(
            f"`name` is {name!r}; preparing this set needs a missing package ({_first_line(error)}): prepare it where "
            f"TensorFlow is installed, with file_format='array_record', and give its data_dir; {_ELSEWHERE}"
        ) from error
    except (OSError, download_manager.NonMatchingChecksumError, util.DownloadError) as error:
        raise UserError(
            f"`name` is {name!r}; download or preparation failed: {_first_line(error)}; try again, {_ELSEWHERE}"
        ) from error


def _data_source(name: str, builder: Any, split: str) -> Any:
    """Returns the random-access source of `split`; prepares the set if it has not been prepared."""
    try:
        return _open(name, builder, split)
    except UserError:
        if builder.info.splits:
            raise
    _prepare(name, builder)
    return _open(name, builder, split)


def _open(name: str, builder: Any, split: str) -> Any:
    found = list(builder.info.splits)
    chosen = split
    if split == "test" and found and "test" not in found and "validation" in found:
        logging.getLogger(__name__).info("%s has no test split; its validation split is used", name)
        chosen = "validation"
    if found and chosen not in found:
        raise UserError(f"`split` is {split!r}; {name!r} has the splits: {', '.join(found)}")
    try:
        return builder.as_data_source(chosen)
    except (NotImplementedError, KeyError, AssertionError) as error:
        raise UserError(
            f"`name` is {name!r}; it cannot be read by index from {builder.data_path}: prepare it in another data_dir "
            f"with file_format='array_record' ({_first_line(error)})"
        ) from error


def _read_all(pictures: Lazy, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    x = np.empty((len(pictures), *shape), np.uint8)
    labels = np.empty(len(pictures), np.int32)

    def read(start: int) -> None:
        for row in range(start, min(start + _CHUNK, len(pictures))):
            example = pictures[row]
            x[row], labels[row] = example["x"], example["label"]

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for _ in pool.map(read, range(0, len(pictures), _CHUNK)):
            pass
    return x, labels


def _are_classes(name: str, split: str, labels: np.ndarray, num_classes: int) -> bool:
    """Returns whether all labels `(n,)` are classes; warns if there are classes, and a label is none of them."""
    others = labels[(labels < 0) | (labels >= num_classes)] if num_classes else labels[:0]
    if len(others):
        logging.getLogger(__name__).warning(
            "%s: %d of %d labels of the %s split are none of the classes 0 to %d, such as %d (TFDS gives -1 to what "
            "has no label): the split is used without labels, for which model.class_conditional must be False",
            *(name, len(others), len(labels), split, num_classes - 1, others[0]),
        )
    return not len(others)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
