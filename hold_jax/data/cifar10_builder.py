"""CIFAR-10 for TFDS without TensorFlow.

The `cifar10` of TFDS needs TensorFlow to unpack the archive and to encode the pictures. This builder downloads through
TFDS, which verifies the official SHA-256, and uses the standard library and Pillow for the rest. Importing this module
imports tensorflow_datasets.
"""

import io
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar

(URL,) = cifar.Cifar10.url_infos or []
_FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
_ROW_BYTES = 1 + 3 * 32 * 32


class HoldCifar10(tfds.core.GeneratorBasedBuilder):
    """CIFAR-10, 50,000 training and 10,000 test pictures, uint8 32x32x3."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The binary version of CIFAR-10."}  # noqa: RUF012
    url_infos = cifar.Cifar10.url_infos

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        # Download only: the extractor of TFDS needs TensorFlow.
        archive = dl_manager.download(URL)
        return {split: self._generate_examples(archive, files) for split, files in _FILES.items()}

    def _generate_examples(self, archive: Any, files: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        with tarfile.open(archive) as tar:
            for file in files:
                member = tar.extractfile(f"cifar-10-batches-bin/{file}")
                assert member is not None, "TFDS has verified the archive"
                rows = np.frombuffer(member.read(), np.uint8)
                for i, row in enumerate(rows.reshape(-1, _ROW_BYTES)):
                    picture = Image.fromarray(row[1:].reshape(3, 32, 32).transpose(1, 2, 0))
                    png = io.BytesIO()
                    picture.save(png, "PNG")
                    png.seek(0)
                    yield f"{file}_{i:05d}", {"image": png, "label": int(row[0])}
