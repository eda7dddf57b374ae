"""Every key once, with its unit. Experiments are deltas on this.

A key that is None takes the default of the constructor it goes to (see the docstring named beside it);
a key that the chosen constructor does not take is an error when set.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The base: third-order HOLD; no data set."""
    c = ConfigDict()
    c.seed = 0  # of parameters, data order, noise, samples

    c.sde = sde = ConfigDict()  # hold_jax/sde.py
    sde.name = "hold"  # hold | vp | ve | cld | psld
    sde.order = placeholder(int)  # hold: number of blocks n, 1 to 6 (3)
    sde.damping = placeholder(str)  # hold: critical | told
    sde.L_inv = placeholder(float)  # hold: stationary variance 1/L of every block
    sde.alpha = placeholder(float)  # hold: auxiliaries start at N(0, alpha / L)
    sde.gammas = placeholder(tuple)  # hold: own couplings, n - 1 numbers; needs xi
    sde.xi = placeholder(float)  # hold: own friction of the last block
    sde.beta = placeholder(object)  # rate of time: a number, or (beta_0, beta_1) for beta_0 + beta_1 t
    sde.T = placeholder(float)  # hold, vp, cld, psld: end time; hold: None = effective noise of 80
    sde.sigma_min = placeholder(float)  # ve: data units
    sde.sigma_max = placeholder(float)  # ve: data units
    sde.mass = placeholder(float)  # cld, psld: M
    sde.gamma = placeholder(float)  # cld: velocity starts at N(0, gamma M)
    sde.Gamma = placeholder(float)  # psld: friction of the position
    sde.nu = placeholder(float)  # psld: friction of the momentum
    sde.kappa = placeholder(float)  # psld: momentum starts at N(0, kappa M)

    c.data = data = ConfigDict()  # hold_jax/data
    # digits | swissroll | swissroll5 | gaussians8 | diamond9 | checkerboard | tfds:NAME | folder:PATH | npz:PATH
    data.name = ""  # and for toys `size` and `seed`
    data.image_size = placeholder(int)  # pixels; shorter side is scaled, center cropped
    data.channels = placeholder(int)  # 1 or 3
    data.bits = placeholder(int)  # folder: bits that the grays of 16-bit files use, 9 to 16, e.g. 12
    data.data_dir = placeholder(str)  # root of relative paths and of TFDS
    data.size = placeholder(int)  # toys: points in the split
    data.seed = placeholder(int)  # toys: which draw
    data.memory_limit_gib = placeholder(float)  # decoded sets above this stay on disk (4)
    data.flip = False  # mirror pictures left to right at random

    c.model = model = ConfigDict()
    model.name = "ncsnpp"  # ncsnpp | mlp (hold_jax/nn)
    # hold_jax/parameterization.py: eps | mixed | score | signal | gaussian | sufficient | vp | v | x0 | subvp | ve
    model.parameterization = "sufficient"  # what the network's output means
    model.conditioning = "log_noise"  # log_noise | vp_time | subvp_time | ve_noise | discrete_time | time | log_time
    model.beta_schedule = placeholder(str)  # discrete_time: linear | scaled_linear | squaredcos_cap_v2 (linear)
    model.beta_start = placeholder(float)  # discrete_time: first beta (1e-4)
    model.beta_end = placeholder(float)  # discrete_time: last beta (0.02)
    model.num_times = placeholder(int)  # discrete_time: number of betas (1000)
    model.noise_min = placeholder(float)  # ve_noise: least noise of its training; below it the network sees this one
    model.sigma_data = 0.5  # standard deviation of the data in the model's range
    # Vectors enter the model as sigma_data (x - mean) / std, measured on the training data; False: as they are.
    model.standardize = placeholder(bool)  # (True)
    model.dtype = "float32"  # compute type: float32 | bfloat16; parameters are float32
    model.class_conditional = False  # feed the data's labels to the network
    model.label_dropout = placeholder(float)  # probability of training without the label, for guidance (0)
    model.embedding = placeholder(str)  # of the noise: fourier | positional
    model.max_period = placeholder(float)  # positional embedding: longest period over 2 pi (10000)
    model.fourier_scale = placeholder(float)  # cycles per unit of conditioning
    model.init_scale = placeholder(float)  # of output and residual branches; 0 starts at zero
    model.label_place = placeholder(str)  # ncsnpp: where the class enters: embedding | features
    model.conditional = placeholder(bool)  # whether the network sees the noise level
    model.channels = placeholder(int)  # ncsnpp: width of the first level
    model.channel_multipliers = placeholder(tuple)  # ncsnpp: width of each level over channels
    model.num_res_blocks = placeholder(int)  # ncsnpp: residual blocks a level
    model.attention_resolutions = placeholder(tuple)  # ncsnpp: pixels
    model.attention_up = placeholder(str)  # ncsnpp: on the way up after the last | every block
    model.attention_head_dim = placeholder(int)  # ncsnpp: channels of a head; None: one head
    model.norm_groups = placeholder(int)  # ncsnpp: groups of a normalization; None: min(channels // 4, 32)
    model.norm_eps = placeholder(float)  # ncsnpp: added to a variance (1e-6)
    model.dropout = placeholder(float)  # ncsnpp: probability
    model.resblock_type = placeholder(str)  # ncsnpp: biggan | ddpm
    model.resample_with_conv = placeholder(bool)  # ncsnpp, ddpm blocks
    model.downsample_padding = placeholder(str)  # ncsnpp, ddpm blocks without fir: after | around
    model.fir = placeholder(bool)  # ncsnpp: FIR or plain resampling
    model.fir_kernel = placeholder(tuple)  # ncsnpp
    model.skip_rescale = placeholder(bool)  # ncsnpp: residual sums over sqrt 2
    model.progressive = placeholder(str)  # ncsnpp: none | output_skip | residual
    model.progressive_input = placeholder(str)  # ncsnpp: none | input_skip | residual
    model.progressive_combine = placeholder(str)  # ncsnpp: sum | cat
    model.unit_input = placeholder(bool)  # ncsnpp: it was made for pictures in [0, 1]
    model.remat = placeholder(bool)  # ncsnpp: recompute blocks in the backward pass
    model.hidden_layers = placeholder(int)  # mlp
    model.width = placeholder(int)  # mlp: units a layer

    c.loss = loss = ConfigDict()  # hold_jax/losses.py
    loss.name = "bcsm"  # bcsm | dsm
    loss.weighting = "eps"  # edm | eps | likelihood | q0 | signal
    loss.time_law = "log_normal"  # uniform (in t) | log_uniform | log_normal (in effective noise)
    loss.time_mean = placeholder(float)  # log_normal: mean of log sigma_eff (-1.2)
    loss.time_std = placeholder(float)  # log_normal (1.2)
    loss.stratified = True  # one time in each of batch_size equal quantiles
    loss.t_min = placeholder(float)  # least time; None = effective noise of 0.002

    c.optimizer = optimizer = ConfigDict()
    optimizer.learning_rate = 2e-4
    optimizer.warmup_steps = 5000  # steps of linear growth
    optimizer.schedule = "constant"  # constant | cosine (to zero at training.num_steps)
    optimizer.b1 = 0.9
    optimizer.b2 = 0.999
    optimizer.eps = 1e-8
    optimizer.weight_decay = 0.0  # AdamW
    optimizer.clip_norm = 1.0  # of the global gradient; 0: no clipping

    c.training = training = ConfigDict()  # counts in optimizer steps; hold_jax/loops/train.py
    training.batch_size = 128  # examples a step over all devices and processes
    training.num_steps = 800_000
    training.accumulation_steps = 1  # parts of a batch, averaged before the update
    training.steps_per_call = 1  # steps in one compiled call; divides the counts here
    training.ema_decay = 0.9999
    training.log_every = 100
    training.sample_every = 10_000  # 0: never
    training.checkpoint_every = 10_000
    training.keep_last = 2  # checkpoints
    training.keep_every = 100_000  # steps; such checkpoints stay for good; 0: none
    training.skip_limit = 10  # steps in a row with a loss or gradient that is not finite, skipped; one more stops
    training.profile = 0  # steps to trace into WORKDIR/profile, soon after the start; 0: none
    training.report = True  # sample and evaluate at the end

    c.sampling = sampling = ConfigDict()  # hold_jax/samplers
    sampling.name = "gaussian_fitted"  # ancestral | conjugate | ddim | dpmpp_2m | dpmpp_3m | euler_maruyama |
    # gaussian_fitted | heun | lie_trotter | lie_trotter_split | poisson_midpoint | predictor_corrector |
    # probability_flow | reduced_splitting | splitting | strang | unipc
    sampling.num_steps = 34  # of the grid; an adaptive probability_flow chooses its own
    sampling.grid = "log"  # uniform | quadratic (in t) | karras | log (in effective noise)
    sampling.rho = placeholder(float)  # karras: exponent (7)
    sampling.times = placeholder(tuple)  # own falling times, num_steps + 1 numbers, instead of a grid
    sampling.order = placeholder(int)  # gaussian_fitted, unipc: denoiser values a step uses, 1 to 4 (3)
    sampling.corrector = placeholder(bool)  # gaussian_fitted: correct each step by the value at its end
    sampling.churn = placeholder(float)  # ddim, dpmpp, unipc (0), gaussian_fitted (1): 0 deterministic, 1 stochastic
    sampling.gauge = placeholder(str)  # these and heun: signal | cholesky | probability_flow
    sampling.s_churn = placeholder(float)  # heun: EDM's S_churn; s_min, s_max in effective noise
    sampling.s_min = placeholder(float)  # heun
    sampling.s_max = placeholder(float)  # heun
    sampling.s_noise = placeholder(float)  # heun
    sampling.score_time = placeholder(str)  # strang: midpoint | start (start: CLD's SSCS)
    sampling.sequence = placeholder(str)  # splitting, lie_trotter_split: sub-flows of a step, of O, H, B
    sampling.pieces = placeholder(bool)  # splitting: H as one rotation after the other (False)
    sampling.scheme = placeholder(str)  # reduced_splitting: ROBA | RBAO | ROBAB
    sampling.noise_scale = placeholder(float)  # reduced_splitting: lambda_s, of the position's noise (1.16 at 50 calls)
    sampling.lam = placeholder(float)  # conjugate: lambda, per unit of t (0)
    sampling.K = placeholder(int)  # poisson_midpoint: sub-steps (16)
    sampling.base = placeholder(str)  # poisson_midpoint: what is held: denoiser | noise | score
    sampling.spacing = placeholder(str)  # poisson_midpoint: sub-steps equal in int beta (uniform) or log noise (log)
    sampling.predictor = placeholder(str)  # predictor_corrector: ancestral | ddim | euler_maruyama | ...
    sampling.corrector_steps = placeholder(int)  # predictor_corrector (1)
    sampling.snr = placeholder(float)  # predictor_corrector: signal-to-noise ratio of a corrector step (0.16)
    sampling.solver = placeholder(str)  # probability_flow: tsit5 | dopri5 | dopri8 | bosh3 | heun | midpoint | euler
    sampling.adaptive = placeholder(bool)  # probability_flow: the solver chooses its steps (True)
    sampling.rtol = placeholder(float)  # probability_flow (1e-4)
    sampling.atol = placeholder(float)  # probability_flow: units of the state (1e-4)
    sampling.max_steps = placeholder(int)  # probability_flow (1000)
    sampling.t_min = placeholder(float)  # where to stop; None = effective noise of 0.002
    sampling.denoise = True  # finish with the denoiser
    sampling.num_samples = 64
    sampling.batch_size = 64  # samples at once over all devices
    sampling.frames = 0  # states kept for the film; divides num_steps; 0: no film
    sampling.save_pngs = False  # one file a sample
    sampling.label = placeholder(int)  # class to draw; None: all, as often as sampling.classes says
    sampling.classes = "data"  # data: as often as in the training data | uniform: all equally often
    sampling.guidance = placeholder(float)  # scale of classifier-free guidance: 1 is none; needs model.label_dropout
    sampling.checkpoint = placeholder(int)  # step to load; None: the newest

    c.eval = evaluation = ConfigDict()  # hold_jax/loops/evaluate.py
    evaluation.batch_size = 128  # test examples at once over all devices
    evaluation.repeats = 1  # perturbations of each test example
    evaluation.num_samples = 50_000  # compared with the data; None: as many as there are test examples; 0: none
    evaluation.features = "pixels"  # what they are compared in, comma-separated: inception | classifier | pixels
    evaluation.inception = placeholder(str)  # path of the Inception weights (.pth of pytorch-fid, or .npz)
    evaluation.stats = placeholder(str)  # reference statistics in a file (--mode=stats); None: of the training data
    evaluation.neighbors = 10  # samples shown beside the training pictures nearest to them; 0: none
    evaluation.likelihood = False  # bits per dimension of the test data too
    evaluation.checkpoints = "newest"  # newest | all | steps, comma-separated

    c.likelihood = likelihood = ConfigDict()  # hold_jax/likelihood.py
    likelihood.num_examples = placeholder(int)  # of the test data; None: all
    likelihood.batch_size = 128  # examples at once over all devices
    likelihood.probes = 1  # of the trace, for each draw; 0: the exact trace, by a derivative for each dimension
    likelihood.repeats = 1  # draws of dequantization, auxiliaries and probes for each example
    likelihood.importance_weighted = False  # combine them as a tighter bound, not as a mean
    likelihood.auxiliary = "posterior"  # posterior | initial (the papers' bound, far looser)
    likelihood.t_min = placeholder(float)  # where the flow ends; None = effective noise of 0.002
    likelihood.solver = "tsit5"  # tsit5 | dopri5 | dopri8 | bosh3 | heun | midpoint
    likelihood.rtol = 1e-5
    likelihood.atol = 1e-5
    likelihood.max_steps = 1000

    return c.lock()
