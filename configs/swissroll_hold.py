"""Third-order HOLD on the multimodal Swiss roll in the plane, with the MLP of TOLD++ (2409.07697).

python main.py --config=configs/swissroll_hold.py --mode=train --workdir=runs/swissroll

Hardware: 2 CPU cores. Time: about 2 minutes.
"""

from ml_collections.config_dict import placeholder

from hold_jax.app import config as base


def get_config():
    c = base.get_config()
    c.unlock()
    c.data.name = "swissroll"
    c.model.name = "mlp"
    c.model.parameterization = "gaussian"  # the figures of docs/results/orders.md are of it
    c.model.sigma_data = 1.0
    c.model.fourier_scale = 0.3
    # Four rolls, 0.02 thin: both large noise (which roll) and small noise (where on it) need times.
    c.loss.time_mean = -1.0
    c.loss.time_std = 1.8
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup_steps = 100
    c.optimizer.schedule = "cosine"
    c.training.batch_size = 1024
    c.training.num_steps = 10_000
    c.training.steps_per_call = 50
    c.training.ema_decay = 0.999
    c.training.log_every = 250
    c.training.sample_every = 2500
    c.training.checkpoint_every = 2500
    c.training.keep_every = 0
    # Noise in every step forgives a small network's errors; in the plane calls cost nothing.
    c.sampling.name = "strang"
    c.sampling.grid = "karras"
    c.sampling.num_steps = 400
    c.sampling.num_samples = 10_000
    c.sampling.batch_size = 10_000
    c.sampling.frames = 50
    c.eval.batch_size = 1024
    c.eval.num_samples = placeholder(int)
    c.likelihood.batch_size = 1000
    c.likelihood.probes = 0
    return c.lock()
