"""score_sde's VE on CIFAR-10 with NCSN++ (2011.13456, "NCSN++ cont. (VE)"): order 1, published FID 2.38.

python main.py --config=configs/cifar10_ve.py --mode=train --workdir=DIR

The published figure: 1000 steps of the reverse diffusion predictor, Euler-Maruyama in sigma^2, with one Langevin
corrector at signal-to-noise 0.16, uniform in t: 2000 calls. So sampling is set here. score_sde's data are in [0, 1],
ours in [-1, 1], so that its noise 0.01 to 50 is 0.02 to 100 here. Its network is read by: python -m hold_jax.convert
--from=score_sde_pytorch --config=configs/cifar10_ve.py (docs/importers.md). It is a denoiser, so any process of any
order samples from it: --mode=sample --config=configs/cifar10_ve.py:hold --config.sde.order=3. It has seen no noise
below 0.02. The deep one (FID 2.20): --config.model.num_res_blocks=8. Hardware: as cifar10_vp.py; 1,300,000 steps.
"""

import math

from hold_jax.app import config as base

SIGMA_MIN, SIGMA_MAX = 0.02, 100.0


def get_config(process: str = "ve"):
    """The experiment; of another process, :hold and the like, its network alone, to sample from and evaluate."""
    c = base.get_config()
    c.unlock()
    c.sde.name = process
    if process == "ve":
        c.sampling.name = "predictor_corrector"
        c.sampling.predictor = "euler_maruyama"
        c.sampling.corrector_steps = 1
        c.sampling.snr = 0.16
        c.sampling.num_steps = 1000
        c.sampling.grid = "uniform"
        c.sde.sigma_min = SIGMA_MIN
        c.sde.sigma_max = SIGMA_MAX
        # The effective noise is sqrt(sigma(t)^2 - sigma_min^2): this is where it is sigma_min.
        c.loss.t_min = c.sampling.t_min = c.likelihood.t_min = 0.5 * math.log(2) / math.log(SIGMA_MAX / SIGMA_MIN)
    c.model.noise_min = SIGMA_MIN  # what the network is shown for any lower noise of another process
    c.data.name = "tfds:cifar10"
    c.data.image_size = 32
    c.data.flip = True
    c.model.parameterization = "ve"
    c.model.conditioning = "ve_noise"
    c.model.channels = 128
    c.model.channel_multipliers = (1, 2, 2, 2)
    c.model.num_res_blocks = 4
    c.model.attention_resolutions = (16,)
    c.model.resblock_type = "biggan"
    c.model.fir = True
    c.model.progressive_input = "residual"
    c.model.embedding = "fourier"
    c.model.fourier_scale = 16.0
    c.model.skip_rescale = True
    c.model.dropout = 0.1
    c.loss.time_law = "log_uniform"
    c.loss.stratified = False
    # Theirs is half the loss summed over the 3,072 values of a picture, ours their mean: so Adam makes the same steps.
    c.optimizer.clip_norm = 1 / 1536
    c.optimizer.eps = 1e-8 / 1536
    c.training.num_steps = 1_300_000
    c.training.ema_decay = 0.999
    c.training.report = False  # 50,000 samples take hours: --mode=eval
    c.sampling.batch_size = 128
    c.eval.features = "inception"
    c.eval.likelihood = True
    return c.lock()
