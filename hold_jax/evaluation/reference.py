"""Reference statistics: the data's side of a comparison with samples, and a record of what they were made from."""

import dataclasses
import io
import json
import re
from typing import Any

import jax
import numpy as np

from hold_jax.data import Dataset
from hold_jax.errors import UserError
from hold_jax.evaluation.feature_network import FeatureNetwork
from hold_jax.evaluation.features import features_of
from hold_jax.metrics.frechet import Moments, moments
from hold_jax.runtime import distributed, storage
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.npz import Npz
from hold_jax.runtime.progress import Progress
from hold_jax.runtime.storage import Path

# What a compressed array may take where the file itself is smaller.
_LIMIT_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class About:
    """Where statistics come from.

    Attributes:
      data: name of the data set.
      split: "train" or "test".
      count: examples.
      shape: of one, (H, W, C) or (d,).
      network: name of the feature network.
      identity: of the network and its weights.
      digest: of the data's content (`Dataset.digest`); empty in files of earlier versions.
    """

    data: str
    split: str
    count: int
    shape: tuple[int, ...]
    network: str
    identity: str
    digest: str = ""

    @classmethod
    def from_json(cls, text: str) -> "About":
        """Inverse of the JSON that `Reference.save` writes.

        Raises:
          ValueError: if a field is missing, unknown or of another type.
        """
        fields: Any = json.loads(text)
        types = {"data": str, "split": str, "count": int, "shape": list, "network": str, "identity": str, "digest": str}
        right = isinstance(fields, dict) and types.keys() - {"digest"} <= fields.keys() <= types.keys()
        if not right or not all(type(value) is types[name] for name, value in fields.items()):
            raise ValueError("its `about` is not of this program")
        kept: dict[str, Any] = {**fields, "shape": tuple(fields["shape"])}
        return cls(**kept)


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of features.

    Attributes:
      moments: mean, covariance and count.
      features: (N, d) float32; None for a file that has moments only, which give the Frechet distance alone.
      about: None for files of pytorch-fid and score_sde.
    """

    moments: Moments
    features: np.ndarray | None
    about: About | None

    def save(self, path: Path) -> None:
        """Writes an .npz that pytorch-fid reads too (its keys mu and sigma)."""
        arrays = {"mu": self.moments.mean, "sigma": self.moments.cov, "count": np.int64(self.moments.count)}
        if self.features is not None:
            arrays["features"] = self.features
        if self.about is not None:
            arrays["about"] = np.array(json.dumps(dataclasses.asdict(self.about)))
        with storage.writing(path) as file:
            np.savez(file, **arrays)


def about(network: FeatureNetwork, data: Dataset) -> About:
    """Returns the record of statistics that `network` makes of `data`."""
    return About(data.name, data.split, len(data), tuple(data.shape), network.name, network.identity, data.digest)


def stats_path(folder: Path, network: FeatureNetwork, data: Dataset) -> Path:
    """Returns where the statistics of a run are kept, e.g. `folder`/stats/classifier_digits_train.npz."""
    name = re.sub(r"[^0-9A-Za-z.-]+", "-", data.name)
    return folder / "stats" / f"{network.name}_{name}_{data.split}.npz"


def compute(network: FeatureNetwork, data: Dataset, devices: Devices) -> Reference:
    """Returns the statistics of every example of `data`; shows a progress bar if it takes long."""
    title = f"{network.name} features of {data.name}, {data.split}"
    with Progress(len(data), 0, 1, distributed.is_main(), unit="example", title=title) as progress:
        values = np.asarray(features_of(network, data, devices, tick=progress.update).values)
    return Reference(moments(values), values, about(network, data))


def prepare(network: FeatureNetwork, data: Dataset, folder: Path, devices: Devices) -> Reference:
    """Returns the statistics in `folder`; computes and keeps them unless it has those of this network and content.

    A file that cannot be read is replaced.
    """
    path = stats_path(folder, network, data)
    found = None
    if storage.is_file(path):
        try:
            found = load(path)
        except UserError as error:
            distributed.say(f"{error}: computed again")
    # All processes compute them, or none; the first one may be writing them while another looks.
    usable = distributed.from_first(
        lambda: np.bool_(found is not None and found.about == about(network, data)), np.zeros((), np.bool_)
    )
    if usable:
        return load(path) if found is None else found
    found = compute(network, data, devices)
    if distributed.is_main():
        found.save(path)
    return found


def load(path: Path, argument: str = "eval.stats") -> Reference:
    """Reads the files of this program, of pytorch-fid (mu, sigma) and of score_sde (pool_3).

    Args:
      path: the file.
      argument: what errors call it.

    Raises:
      UserError: if the file is none of these.
    """
    if not storage.is_file(path):
        raise UserError(f"`{argument}` is {str(path)!r}: no such file; make it with --mode=stats")
    try:
        with storage.opened(path) as opened:
            size = opened.seek(0, io.SEEK_END)
            return _from_npz(Npz(opened, max(size, _LIMIT_BYTES)))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"`{argument}` {path} cannot be read: {error}") from None


def _from_npz(file: Npz) -> Reference:
    if "pool_3" in file:
        features = _real(file.read("pool_3"))
        return Reference(moments(features), np.asarray(features, np.float32), None)
    if "mu" not in file or "sigma" not in file:
        raise ValueError(
            f"it has the arrays {', '.join(sorted(file.names)[:8])}; it must be a file of --mode=stats, "
            "of pytorch-fid (mu, sigma) or of score_sde (pool_3)"
        )
    mean, cov = _real(file.read("mu")), _real(file.read("sigma"))
    # Others' files have no count; the distance needs it only to be large enough.
    count = file.read("count") if "count" in file else np.array(mean.size + 1)
    if count.shape != () or not np.issubdtype(count.dtype, np.integer):
        raise ValueError("its `count` is no whole number")
    about = About.from_json(str(file.read("about"))) if "about" in file else None
    features = np.asarray(_real(file.read("features")), np.float32) if "features" in file else None
    if features is not None and (features.shape != (int(count), mean.size) or not np.isfinite(features).all()):
        raise ValueError(f"its `features` are not finite numbers of shape {(int(count), mean.size)}")
    return Reference(Moments(int(count), mean, cov), features, about)


def _real(x: np.ndarray) -> np.ndarray:
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"it holds {x.dtype} where floating numbers are due")
    return x


def require_fits(found: Reference, path: Path, network: FeatureNetwork, data: Dataset) -> None:
    """Checks that statistics are of this network, data set and resolution, as far as the file records them.

    Raises:
      UserError: naming what differs.
    """
    out = jax.eval_shape(network.apply, network.params, jax.ShapeDtypeStruct((1, *data.shape), data.dtype)).values
    if found.moments.mean.size != out.shape[1]:
        raise UserError(
            f"`eval.stats` {path} is of {found.moments.mean.size} features; {network.name} has {out.shape[1]}: "
            "choose the eval.features it was made with, or leave eval.stats unset"
        )
    if found.about is None:
        return
    expected = {"data": data.name, "shape": tuple(data.shape), "network": network.name, "identity": network.identity}
    for name, value in expected.items():
        has = getattr(found.about, name)
        if has != value:
            raise UserError(
                f"`eval.stats` {path} was made with {name} = {has!r}; this evaluation has {value!r}: make it again "
                "with --mode=stats, or leave eval.stats unset"
            )
