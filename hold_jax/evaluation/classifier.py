"""Features of a small classifier of the data's own labels, for data unlike those that Inception was trained on."""

import functools
import io
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from hold_jax.data import Dataset, Statistics, batches, measure
from hold_jax.errors import UserError
from hold_jax.evaluation.feature_network import FeatureNetwork, Features, digest_of
from hold_jax.evaluation.pixels import standardized
from hold_jax.runtime import distributed, storage
from hold_jax.runtime.mesh import Devices
from hold_jax.runtime.npz import Npz
from hold_jax.runtime.storage import Path

STEPS = 1000
_BATCH = 128
_RATE = 2e-3
_SEED = 0
_FILE = "classifier.npz"
_DIGEST = "data digest"  # the array of the file that identifies the training data
_LIMIT_BYTES = 1 << 28
_PRECISION = jax.lax.Precision.HIGHEST


class Classifier(nn.Module):
    """A small convolutional network, for vectors a perceptron, with 64 features before the last layer.

    Its products are float32 on every backend.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> Features:
        """Features of x (B, H, W, C), (B, length, C) or (B, d), float32 in the model's range."""
        rank = x.ndim - 2
        if rank > 0:
            channels = 32
            x = nn.relu(nn.Conv(channels, (3,) * rank, precision=_PRECISION)(x))
            while min(x.shape[1:-1]) > 4:
                channels = min(2 * channels, 128)
                x = nn.relu(nn.Conv(channels, (3,) * rank, strides=(2,) * rank, precision=_PRECISION)(x))
            x = x.reshape(x.shape[0], -1)
        else:
            x = nn.relu(nn.Dense(128, precision=_PRECISION)(x))
            x = nn.relu(nn.Dense(128, precision=_PRECISION)(x))
        # Bounded and smooth, so that outliers cannot dominate the distance.
        values = jnp.tanh(nn.Dense(64, precision=_PRECISION)(x))
        return Features(values, nn.Dense(self.num_classes, precision=_PRECISION)(values))


def classifier(data: Dataset, folder: Path) -> FeatureNetwork:
    """Returns the classifier in `folder`/classifier.npz; trains it there unless it is of this data.

    The training depends on the content of `data` and on nothing else, so that runs on one machine share one classifier;
    it takes about a minute on a CPU. Between machines it differs by rounding, and so do the figures: `identity` is a
    digest of the parameters.

    Raises:
      UserError: for data without labels, or a file that is damaged.
    """
    if data.num_classes < 2:
        raise UserError(
            f"`eval.features` has a classifier, but {data.name!r} has no labels to train it on; "
            "choose pixels or inception"
        )
    network, statistics = Classifier(data.num_classes), measure(data)
    path = folder / _FILE

    def read_or_train() -> Any:
        if storage.exists(path):
            params = _read(path, network, data)
            if params is not None:
                return params
            distributed.say(f"{path} is of other training data: trained again")
        params = _train(network, statistics, data)
        _write(path, params, data.digest)
        return params

    params = distributed.from_first(read_or_train, _shapes(network, data.shape))
    apply = functools.partial(_apply, network, statistics)
    return FeatureNetwork("classifier", f"classifier {digest_of(params)}", params, apply)


def _apply(network: Classifier, statistics: Statistics, params: Any, x: jax.Array) -> Features:
    found = network.apply({"params": params}, standardized(statistics, x))
    assert isinstance(found, Features)
    return found


def _shapes(network: Classifier, shape: tuple[int, ...]) -> Any:
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"]


def _train(network: Classifier, statistics: Statistics, data: Dataset) -> Any:
    optimizer = optax.adamw(optax.cosine_decay_schedule(_RATE, STEPS), weight_decay=1e-2)

    @Devices.all().jit
    def step(params: Any, state: Any, batch: dict[str, jax.Array], key: jax.Array) -> tuple[Any, Any]:
        def loss(params: Any) -> jax.Array:
            x = standardized(statistics, batch["x"])
            # A little noise: features that do not depend on single values.
            x = x + 0.1 * jax.random.normal(key, x.shape)
            found = network.apply({"params": params}, x)
            assert isinstance(found, Features) and found.logits is not None
            logits = jnp.asarray(found.logits)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.jit(network.init)(jax.random.key(_SEED), jnp.zeros((1, *data.shape)))["params"]
    state = optimizer.init(params)
    for i, batch in enumerate(batches(data, batch_size=_BATCH, seed=_SEED, steps=STEPS)):
        params, state = step(params, state, batch, jax.random.fold_in(jax.random.key(_SEED), i))
    return jax.tree.map(np.asarray, params)


def _write(path: Path, params: Any, digest: str) -> None:
    with storage.writing(path) as file:
        arrays: dict[str, Any] = {**traverse_util.flatten_dict(params, sep="/"), _DIGEST: np.array(digest)}
        np.savez(file, **arrays)


def _read(path: Path, network: Classifier, data: Dataset) -> Any | None:
    """Returns the parameters in a file; None if they were trained on other data, or by a version without digests."""
    try:
        with storage.opened(path) as opened:
            size = opened.seek(0, io.SEEK_END)
            file = Npz(opened, max(size, _LIMIT_BYTES))
            if _DIGEST not in file or str(file.read(_DIGEST)) != data.digest:
                return None
            arrays = {name: file.read(name) for name in file.names if name != _DIGEST}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it, and it is trained again") from None
    params = traverse_util.unflatten_dict(arrays, sep="/")
    found, wanted = (
        jax.tree.map(lambda a: (tuple(a.shape), a.dtype), t) for t in (params, _shapes(network, data.shape))
    )
    return params if found == wanted else None
