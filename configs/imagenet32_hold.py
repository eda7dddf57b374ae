"""Third-order HOLD, critically damped, on ImageNet at 32x32, with the network of configs/cifar10_hold.py.

python main.py --config=configs/imagenet32_hold.py --mode=train --workdir=DIR \
  --config.data.data_dir=FOLDER

Published FID: 1.48 on ImageNet (HOLD's openreview abstract, forum kR3l4Z6BAl; resolution, version of the data, sampler
and calls are not stated where we could read; the arXiv version has CelebA-HQ in its place). Hyper-parameters for it are
not published: these are CIFAR-10's, with a larger batch and without dropout, for 1.28 million pictures.

The data. TFDS has two versions, `tfds:downsampled_imagenet/32x32` and `tfds:imagenet_resized/32x32`, different pictures
(two ways of scaling down): FIDs compare within one version only. TFDS unpacks both with TensorFlow, so neither can be
prepared without it; one prepared elsewhere as array_record is read without:
--config.data.name=tfds:imagenet_resized/32x32 --config.data.data_dir=ITS_ROOT. Hence the default, a file made of
ImageNet's own archives: get Imagenet32_train_npz.zip and Imagenet32_val_npz.zip from image-net.org (an account is
needed), unpack both in FOLDER, and once, in FOLDER (8 GB of memory):

    import glob, numpy as np
    def pictures(files):
        parts = [np.load(f) for f in sorted(files)]
        x = np.concatenate([p["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for p in parts])
        return np.ascontiguousarray(x), np.concatenate([p["labels"] for p in parts]) - 1
    x, y = pictures(glob.glob("train_data_batch_*.npz"))
    x_test, y_test = pictures(["val_data.npz"])
    np.savez("imagenet32.npz", x=x, y=y, x_test=x_test, y_test=y_test)

A folder of the original pictures works too, scaled and cropped as it is read: --config.data.name=folder:PATH, with the
classes' folders in PATH/train and PATH/test.

Hardware: several large GPUs or a TPU slice, with --config.model.dtype=bfloat16. By class:
--config.model.class_conditional=True --config.model.label_dropout=0.1.
"""

from configs import cifar10_hold


def get_config():
    c = cifar10_hold.get_config()
    c.unlock()
    c.data.name = "npz:imagenet32.npz"
    c.model.dropout = 0.0
    c.training.batch_size = 256
    c.training.num_steps = 1_000_000
    return c.lock()
