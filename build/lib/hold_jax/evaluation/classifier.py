"""Features of a small classifier of the data's own labels, for data that Inception knows nothing of."""

import functools
import hashlib
import zipfile
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from hold_jax.data import Dataset, batches, to_model_range
from hold_jax.errors import UserError
from hold_jax.evaluation.feature_network import FeatureNetwork, Features
from hold_jax.runtime import distributed, storage
from hold_jax.runtime.storage import Path

STEPS = 1000
_BATCH = 128
_RATE = 2e-3
_SEED = 0
_FILE = "classifier.npz"


class Classifier(nn.Module):
    """A small convolutional network for pictures, a perceptron for vectors; 64 features before the last layer."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> Features:
        """Features of x (B, H, W, C) or (B, d), float32 in the model's range."""
        if x.ndim == 4:
            channels = 32
            x = nn.relu(nn.Conv(channels, (3, 3))(x))
            while min(x.shape[1:3]) > 4:
                channels = min(2 * channels, 128)
                x = nn.relu(nn.Conv(channels, (3, 3), strides=(2, 2))(x))
            x = x.reshape(x.shape[0], -1)
        else:
            x = nn.relu(nn.Dense(128)(x))
            x = nn.relu(nn.Dense(128)(x))
        # Bounded and smooth, so that a few far-out samples do not make the distance.
        values = jnp.tanh(nn.Dense(64)(x))
        return Features(values, nn.Dense(self.num_classes)(values))


def classifier(data: Dataset, folder: Path) -> FeatureNetwork:
    """Trains on the labels of `data` (about a minute on a CPU), or takes what lies in `folder`/classifier.npz.

    The training depends on the data and on nothing else, so that runs on one machine share one classifier; between
    machines it differs by rounding, and so do the figures: `identity` tells.

    Raises:
      UserError: for data without labels, or a file that is damaged or was made for other data.
    """
    if data.num_classes < 2:
        raise UserError(
            f"`eval.features` asks for a classifier, but {data.name!r} has no labels to train it on; "
            "choose pixels or inception"
        )
    network = Classifier(data.num_classes)
    path = folder / _FILE

    def read_or_train() -> Any:
        if storage.exists(path):
            return _read(path, network, data.shape)
        params = _train(network, data)
        _write(path, params)
        return params

    params = distributed.from_first(read_or_train, _shapes(network, data.shape))
    return FeatureNetwork(
        "classifier", "frechet_classifier_distance", _identity(params), params, functools.partial(_apply, network)
    )


def accuracy(network: FeatureNetwork, data: Dataset) -> float:
    """The part of `data` (its first 10,000) whose label has the largest logit."""
    batch = data.gather(np.arange(min(len(data), 10_000)))
    logits = jax.jit(network.apply)(network.params, batch["x"]).logits
    return float(np.mean(np.argmax(logits, axis=-1) == batch["label"]))


def _apply(network: Classifier, params: Any, x: jax.Array) -> Features:
    return network.apply({"params": params}, to_model_range(x))


def _shapes(network: Classifier, shape: tuple[int, ...]) -> Any:
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"]


def _train(network: Classifier, data: Dataset) -> Any:
    optimizer = optax.adamw(optax.cosine_decay_schedule(_RATE, STEPS), weight_decay=1e-2)

    @jax.jit
    def step(params: Any, state: Any, batch: dict[str, jax.Array], key: jax.Array) -> tuple[Any, Any]:
        def loss(params: Any) -> jax.Array:
            x = to_model_range(batch["x"])
            # A little noise: features that do not hang on single values.
            x = x + 0.1 * jax.random.normal(key, x.shape)
            logits = network.apply({"params": params}, x).logits
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.jit(network.init)(jax.random.key(_SEED), jnp.zeros((1, *data.shape)))["params"]
    state = optimizer.init(params)
    for i, batch in enumerate(batches(data, batch_size=_BATCH, seed=_SEED, steps=STEPS)):
        params, state = step(params, state, batch, jax.random.fold_in(jax.random.key(_SEED), i))
    return jax.tree.map(np.asarray, params)


def _identity(params: Any) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value))
    return f"classifier {digest.hexdigest()[:16]}"


def _write(path: Path, params: Any) -> None:
    with storage.writing(path) as file:
        np.savez(file, **traverse_util.flatten_dict(params, sep="/"))


def _read(path: Path, network: Classifier, shape: tuple[int, ...]) -> Any:
    try:
        with storage.opened(path) as opened, np.load(opened, allow_pickle=False) as file:
            params = traverse_util.unflatten_dict(dict(file), sep="/")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it, and it is trained again") from None
    shapes = [jax.tree.map(lambda a: tuple(a.shape), tree) for tree in (params, _shapes(network, shape))]
    if shapes[0] != shapes[1]:
        raise UserError(f"{path} was trained for other data; delete it, and it is trained again")
    return params
