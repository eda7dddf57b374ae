"""Phase space Langevin diffusion (PSLD; Pandey and Mandt, ICCV 2023) on CIFAR-10: order 2, noise in both blocks.

python main.py --config=configs/cifar10_psld.py --mode=train --workdir=DIR
python main.py --config=configs/cifar10_psld.py --mode=eval  --workdir=DIR --config.eval.inception=PATH

Published FID: 2.10 (the authors' README, number of calls not stated there). By calls, the same network (2402.07211,
tables 1 to 3):

| calls | 50 | 100 | 250 | 1000 |
|---|---|---|---|---|
| Euler-Maruyama | 30.81 | 7.83 | 2.75 | 2.27 |
| SSCS | 18.83 | 4.83 | | |
| reduced splitting (OBA) | 2.76 | 2.36 | | |
| conjugate, deterministic (2310.07894) | | 2.11 | | |

As published: beta = 8, Gamma = 0.01, nu = 4.01, kappa = 0.04, 1/M = 4 (the defaults of `sde.psld`); Adam 2e-4,
parameters averaged at 0.9999, dropout 0.15, 2,500 epochs of batch 128 on 8 GPUs; least time 1e-5 in the loss and 1e-3
in the sampler; quadratic steps and a final denoising in the integrator papers; 97M parameters.
Different here: the network, CLD's NCSN++ of configs/cifar10_hold.py (108M), and its conditioning on the noise; it
learns the last block's noise, from which the first's follows (docs/method.md, section 3), where theirs learns both.

The others: SSCS is --config.sampling.name=strang --config.sampling.score_time=start --config.sampling.num_steps=99;
reduced_splitting; this package's default, gaussian_fitted, at 34 steps of --config.sampling.grid=log. The same network
with another process: --config.sde.name=hold --config.sde.order=3.
"""

from configs import cifar10_hold


def get_config():
    c = cifar10_hold.get_config()
    c.unlock()
    c.sde.name = "psld"
    c.model.parameterization = "eps"
    c.model.dropout = 0.15
    c.loss.time_law = "uniform"
    c.loss.t_min = 1e-5
    c.training.num_steps = 976_500  # 2,500 epochs of 390 full batches, up to rounding
    c.sampling.name = "euler_maruyama"
    c.sampling.num_steps = 1000
    c.sampling.grid = "quadratic"
    c.sampling.t_min = 1e-3
    return c.lock()
