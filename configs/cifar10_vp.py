"""score_sde's VP on CIFAR-10 with DDPM++ (2011.13456, "DDPM++ cont. (VP)"): order 1, published FID 2.55.

python main.py --config=configs/cifar10_vp.py --mode=train --workdir=DIR

The published figure: 1000 calls of Euler-Maruyama, the last of which denoises (score_sde's predictor without
corrector), uniform in t down to 1e-3, as sampling is set here; by the probability flow 3.93, and 3.16 bits per
dimension. The network of score_sde is read by: python -m hold_jax.convert --from=score_sde_pytorch (docs/importers.md).
It is a denoiser, so any process of any order samples from it: --mode=sample --config.sde.name=hold. The sub-VP one:
--config.model.parameterization=subvp --config.model.conditioning=subvp_time, published FID 2.61. The deep ones (FID
2.41): --config.model.num_res_blocks=8. Hardware: meant for one large GPU or a TPU slice; 1,300,000 steps.
"""

from hold_jax.app import config as base


def get_config():
    c = base.get_config()
    c.unlock()
    c.sde.name = "vp"
    c.data.name = "tfds:cifar10"
    c.data.image_size = 32
    c.data.flip = True
    c.model.parameterization = "vp"
    c.model.conditioning = "vp_time"
    c.model.channels = 128
    c.model.channel_multipliers = (1, 2, 2, 2)
    c.model.num_res_blocks = 4
    c.model.attention_resolutions = (16,)
    c.model.resblock_type = "biggan"
    c.model.fir = False
    c.model.progressive_input = "none"
    c.model.embedding = "positional"
    c.model.skip_rescale = True
    c.model.dropout = 0.1
    c.loss.time_law = "uniform"
    c.loss.stratified = False
    c.loss.t_min = 1e-5
    c.training.num_steps = 1_300_000
    c.training.report = False  # 50,000 samples take hours: --mode=eval
    c.sampling.name = "euler_maruyama"
    c.sampling.num_steps = 999  # and the denoising: 1000 calls
    c.sampling.grid = "uniform"
    c.sampling.t_min = 1e-3
    c.sampling.batch_size = 128
    c.eval.features = "inception"
    c.eval.likelihood = True
    return c.lock()
