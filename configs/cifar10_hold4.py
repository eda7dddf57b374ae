"""HOLD++ (2506.21741) on CIFAR-10 at order 4, critically damped, as its authors' public code trains.

python main.py --config=configs/cifar10_hold4.py --mode=train --workdir=DIR
python main.py --config=configs/cifar10_hold4.py --mode=eval --workdir=DIR

Any other order, 1 to 6, on the same network: --config.sde.order=5.

Published FID: HOLD++ reports CIFAR-10 and CelebA-HQ-256; the figures could not be read for this file (an abstract page
and a third-party summary say that n = 3 is often the best). TOLD++, its third order by two of its authors, has 6.50
(configs/cifar10_toldpp.py).

As in the authors' public code, which may differ from the paper's runs: gamma = (1, 2, 5), xi = 4 sqrt 5, one eigenvalue
-sqrt 5; 1/L = 0.5, alpha = 0.08, T = 5, constant beta; 8 residual blocks, dropout 0.1; Adam 2e-4 with 5,000 steps of
warm-up, gradients clipped at 1, parameters averaged at 0.9999; 800,000 steps; least time 1e-5 in the loss, 1e-3 in the
sampler; times drawn uniformly in t, independently; conditioning on log t by random Fourier features of scale 16; a
denoising step, counted among the steps. Euler-Maruyama is the one sampler there that runs; its steps are TOLD++'s 200.
Chosen here: sampling times uniform in t, the batch (128).
"""

from configs import cifar10_told


def get_config():
    c = cifar10_told.get_config()
    c.unlock()
    c.sde.order = 4
    c.sde.damping = "critical"
    c.model.num_res_blocks = 8
    c.training.batch_size = 128
    c.training.num_steps = 800_000
    c.eval.num_samples = 50_000
    return c.lock()
