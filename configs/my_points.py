"""A start for vectors of your own, of any dimension: points in the plane, tables of numbers, features.

python main.py --config=configs/my_points.py --config.data.name=npz:FILE --mode=train --workdir=runs/my_points

FILE is an .npy with an array (N, d) of floats, or an .npz (docs/your_data.md).
Hardware: 2 CPU cores. Time: about 2 minutes. Change what you like; --mode=show prints every key with its meaning.
"""

from ml_collections.config_dict import placeholder

from hold_jax.app import config as base


def get_config():
    c = base.get_config()
    c.unlock()

    # Data. A tenth of the rows is held out to evaluate. Each coordinate is standardized; samples are in data units.
    c.data.name = "npz:my_points.npy"
    c.data.kind = "vector"
    c.model.class_conditional = False  # True: the array y of an .npz has labels

    # Network: wider (512) and deeper (6) for many dimensions.
    c.model.name = "mlp"
    c.model.width = 256
    c.model.hidden_layers = 4
    c.model.fourier_scale = 0.3  # slow in the noise level: a small network learns more easily

    # Training. Thin structures are learned at small noise levels, so these get more times than usual.
    c.loss.time_mean = -1.0
    c.loss.time_std = 1.8
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 100
    c.optimizer.schedule = "cosine"
    c.training.batch_size = 512
    c.training.num_steps = 5000
    c.training.steps_per_call = 50
    c.training.ema_decay = 0.999
    c.training.log_every = 250
    c.training.sample_every = 1000
    c.training.checkpoint_every = 1000
    c.training.keep_every = 0

    # Samples, their distance to the data, and bits per dimension (the density's, in data units).
    c.sampling.num_samples = 2000
    c.sampling.batch_size = 1000
    c.eval.batch_size = 512
    c.eval.num_samples = placeholder(int)  # None: as many as there are held-out rows
    c.eval.features = "pixels"  # the coordinates themselves
    c.likelihood.batch_size = 500
    return c.lock()
