"""EDM's network on CIFAR-10 (2206.00364, DDPM++ architecture): a denoiser at every order, published FID 1.97.

python main.py --config=configs/cifar10_edm.py --mode=train --workdir=DIR

The published figure is of 35 calls of Heun's method. As published: network, preconditioning, law of the noise, weight
of the loss, augmentation, dropout, batch, learning rate and its ramp, average, length, sampler (docs/training.md). Its
networks are read by: python -m hold_jax.convert --from=edm (docs/importers.md).
Any process of any order samples from them: --mode=sample --config.sde.order=3.
NCSN++ architecture: --config.model.fir=True --config.model.progressive_input=residual --config.model.embedding=fourier.
Class-conditional (FID 1.79): --config.model.class_conditional=True.
"""

from hold_jax.app import config as base


def get_config():
    c = base.get_config()
    c.unlock()
    c.sde.name = "hold"
    c.sde.order = 1  # effective noise from 0.002 to 80, EDM's
    c.data.name = "tfds:cifar10"
    c.data.image_size = 32
    c.data.augment = 0.12
    c.model.parameterization = "sufficient"
    c.model.conditioning = "log_noise"
    c.model.sigma_data = 0.5
    c.model.channels = 128
    c.model.channel_multipliers = (2, 2, 2)
    c.model.num_res_blocks = 4
    c.model.attention_resolutions = (16,)
    c.model.resblock_type = "biggan"
    c.model.fir = False
    c.model.progressive_input = "none"
    c.model.embedding = "positional"
    c.model.label_place = "features"
    c.model.skip_rescale = True
    c.model.dropout = 0.13
    c.loss.weighting = "edm"
    c.loss.stratified = False
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_images = 10_000_000
    c.optimizer.clip_norm = 0.0
    c.optimizer.eps = 1e-8 / 3072  # theirs sums the loss over the 3,072 values of a picture, ours is their mean
    c.training.batch_size = 512
    c.training.num_steps = 390_625  # 200 million pictures
    c.training.ema_halflife_images = 500_000
    c.training.ema_rampup_ratio = 0.05
    c.training.report = False  # 50,000 samples take hours: --mode=eval
    c.sampling.name = "heun"
    c.sampling.num_steps = 17  # and the final denoising: 35 calls
    c.sampling.grid = "karras"
    c.sampling.batch_size = 128
    c.eval.features = "inception"
    c.eval.likelihood = True
    return c.lock()
