"""A start for signals of your own: time series, sensor curves, spectra, of one channel or several.

python main.py --config=configs/my_signals.py --config.data.name=npz:FILE --mode=train --workdir=runs/my_signals

FILE is an .npy with an array (N, length) or (N, length, channels) of floats, or an .npz (docs/your_data.md).
Hardware: 2 CPU cores. Time: about 5 minutes. Change what you like; --mode=show prints every key with its meaning.
"""

from ml_collections.config_dict import placeholder

from hold_jax.app import config as base


def get_config():
    c = base.get_config()
    c.unlock()

    # Data. A tenth of the signals is held out to evaluate. Each channel is standardized; samples are in data units.
    c.data.name = "npz:my_signals.npy"
    c.data.kind = "signal"  # else an array (N, d) is taken as vectors without order
    c.model.class_conditional = False  # True: the array y of an .npz has labels

    # Network: a U-Net along the one axis. Three levels: the length must be a multiple of 4; long signals need more
    # levels, e.g. (1, 2, 2, 2, 2) for a length of 1024, a multiple of 16.
    c.model.channels = 32
    c.model.channel_multipliers = (1, 2, 2)
    c.model.num_res_blocks = 1
    c.model.attention_resolutions = (16,)  # levels of this length; () saves time
    c.model.progressive_input = "none"
    c.model.dropout = 0.0

    # Training. Smooth or quiet signals are learned at small noise levels, so these get more times than usual.
    c.loss.time_std = 1.8
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 100
    c.optimizer.schedule = "cosine"
    c.training.batch_size = 64
    c.training.num_steps = 2000
    c.training.ema_decay = 0.995
    c.training.log_every = 50
    c.training.sample_every = 500
    c.training.checkpoint_every = 500
    c.training.keep_every = 0

    # Samples and their distance to the data, in features that need no weights.
    c.sampling.num_samples = 64
    c.eval.num_samples = placeholder(int)  # None: as many as there are held-out signals
    c.eval.features = "pixels"  # the values themselves
    c.likelihood.batch_size = 64
    return c.lock()
