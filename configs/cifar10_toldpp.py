"""TOLD++ (2409.07697) on CIFAR-10: third order, critically damped.

python main.py --config=configs/cifar10_toldpp.py --mode=train --workdir=DIR
python main.py --config=configs/cifar10_toldpp.py --mode=eval --workdir=DIR

Published FID: 7.52 after 300,000 and 6.50 after 700,000 steps (table II; TOLD beside it 8.23 and 7.48), of 10,000
samples by 200 Euler-Maruyama steps. FIDs of 10,000 samples lie above those of 50,000: compare at equal numbers only.

gamma = 2 sqrt 2, xi = 3 sqrt 3, one eigenvalue -sqrt 3. All else is configs/cifar10_told.py, which says what is
published and what is not. Another order, critically damped, on the same network: --config.sde.order=2.
"""

from configs import cifar10_told


def get_config():
    c = cifar10_told.get_config()
    c.unlock()
    c.sde.damping = "critical"
    return c.lock()
