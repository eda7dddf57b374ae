"""Third-order HOLD on CelebA-HQ at 256x256, NCSN++ of the widths of score_sde's and CLD's CelebA-HQ models.

python main.py --config=configs/celebahq256_hold.py --mode=train --workdir=DIR --config.data.name=folder:PATH

Published: HOLD and HOLD++ both evaluate on CelebA-HQ-256; their FIDs could not be read for this file. CLD shows samples
and gives no FID (batch 64, 320,000 its; a later, stabler run: AdamW 1e-4, weight decay 0.01, batch 96, 600,000 its,
least time 1e-3). For scale: 7.16 at 4,000 calls (Kim et al. 2022, as 2209.14593 quotes it), 6.99 at about 160 calls
of score_sde's network (DMCMC, 2209.14593).

The data: TFDS cannot download CelebA-HQ by itself (its manual preparation is reported broken, it needs TensorFlow, and
the set has no test split). Of CelebAMask-HQ's archive the folder CelebA-HQ-img holds the same 30,000 faces: put most of
them into PATH/train and the rest into PATH/test; they are scaled as they are read. A set prepared elsewhere as
array_record is the default, tfds:celeb_a_hq/256.

Any order: --config.sde.order=4; another process, or an end time of your own, with --config.sde.sigma_max=None too.
Hardware: 8 large GPUs or a TPU slice, with --config.model.dtype=bfloat16.
"""

from hold_jax.app import config as base


def get_config():
    c = base.get_config()
    c.unlock()
    c.sde.sigma_max = 320.0  # 80 for 64 pixels a side; at 80 the brightness of the samples would vary too little
    c.data.name = "tfds:celeb_a_hq/256"
    c.data.image_size = 256
    c.data.flip = True
    c.model.channels = 128
    c.model.channel_multipliers = (1, 1, 2, 2, 2, 2, 2)
    c.model.num_res_blocks = 2
    c.model.attention_resolutions = (16,)
    c.model.dropout = 0.0
    c.model.remat = True
    c.optimizer.learning_rate = 1e-4
    c.training.batch_size = 64
    c.training.num_steps = 600_000
    c.training.report = False
    c.sampling.num_samples = 16
    c.sampling.batch_size = 16
    c.eval.features = "inception"
    return c.lock()
