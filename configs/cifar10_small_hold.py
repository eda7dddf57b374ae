"""Third-order HOLD on CIFAR-10 with a network that a laptop can move (about 1.8 million parameters).

python main.py --config=configs/cifar10_small_hold.py --mode=train --workdir=DIR

Hardware: CPU for a look (200 steps take minutes), any GPU to train.
"""

from configs import cifar10_hold


def get_config():
    c = cifar10_hold.get_config()
    c.unlock()
    c.model.channels = 32
    c.model.num_res_blocks = 1
    c.model.dropout = 0.0
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 500
    c.training.batch_size = 64
    c.training.num_steps = 100_000
    c.training.ema_decay = 0.999
    c.training.log_every = 20
    c.training.checkpoint_every = 1000
    c.training.sample_every = 1000
    c.sampling.num_steps = 50
    c.likelihood.num_examples = 1_000
    return c.lock()
