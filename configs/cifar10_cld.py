"""CLD on CIFAR-10 with its NCSN++ (2112.07068, appendix E): order 2, published FID 2.25 and 3.31 bits per dimension.

python main.py --config=configs/cifar10_cld.py --mode=train --workdir=DIR

The published figures: FID by the probability flow (RK45 at tolerances 1e-5, to t = 1e-3 and one denoising step, as
sampling is set here; 2.23 by Euler-Maruyama, 2000 steps), a bound on the bits. Hybrid score matching, mixed score,
batches of 128 over 16 GPUs, 800,000 steps with a warm-up of 100,000. CLD's network is read by: python -m
hold_jax.convert --from=cld_sgm (docs/importers.md). It sees both blocks of the state, so that only its own process
samples from it. CLD's stochastic samplers: --config.sampling.name=euler_maruyama or strang, this with
--config.sampling.score_time=start (SSCS), --config.sampling.num_steps=1999, --config.sampling.grid=quadratic and
solver, rtol and atol unset.
"""

from hold_jax.app import config as base


def get_config():
    c = base.get_config()
    c.unlock()
    c.sde.name = "cld"
    # The defaults of sde.cld are this run's: 1/M = 4, beta = 4, gamma = 0.04, T = 1.
    c.data.name = "tfds:cifar10"
    c.data.image_size = 32
    c.data.flip = True
    c.model.parameterization = "mixed"
    c.model.conditioning = "log_time"
    c.model.channels = 128
    c.model.channel_multipliers = (1, 2, 2, 2)
    c.model.num_res_blocks = 8
    c.model.attention_resolutions = (16,)
    c.model.resblock_type = "biggan"
    c.model.fir = True
    c.model.progressive_input = "residual"
    c.model.embedding = "fourier"
    c.model.fourier_scale = 16.0
    c.model.skip_rescale = True
    c.model.dropout = 0.1
    c.loss.time_law = "uniform"
    c.loss.stratified = False
    c.loss.t_min = 1e-5
    c.optimizer.warmup_steps = 100_000
    # Theirs sums the loss over the 3,072 values of a picture, ours is their mean: so Adam makes the same steps.
    c.optimizer.clip_norm = 1 / 3072
    c.optimizer.eps = 1e-8 / 3072
    c.training.report = False  # 50,000 samples take hours: --mode=eval
    c.sampling.name = "probability_flow"
    c.sampling.solver = "dopri5"
    c.sampling.rtol = 1e-5
    c.sampling.atol = 1e-5
    c.sampling.t_min = 1e-3
    c.sampling.batch_size = 128
    c.eval.features = "inception"
    c.eval.likelihood = True
    return c.lock()
