"""A start for pictures of your own: a small network that gives something to look at in minutes on a CPU.

python main.py --config=configs/my_pictures.py --config.data.name=folder:PATH --mode=train --workdir=runs/my_pictures

PATH is a folder or a zip archive of pictures, in class folders or not; docs/your_data.md says what else it may be.
Hardware: 2 CPU cores. Time: about 10 minutes. Change what you like; --mode=show prints every key with its meaning.
"""

from ml_collections.config_dict import placeholder

from hold_jax.app import config as base


def get_config():
    c = base.get_config()
    c.unlock()

    # Data. A tenth of the pictures is held out to evaluate, unless PATH has the folders train and test.
    c.data.name = "folder:my_pictures"
    c.data.image_size = 32  # or (height, width); both must be multiples of 4 for the three levels below
    c.data.channels = 3  # 1: gray
    c.data.flip = False  # True: left and right may be exchanged (not for text, maps or X-rays)
    c.model.class_conditional = False  # True: class folders are labels; then --config.sampling.label=NAME draws one

    # Network: wider (64, 128) and deeper (2 to 4 blocks) is better and slower.
    c.model.channels = 32
    c.model.channel_multipliers = (1, 2, 2)
    c.model.num_res_blocks = 1
    c.model.attention_resolutions = (8,)
    c.model.fir = False
    c.model.progressive_input = "none"
    c.model.dropout = 0.0  # 0.1 for few pictures and long training

    # Training. Samples go on to improve for 10 to 100 times as many steps; with them let the average be slower:
    # ema_decay 0.999 for 20,000 steps, 0.9999 for 200,000.
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 100
    c.optimizer.schedule = "cosine"
    c.training.batch_size = 32
    c.training.num_steps = 1000
    c.training.ema_decay = 0.99
    c.training.log_every = 25
    c.training.sample_every = 250
    c.training.checkpoint_every = 250
    c.training.keep_every = 0

    # Samples and their distance to the data, in features that need no weights. For the usual FID set
    # eval.features = "inception" and eval.inception = PATH of its weights (docs/fid.md).
    c.sampling.num_samples = 64
    c.eval.num_samples = placeholder(int)  # None: as many as there are held-out pictures
    c.eval.features = "pixels"
    return c.lock()
