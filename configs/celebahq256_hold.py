"""Third-order HOLD on CelebA-HQ at 256x256, NCSN++ as in score_sde's and CLD's CelebA-HQ models.

python main.py --config=configs/celebahq256_hold.py --mode=train --workdir=DIR

TFDS cannot download CelebA-HQ by itself (its manual preparation is reported broken): give pictures with
--config.data.name=folder:PATH. Hardware: 8 large GPUs or a TPU slice, with --config.model.dtype=bfloat16.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.unlock()
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
