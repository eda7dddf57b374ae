"""Third-order HOLD on signals: damped sines of three classes, whose exact likelihood is known.

python main.py --config=configs/damped_sines_hold.py --mode=train --workdir=runs/damped_sines

Hardware: 2 CPU cores. Time: about 5 minutes (430 seconds of processor time).
"""

from ml_collections.config_dict import placeholder

from hold_jax.app import config as base


def get_config():
    c = base.get_config()
    c.unlock()
    c.data.name = "damped_sines"
    c.model.channels = 32
    c.model.channel_multipliers = (1, 2, 2)
    c.model.num_res_blocks = 1
    c.model.progressive_input = "none"
    c.model.attention_resolutions = (16,)
    c.model.dropout = 0.0
    # The noise of the signals is 0.05: small levels need times too.
    c.loss.time_std = 1.8
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup_steps = 100
    c.optimizer.schedule = "cosine"
    c.training.batch_size = 128
    c.training.num_steps = 2000
    c.training.ema_decay = 0.995
    c.training.log_every = 50
    c.training.sample_every = 500
    c.training.checkpoint_every = 500
    c.training.keep_every = 0
    c.sampling.num_samples = 64
    c.sampling.frames = 34
    c.eval.num_samples = placeholder(int)
    c.eval.features = "classifier,pixels"
    c.likelihood.num_examples = 200
    c.likelihood.batch_size = 100
    return c.lock()
