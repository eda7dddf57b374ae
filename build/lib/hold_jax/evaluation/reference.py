"""Reference statistics: what samples are compared with, and of what they were made."""

import dataclasses
import json
import re
import sys
import zipfile
import zlib

import jax
import numpy as np

from hold_jax.data import Dataset
from hold_jax.errors import UserError
from hold_jax.evaluation.feature_network import FeatureNetwork
from hold_jax.evaluation.features import features_of
from hold_jax.metrics.frechet import Moments, moments
from hold_jax.runtime import distributed, storage
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.progress import Progress
from hold_jax.runtime.storage import Path


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
    """

    data: str
    split: str
    count: int
    shape: tuple[int, ...]
    network: str
    identity: str


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """moments of the features; features (N, d) float32, None where a file has moments only (then only the Frechet
    distance can be had); about, None for files of pytorch-fid and score_sde, which do not say."""

    moments: Moments
    features: np.ndarray | None
    about: About | None

    def save(self, path: Path) -> None:
        """Writes an .npz that pytorch-fid reads too (its keys mu and sigma)."""
        arrays = {"mu": self.moments.mean, "sigma": self.moments.cov, "count": np.int64(self.moments.count)}
        if self.features is not None:
            arrays["features"] = self.features
        with storage.writing(path) as file:
            np.savez(file, about=np.array(json.dumps(dataclasses.asdict(self.about))), **arrays)


def about(network: FeatureNetwork, data: Dataset) -> About:
    """What statistics made by `network` of `data` say of themselves."""
    return About(data.name, data.split, len(data), tuple(data.shape), network.name, network.identity)


def stats_path(folder: Path, network: FeatureNetwork, data: Dataset) -> Path:
    """Where the statistics of a run are kept, e.g. `folder`/stats/classifier_digits_train.npz."""
    name = re.sub(r"[^0-9A-Za-z.-]+", "-", data.name)
    return folder / "stats" / f"{network.name}_{name}_{data.split}.npz"


def compute(network: FeatureNetwork, data: Dataset, devices: Devices) -> Reference:
    """The statistics of every example of `data`, with a progress bar."""
    if distributed.is_main():
        print(f"{network.name} features of {data.name}, {data.split}: {len(data):,} examples", file=sys.stderr)
    with Progress(len(data), 0, 1, distributed.is_main(), unit="example") as progress:
        values = features_of(network, data, devices, tick=progress.update).values
    return Reference(moments(values), values, about(network, data))


def prepare(network: FeatureNetwork, data: Dataset, folder: Path, devices: Devices) -> Reference:
    """The statistics in `folder`, computed and kept there unless they are there already, of this network and data."""
    path = stats_path(folder, network, data)
    found = load(path) if storage.is_file(path) else None
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


def load(path: Path) -> Reference:
    """Reads our own files, pytorch-fid's (mu, sigma) and score_sde's (pool_3).

    Raises:
      UserError: if the file is none of these.
    """
    if not storage.is_file(path):
        raise UserError(f"`eval.stats` is {str(path)!r}: no such file; make it with --mode=stats")
    try:
        with storage.opened(path) as opened, np.load(opened, allow_pickle=False) as file:
            names = set(file.files)
            if "pool_3" in names:
                return Reference(moments(file["pool_3"]), np.asarray(file["pool_3"], np.float32), None)
            if not {"mu", "sigma"} <= names:
                raise ValueError(
                    f"it has the arrays {', '.join(sorted(names))}; it must be a file of --mode=stats, "
                    "of pytorch-fid (mu, sigma) or of score_sde (pool_3)"
                )
            # Foreign files do not tell their count, which the distance does not use beyond its being enough.
            count = int(file["count"]) if "count" in names else len(file["mu"]) + 1
            fields = json.loads(str(file["about"])) if "about" in names else None
            about = None if fields is None else About(**fields | {"shape": tuple(fields["shape"])})
            features = file["features"] if "features" in names else None
            return Reference(Moments(count, file["mu"], file["sigma"]), features, about)
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"`eval.stats` {path} cannot be read: {error}") from None


def require_fits(found: Reference, path: Path, network: FeatureNetwork, data: Dataset) -> None:
    """Checks that statistics are of this network, data set and resolution, as far as they say.

    Raises:
      UserError: naming what differs.
    """
    kind = np.uint8 if data.is_image else np.float32
    out = jax.eval_shape(network.apply, network.params, jax.ShapeDtypeStruct((1, *data.shape), kind)).values
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
