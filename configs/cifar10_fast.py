"""HOLD on CIFAR-10 for a first half hour on one large GPU: 10.1 million parameters, bfloat16.

`benchmarks.accelerator` writes its averaged weights in bfloat16, compressed: 14.4 MB of 20.2.

python main.py --config=configs/cifar10_fast.py --mode=train --workdir=DIR

The network sees the effective noise alone, so the one model samples at every order: --mode=eval --config.sde.order=4.
Data: as configs/cifar10_hold.py. Hardware and time: meant for 25 minutes on one H100; on one H200 12,600 pictures a
second (docs/results/h200.md). The run goes on from where it stopped, so its length need not be known: the learning rate
is constant, and the average does the annealing.
"""

from configs import cifar10_hold


def get_config():
    c = cifar10_hold.get_config()
    c.unlock()
    c.model.channels = 64
    c.model.num_res_blocks = 2
    c.model.dropout = 0.0  # some 30 million pictures seen: too few to overfit
    c.model.dtype = "bfloat16"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 500
    c.training.batch_size = 512
    c.training.num_steps = 100_000
    c.training.steps_per_call = 10
    c.training.ema_decay = 0.9995
    c.training.log_every = 100
    c.training.sample_every = 0
    c.training.checkpoint_every = 5_000
    c.training.keep_last = 1
    c.training.keep_every = 0
    c.sampling.batch_size = 500
    c.eval.batch_size = 500
    c.eval.num_samples = 10_000
    c.eval.likelihood = False
    c.likelihood.num_examples = 1_000
    return c.lock()
