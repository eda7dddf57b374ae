"""EDM's ADM network on ImageNet at 64x64 by class (2206.00364): a denoiser at every order, published FID 1.36.

python main.py --config=configs/imagenet64_edm.py --mode=train --workdir=DIR

The published figure is of 511 calls of the stochastic sampler set here. The data are the archive that EDM's
dataset_tool.py writes, or any folder of classes: --config.data.name=folder:PATH. As published: network,
preconditioning, law of the noise, weight of the loss, dropout, batch, learning rate and its ramp, average, length. EDM
computes in float16; here --config.model.dtype=bfloat16 does nearly the same. Its network is read by: python -m
hold_jax.convert --from=edm --config=configs/imagenet64_edm.py (docs/importers.md).
Any process of any order samples from it: --mode=sample --config.sde.order=3.
Hardware: EDM trained on 32 A100 GPUs for 13 days.
"""

from configs import cifar10_edm


def get_config():
    c = cifar10_edm.get_config()
    c.unlock()
    c.data.name = "folder:imagenet-64x64.zip"
    c.data.image_size = 64
    c.data.augment = 0.0
    c.model.class_conditional = True
    c.model.label_place = "embedding"
    c.model.channels = 192
    c.model.channel_multipliers = (1, 2, 3, 4)
    c.model.num_res_blocks = 3
    c.model.attention_resolutions = (32, 16, 8)
    c.model.attention_up = "every"
    c.model.attention_head_dim = 64
    c.model.scale_shift = True
    c.model.resample_shortcut = False
    c.model.skip_rescale = False
    c.model.norm_eps = 1e-5
    c.model.max_period = 10_000 ** (95 / 96)  # frequencies 10000^(-i / 96), i < 96
    c.model.dropout = 0.1
    c.optimizer.learning_rate = 1e-4
    c.optimizer.eps = 1e-8 / 12_288  # theirs sums the loss over the 12,288 values of a picture, ours is their mean
    c.training.batch_size = 4096
    c.training.num_steps = 610_352  # 2,500 million pictures
    c.training.ema_halflife_images = 50_000_000
    c.sampling.num_steps = 255  # and the final denoising: 511 calls
    c.sampling.s_churn = 40 * 255 / 256  # EDM's 40, which it divides by 256 levels
    c.sampling.s_min = 0.05
    c.sampling.s_max = 50.0
    c.sampling.s_noise = 1.003
    c.eval.likelihood = False
    return c.lock()
