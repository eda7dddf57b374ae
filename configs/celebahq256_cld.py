"""CLD on CelebA-HQ at 256x256 (2112.07068), with the changes that its authors made for stability after publication.

python main.py --config=configs/celebahq256_cld.py --mode=train --workdir=DIR --config.data.name=folder:PATH

No FID is published: the paper shows samples. As in the authors' code (configs/*_celeba_post_paper.txt): beta(t) = 0.1 +
6.9 t, 1/M = 4, gamma = 0.04; mixed score, hybrid score matching, times uniform from 1e-3; NCSN++ with 4 blocks a level,
plain resampling, conditioned on t by positional features (here 999 t, as score_sde has it: small times
differ then), dropout 0.1; AdamW 1e-4 with weight decay 0.01, warm-up
of 100,000 steps, parameters averaged at 0.9999; batch 96, 600,000 steps. The paper's own run: beta = 4, 2 blocks, no
weight decay, batch 64, 320,000 steps, least time 1e-5. The data: configs/celebahq256_hold.py.
"""

from configs import celebahq256_hold


def get_config():
    c = celebahq256_hold.get_config()
    c.unlock()
    c.sde.name = "cld"
    c.sde.sigma_max = None
    c.sde.beta = (0.1, 6.9)
    c.model.parameterization = "mixed"
    c.model.conditioning = "time"
    c.model.embedding = "positional"
    c.model.fir = False
    c.model.progressive_input = "none"
    c.model.skip_rescale = True
    c.model.num_res_blocks = 4
    c.model.dropout = 0.1
    c.loss.time_law = "uniform"
    c.loss.stratified = False
    c.loss.t_min = 1e-3
    c.optimizer.warmup_steps = 100_000
    c.optimizer.weight_decay = 1e-2
    # Theirs sums the loss over the 196,608 values of a picture, ours is their mean: so Adam makes the same steps.
    c.optimizer.clip_norm = 1 / 196_608
    c.optimizer.eps = 1e-8 / 196_608
    c.training.batch_size = 96
    c.sampling.name = "probability_flow"
    c.sampling.solver = "dopri5"
    c.sampling.rtol = 1e-5
    c.sampling.atol = 1e-5
    c.sampling.t_min = 1e-3
    return c.lock()
