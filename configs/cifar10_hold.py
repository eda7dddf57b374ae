"""Third-order HOLD on CIFAR-10 with CLD's NCSN++ (2112.07068, appendix E): the full model.

python main.py --config=configs/cifar10_hold.py --mode=train --workdir=DIR

Any order: --config.sde.order=4; HOLD's own damping: --config.sde.damping=told; CLD, VP: --config.sde.name=cld|vp.
Data: TFDS's cifar10 (a download of 170 MB); --config.data.name=folder:PATH or npz:PATH for your own.
Hardware: meant for one large GPU or a TPU slice, with --config.model.dtype=bfloat16; 800,000 steps.
"""

from hold_jax.app import config as base


def get_config():
    c = base.get_config()
    c.unlock()
    c.data.name = "tfds:cifar10"
    c.data.image_size = 32
    c.data.flip = True
    c.model.channels = 128
    c.model.channel_multipliers = (1, 2, 2, 2)
    c.model.num_res_blocks = 8
    c.model.attention_resolutions = (16,)
    c.model.resblock_type = "biggan"
    c.model.fir = True
    c.model.progressive_input = "residual"
    c.model.embedding = "fourier"
    c.model.skip_rescale = True
    c.model.dropout = 0.1
    c.training.report = False  # 50,000 samples take hours: --mode=eval
    c.sampling.batch_size = 128
    c.eval.features = "inception"
    c.eval.likelihood = True
    return c.lock()
