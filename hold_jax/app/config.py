"""Every key once: its type, range or names, default, unit and meaning. Experiments in `configs/` are deltas on this.

A key that is None takes the default of the constructor it goes to (named in the section's docstring); a key that the
chosen constructor does not take is an error when set. `--mode=show` prints this table with an experiment's values.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from hold_jax.data.dataset import KINDS
from hold_jax.errors import UserError, require
from hold_jax.evaluation.own_function import is_own
from hold_jax.runtime import schema
from hold_jax.runtime.schema import (
    choice,
    numbers,
    path,
    real,
    section,
    several,
    step,
    switch,
    text,
    whole,
    whole_or_name,
)

_SEED = "[0, 2^32)"
_COUNT = "[1, 1e6]"  # of what is computed at once
_STEPS = "[1, 1e9]"
_EVERY = "[0, 1e9]"
_IMAGES = "[1, 1e12]"
_POSITIVE = "(0, 1e6]"
_TIME = "(0, 1e6)"

_DATA = (
    "digits | swissroll | swissroll5 | gaussians8 | diamond9 | checkerboard | damped_sines | tfds:NAME | folder:PATH | "
    "npz:PATH"
)
FEATURES = ("inception", "dinov2", "classifier", "pixels")
_ODE_SOLVERS = ("tsit5", "dopri5", "dopri8", "bosh3", "heun", "midpoint", "euler")
_EMBEDDINGS = ("fourier", "positional")
_GAUGES = ("signal", "cholesky", "probability_flow")


@dataclasses.dataclass(frozen=True)
class SDEConfig:
    """The process: `hold_jax/sde.py`."""

    name: str = choice("hold", ("hold", "vp", "ve", "cld", "psld"), "family")
    order: int | None = whole(None, "[1, 6]", "hold: number of blocks n (3)")
    damping: str | None = choice(None, ("critical", "told"), "hold: what sets the couplings (critical)")
    L_inv: float | None = real(None, _POSITIVE, "hold: stationary variance 1/L of every block")
    alpha: float | None = real(None, _POSITIVE, "hold: auxiliaries start at N(0, alpha / L)")
    gammas: tuple[float, ...] | None = several(None, float, _POSITIVE, "[0, 5]", "hold: own couplings, n - 1; needs xi")
    xi: float | None = real(None, _POSITIVE, "hold: own friction of the last block")
    beta: float | tuple[float, ...] | None = several(
        None, float, "[0, 1e6]", "[2, 2]", "rate of time; (beta_0, beta_1): beta_0 + beta_1 t", or_one=True
    )
    T: float | None = real(None, _TIME, "hold, vp, cld, psld: end time; hold: None = where the noise is sigma_max")
    sigma_min: float | None = real(None, _POSITIVE, "ve: least noise, data units")
    sigma_max: float | None = real(None, _POSITIVE, "hold (80), ve: largest noise, data units")
    mass: float | None = real(None, _POSITIVE, "cld, psld: M")
    gamma: float | None = real(None, _POSITIVE, "cld: velocity starts at N(0, gamma M)")
    Gamma: float | None = real(None, "[0, 1e6]", "psld: friction of the position")
    nu: float | None = real(None, _POSITIVE, "psld: friction of the momentum")
    kappa: float | None = real(None, _POSITIVE, "psld: momentum starts at N(0, kappa M)")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data: `hold_jax/data`."""

    name: str = path("", "the data set", _DATA, empty=True)
    kind: str | None = choice(None, KINDS, "what an example is; None: by docs/your_data.md's rule")
    image_size: int | tuple[int, ...] | None = several(
        None, int, "[1, 4096]", "[2, 2]", "pixels, or (height, width); scaled to cover it, center cropped", or_one=True
    )
    channels: int | None = whole(None, "[1, 3]", "1 or 3")
    bits: int | None = whole(None, "[9, 16]", "bits that 16-bit pictures use, e.g. 12")
    data_dir: str | None = path(None, "root of relative paths and of TFDS")
    size: int | None = whole(None, "[1, 1e8]", "toys: examples in the split")
    seed: int | None = whole(None, _SEED, "toys: which draw")
    memory_limit_gib: float | None = real(None, "(0, 1e6]", "decoded sets above this stay on disk (4)")
    flip: bool = switch(False, "mirror pictures left to right at random")
    augment: float = real(0.0, "[0, 1]", "EDM's augmentation: probability of each transform of a picture; 0: none")
    condition: str | None = text(
        None,
        "inpaint:MASK | superres:FACTOR | deblur:PIXELS | colorize: | names of arrays | a path",
        "what to condition on: a measurement of each example; npz: arrays; folder: PATH of pictures of the same names",
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network and what its output means: `hold_jax/model.py`, `hold_jax/parameterization.py`, `hold_jax/nn`."""

    name: str = choice("ncsnpp", ("ncsnpp", "mlp"), "network")
    parameterization: str = choice(
        "sufficient",
        (
            "eps", "mixed", "score", "signal", "noise", "flow_noise", "gaussian",
            "sufficient", "vp", "v", "x0", "subvp", "ve",
        ),
        "what the network's output means",
    )  # fmt: skip
    conditioning: str = choice(
        "log_noise",
        ("log_noise", "vp_time", "subvp_time", "ve_noise", "discrete_time", "discrete_noise", "time", "log_time"),
        "time passed to the network",
    )
    beta_schedule: str | None = choice(
        None, ("linear", "scaled_linear", "squaredcos_cap_v2"), "discrete_time: law of the betas (linear)"
    )
    beta_start: float | None = real(None, "(0, 1)", "discrete_time: first beta (1e-4)")
    beta_end: float | None = real(None, "(0, 1)", "discrete_time: last beta (0.02)")
    num_times: int | None = whole(None, "[2, 1e6]", "discrete_time, discrete_noise: number of noise levels (1000)")
    noise_min: float | None = real(
        None, _POSITIVE, "ve_noise, discrete_noise (0.02): least noise of its training; below it the network sees this"
    )
    noise_max: float | None = real(None, _POSITIVE, "discrete_noise: greatest noise of its training (100)")
    time_scale: float | None = real(None, _POSITIVE, "time, log_time: factor of t, or of t / T (1, 999)")
    sigma_data: float | None = real(
        None, "(0, 1e6]", "standard deviation of the data in the model's range; None: measured on the training data"
    )
    standardize: bool | None = switch(
        None, "not for pictures: subtract the data's mean, divide by their standard deviation, by channel (True)"
    )
    dtype: str = choice("float32", ("float32", "bfloat16", "float16"), "compute type; float16: not in training")
    class_conditional: bool = switch(False, "feed the data's labels to the network")
    label_dropout: float | None = real(None, "[0, 1)", "probability of training without the label, for guidance (0)")
    picture_dropout: float | None = real(None, "[0, 1)", "the same for the picture of data.condition (0)")
    vector_dropout: float | None = real(None, "[0, 1)", "the same for the vector of data.condition (0)")
    embedding: str | None = choice(None, _EMBEDDINGS, "of the noise level")
    max_period: float | None = real(None, "(0, 1e9]", "positional embedding: longest period over 2 pi (10000)")
    fourier_scale: float | None = real(None, "(0, 1e4]", "cycles per unit of conditioning")
    init_scale: float | None = real(None, "[0, 1e4]", "of output and residual branches; 0 starts at zero")
    label_place: str | None = choice(None, ("embedding", "features"), "ncsnpp: where the class enters")
    conditional: bool | None = switch(None, "whether the network sees the noise level")
    channels: int | None = whole(None, "[1, 65536]", "ncsnpp: width of the first level")
    channel_multipliers: tuple[int, ...] | None = several(
        None, int, "[1, 1024]", "[1, 12]", "ncsnpp: width of each level over channels"
    )
    num_res_blocks: int | None = whole(None, "[1, 1000]", "ncsnpp: residual blocks a level")
    attention_resolutions: tuple[int, ...] | None = several(None, int, "[1, 4096]", "[0, 12]", "ncsnpp: pixels")
    attention_up: str | None = choice(None, ("last", "every"), "ncsnpp: on the way up after the last or every block")
    attention_head_dim: int | None = whole(None, "[1, 65536]", "ncsnpp: channels of a head; None: one head")
    norm_groups: int | None = whole(
        None, "[1, 65536]", "ncsnpp: groups of a normalization; None: min(channels // 4, 32)"
    )
    norm_eps: float | None = real(None, "(0, 1)", "ncsnpp: added to a variance (1e-6)")
    dropout: float | None = real(None, "[0, 1)", "ncsnpp: probability")
    resblock_type: str | None = choice(None, ("biggan", "ddpm"), "ncsnpp: kind of residual block")
    scale_shift: bool | None = switch(None, "ncsnpp: the embedding scales and shifts a normalization's output (False)")
    resample_shortcut: bool | None = switch(
        None, "ncsnpp: biggan blocks that resample have a convolution in the shortcut (True)"
    )
    resample_with_conv: bool | None = switch(None, "ncsnpp: convolution in resampling, ddpm blocks")
    downsample_padding: str | None = choice(None, ("after", "around"), "ncsnpp: ddpm blocks without fir")
    fir: bool | None = switch(None, "ncsnpp: FIR or plain resampling")
    fir_kernel: tuple[float, ...] | None = several(None, float, "[-1e6, 1e6]", "[1, 32]", "ncsnpp: of the FIR filter")
    skip_rescale: bool | None = switch(None, "ncsnpp: residual sums over sqrt 2")
    progressive: str | None = choice(None, ("none", "output_skip", "residual"), "ncsnpp: pyramid at the output")
    progressive_input: str | None = choice(None, ("none", "input_skip", "residual"), "ncsnpp: pyramid at the input")
    progressive_combine: str | None = choice(None, ("sum", "cat"), "ncsnpp: how pyramids are joined")
    unit_input: bool | None = switch(None, "ncsnpp: it was made for pictures in [0, 1]")
    remat: bool | None = switch(None, "ncsnpp: recompute blocks in the backward pass")
    hidden_layers: int | None = whole(None, "[1, 1000]", "mlp: hidden layers")
    width: int | None = whole(None, "[1, 65536]", "mlp: units a layer")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The loss: `hold_jax/losses.py`."""

    name: str = choice("bcsm", ("bcsm", "dsm"), "block coordinate or denoising score matching")
    weighting: str = choice("eps", ("edm", "eps", "likelihood", "q0", "signal"), "weight over noise levels")
    time_law: str = choice(
        "log_normal", ("uniform", "log_uniform", "log_normal"), "uniform in t; log_normal in effective noise"
    )
    time_mean: float | None = real(None, "[-100, 100]", "log_normal: mean of log sigma_eff (-1.2)")
    time_std: float | None = real(None, "(0, 100]", "log_normal: its standard deviation (1.2)")
    stratified: bool = switch(True, "one time in each of batch_size equal quantiles")
    t_min: float | None = real(None, _TIME, "least time; None = effective noise of 0.002")

    def __post_init__(self):
        for key in ("time_mean", "time_std"):
            unused = self.time_law == "log_normal" or getattr(self, key) is None
            require(unused, "loss.time_law", self.time_law, f"'log_normal' to use loss.{key}")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam: `hold_jax/training/optimizer.py`."""

    learning_rate: float = real(2e-4, "(0, 1e6]", "step size")
    warmup_steps: int = whole(5000, _EVERY, "steps of linear growth")
    warmup_images: int | None = whole(None, _IMAGES, "images of linear growth, as EDM; None: warmup_steps")
    schedule: str = choice(
        "constant", ("constant", "cosine"), "after the warm-up; cosine: to zero at training.num_steps"
    )
    b1: float = real(0.9, "(0, 1)", "decay of the mean")
    b2: float = real(0.999, "(0, 1)", "decay of the square")
    eps: float = real(1e-8, "(0, 1)", "added to the root of the square")
    weight_decay: float = real(0.0, "[0, 1e6]", "AdamW")
    clip_norm: float = real(1.0, "[0, 1e6]", "of the global gradient; 0: no clipping")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Counts in optimizer steps: `hold_jax/loops/train.py`."""

    batch_size: int = whole(128, _COUNT, "examples a step over all devices and processes")
    num_steps: int = whole(800_000, _STEPS, "steps in all")
    accumulation_steps: int = whole(1, _COUNT, "parts of a batch, averaged before the update")
    steps_per_call: int = whole(1, _COUNT, "steps in one compiled call; divides the counts here")
    gradient_dtype: str | None = choice(
        None, ("float32", "bfloat16"), "in which devices sum the convolutions' gradients (float32)"
    )
    init_from: str | None = path(
        None, "a run, a .safetensors file or 'digits': training starts from its averaged weights (fine-tuning)"
    )
    ema_decay: float = real(0.9999, "[0, 1)", "of the averaged parameters, a step")
    ema_halflife_images: int | None = whole(
        None, _IMAGES, "images in which a weight of that average halves, as EDM; None: ema_decay"
    )
    ema_rampup_ratio: float | None = real(
        None, "[0, 1]", "largest half-life as a share of the images seen so far (0.05); 0: no limit"
    )
    ema_snapshot_every: int = whole(
        0, _EVERY, "steps between files of two power-function averages (EDM2), for sampling.ema_length; 0: none"
    )
    log_every: int = whole(100, _STEPS, "steps between lines of the log")
    sample_every: int = whole(10_000, _EVERY, "steps between grids of samples; 0: never")
    checkpoint_every: int = whole(10_000, _STEPS, "steps between checkpoints")
    keep_last: int = whole(2, _COUNT, "checkpoints kept")
    keep_every: int = whole(100_000, _EVERY, "steps; such checkpoints stay for good; 0: none")
    held_out: int = whole(1000, "[0, 1e6]", "test examples whose loss is logged at each checkpoint; 0: none")
    skip_limit: int = whole(10, _EVERY, "steps in a row that may be skipped for a loss or gradient that is not finite")
    profile: int = whole(0, _EVERY, "steps to trace into WORKDIR/profile, soon after the start; 0: none")
    report: bool = switch(True, "sample and evaluate at the end")

    def __post_init__(self):
        used = self.ema_rampup_ratio is None or self.ema_halflife_images is not None
        require(used, "training.ema_rampup_ratio", self.ema_rampup_ratio, "None without training.ema_halflife_images")
        for key in ("num_steps", "log_every", "sample_every", "checkpoint_every", "ema_snapshot_every"):
            value = getattr(self, key)
            fits = value % self.steps_per_call == 0
            require(fits, f"training.{key}", value, f"a multiple of steps_per_call = {self.steps_per_call}")


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Samples: `hold_jax/samplers`, `hold_jax/loops/draw.py`."""

    name: str = choice(
        "gaussian_fitted",
        (
            "ancestral", "conjugate", "ddim", "dpmpp_2m", "dpmpp_3m", "euler_maruyama", "gaussian_fitted", "heun",
            "lie_trotter", "lie_trotter_split", "poisson_midpoint", "predictor_corrector", "probability_flow",
            "reduced_splitting", "splitting", "strang", "unipc",
        ),
        "sampler: docs/samplers.md",
    )  # fmt: skip
    num_steps: int = whole(34, "[1, 1e6]", "of the grid; an adaptive probability_flow chooses its own")
    calls: int | None = whole(
        None,
        "[1, 1e6]",
        "network calls: the sampler of --mode=tune for so many, else num_steps to fit; None: num_steps",
    )
    grid: str = choice(
        "log", ("uniform", "quadratic", "karras", "log"), "uniform, quadratic in t; log in effective noise"
    )
    rho: float | None = real(None, "(0, 1000]", "karras: exponent (7)")
    times: tuple[float, ...] | None = several(
        None, float, _TIME, "[2, 1e6]", "own falling times, num_steps + 1, instead of a grid"
    )
    order: int | None = whole(None, "[1, 4]", "gaussian_fitted, unipc: denoiser values a step uses (3)")
    corrector: bool | None = switch(None, "gaussian_fitted: correct each step by the value at its end")
    churn: float | None = real(
        None, "[0, 1e4]", "ddim, dpmpp, unipc (0), gaussian_fitted (1): 0 deterministic, 1 stochastic"
    )
    gauge: str | None = choice(None, _GAUGES, "these and heun: factor of the covariance that steps are taken in")
    s_churn: float | None = real(None, "[0, 1e6]", "heun: EDM's S_churn, times N / (N + 1) for N steps")
    s_min: float | None = real(None, "[0, 1e6]", "heun: churn from here, effective noise")
    s_max: float | None = real(None, _POSITIVE, "heun: churn up to here, effective noise")
    s_noise: float | None = real(None, "(0, 100]", "heun: standard deviation of the churn's noise")
    score_time: str | None = choice(None, ("midpoint", "start"), "strang: where the score is taken (start: CLD's SSCS)")
    sequence: str | None = text(
        None,
        "a sequence of the letters O, H and B, each at least once",
        "splitting, lie_trotter_split: sub-flows of a step",
    )
    pieces: bool | None = switch(None, "splitting: H as one rotation after the other (False)")
    scheme: str | None = choice(None, ("ROBA", "RBAO", "ROBAB"), "reduced_splitting: order of the sub-flows")
    noise_scale: float | None = real(
        None, "[0, 1000]", "reduced_splitting: lambda_s, of the position's noise (1.16 at 50 calls)"
    )
    lam: float | None = real(None, "[-1e4, 1e4]", "conjugate: lambda, per unit of t (0)")
    form: str | None = choice(None, ("identity", "ones"), "conjugate: matrix that lambda multiplies (identity)")
    K: int | None = whole(None, "[1, 10000]", "poisson_midpoint: sub-steps (16)")
    base: str | None = choice(None, ("denoiser", "noise", "score"), "poisson_midpoint: what is held during a step")
    spacing: str | None = choice(
        None, ("uniform", "log"), "poisson_midpoint: sub-steps equal in the integral of beta or in log noise"
    )
    predictor: str | None = choice(
        None, ("ancestral", "ddim", "euler_maruyama", "lie_trotter", "strang"), "predictor_corrector: the sampler"
    )
    corrector_steps: int | None = whole(None, "[1, 1000]", "predictor_corrector: corrections a step (1)")
    snr: float | None = real(None, "(0, 1]", "predictor_corrector: signal-to-noise ratio of a correction (0.16)")
    solver: str | None = choice(None, _ODE_SOLVERS, "probability_flow: Runge-Kutta method")
    adaptive: bool | None = switch(None, "probability_flow: the solver chooses its steps (True)")
    rtol: float | None = real(None, "[1e-12, 1]", "probability_flow: relative tolerance of a step (1e-4)")
    atol: float | None = real(None, "[1e-12, 1e6]", "probability_flow: absolute tolerance, units of the state (1e-4)")
    max_steps: int | None = whole(None, "[1, 1e6]", "probability_flow: more is an error (1000)")
    t_min: float | None = real(None, _TIME, "where to stop; None = effective noise of 0.002")
    denoise: bool = switch(True, "finish with the denoiser")
    num_samples: int = whole(64, "[1, 1e8]", "samples in all, unless indices says which")
    indices: str | None = numbers("which samples to draw, e.g. 7 or 3,17 or 100:200; None: the first num_samples")
    batch_size: int = whole(64, _COUNT, "samples at once over all devices")
    frames: int = whole(0, "[0, 1e5]", "most states kept for the film (the largest divisor of num_steps); 0: no film")
    save_pngs: bool = switch(False, "one file a sample")
    label: int | str | None = whole_or_name(
        None, "[0, 1e6]", "class to draw, its name or number; None: all, as often as sampling.classes says"
    )
    classes: str = choice(
        "data", ("data", "uniform"), "how often each class is drawn: as in the training data, or equally often"
    )
    guidance: float | None = real(
        None, "[-1e4, 1e4]", "scale of classifier-free guidance: 1 is none; needs dropout of a condition"
    )
    guidance_interval: tuple[float, ...] | None = several(
        None, float, "[0, 1e9]", "[2, 2]", "effective noises (low, high] at which to guide, model's range; None: all"
    )
    guide: str | None = path(
        None, "a weaker run of the same data: samples are guided away from it, with scale sampling.guidance"
    )
    clip: float | None = real(None, _POSITIVE, "largest |denoiser|, model's range; 1 for pictures; None: no limit")
    threshold: float | None = real(None, "(0, 1]", "quantile of dynamic thresholding of the denoiser, e.g. 0.995")
    condition: str | None = path(
        None, ".npz with arrays label, picture, vector: the conditions of samples; None: those of the test data"
    )
    checkpoint: int | str | None = step("step to load; best: of least loss of training.held_out; None: the newest")
    ema_length: float | None = real(
        None,
        "[0.01, 0.28]",
        "sigma_rel of the average of the parameters, from training.ema_snapshot_every; None: its own",
    )

    def __post_init__(self):
        own = self.times is None
        require(self.rho is None or self.grid == "karras", "sampling.grid", self.grid, "'karras' to use sampling.rho")
        for key in ("rho", "t_min"):
            value = getattr(self, key)
            require(value is None or own, f"sampling.{key}", value, "None with times of your own")
        if self.times is not None:
            size = self.num_steps + 1
            require(
                len(self.times) == size, "sampling.times", schema.shown(self.times), f"num_steps + 1 = {size} times"
            )
            falls = all(a > b for a, b in zip(self.times, self.times[1:], strict=False))
            require(falls, "sampling.times", schema.shown(self.times), "strictly falling")


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What `--mode=sample` makes of given examples: `hold_jax/loops/tasks`, docs/inverse.md."""

    name: str = choice(
        "draw",
        ("draw", "inpaint", "superres", "deblur", "colorize", "compress", "edit", "reconstruct", "interpolate"),
        "draw: new samples; else from given examples",
    )
    input: str | None = path(None, "a picture, .npy or .npz file (array x) of examples; None: the test split")
    measured: bool | None = switch(
        None, "inpaint, superres, deblur, colorize: the input is degraded already; it is measured otherwise (False)"
    )
    noise: float | None = real(
        None, "[0, 1e3]", "inverse problems: standard deviation of the measurement's noise, model's range (0.05)"
    )
    method: str | None = choice(
        None, ("dps", "moment_matching", "pigdm", "proximal"), "inverse problems: how (moment_matching)"
    )
    steps: int | None = whole(None, "[1, 1000]", "moment_matching: of its linear solver, a backward pass each (3)")
    scale: float | None = real(None, "[0, 1e3]", "dps: of the step (1)")
    mask: str | None = path(
        None,
        "inpaint: what is unknown (box); or a picture, white where known",
        "box | left | right | upper | lower | random | FILE",
    )
    share: float | None = real(None, "(0, 1]", "inpaint at random, compress: share of known values (0.5, 0.25)")
    factor: int | None = whole(None, "[2, 4096]", "superres: along each axis (2)")
    blur: float | None = real(None, "(0, 1000]", "deblur: standard deviation of the Gaussian, pixels (1)")
    start_noise: float | None = real(None, _POSITIVE, "edit: effective noise to start from, model's range (1)")
    between: int | None = whole(None, "[0, 1000]", "interpolate: results between two examples (6)")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Figures: `hold_jax/loops/evaluate.py`."""

    batch_size: int = whole(128, _COUNT, "test examples at once over all devices")
    split: str = choice(
        "test", ("test", "train", "both"), "whose loss and likelihood; train: as many random examples as test has"
    )
    repeats: int = whole(1, "[1, 1e5]", "perturbations of each test example")
    num_samples: int | None = whole(
        50_000,
        "[0, 1e8]",
        "samples to compare with data, 2 or more; None: as many as test examples; 0: none",
        optional=True,
    )
    features: str = text(
        "pixels",
        "names of feature networks",
        "inception | dinov2 | classifier | pixels | module:function, comma-separated",
        empty=True,
    )
    dinov2: str | None = path(None, "path of DINOv2's weights (the authors' .pth, or safetensors of transformers)")
    inception: str | None = path(
        None, "path of the FID network's weights (.pth of pytorch-fid, or .npz); None: fetched once"
    )
    stats: str | None = path(None, "reference statistics in a file (--mode=stats); None: of the training data")
    neighbors: int = whole(10, "[0, 1000]", "samples shown beside the training pictures nearest to them; 0: none")
    likelihood: bool = switch(False, "bits per dimension of the test data too")
    checkpoints: str = text(
        "newest", "newest, best, all, or steps like 10000,20000", "newest | best | all | steps, comma-separated"
    )

    def __post_init__(self):
        require(self.num_samples != 1, "eval.num_samples", self.num_samples, "None, 0, or 2 or more")
        for feature in names(self.features):
            if not is_own(feature):
                schema.require_choice("eval.features", feature, FEATURES)
        if self.checkpoints not in ("newest", "best", "all"):
            steps = names(self.checkpoints)
            fits = bool(steps) and all(step.isascii() and step.isdecimal() and len(step) <= 10 for step in steps)
            require(fits, "eval.checkpoints", self.checkpoints, "newest, best, all, or steps like 10000,20000")


@dataclasses.dataclass(frozen=True)
class LikelihoodConfig:
    """Bits per dimension: `hold_jax/likelihood.py`, `hold_jax/loops/likelihood.py`."""

    num_examples: int | None = whole(None, "[2, 1e8]", "of the test data; None: all")
    batch_size: int = whole(128, _COUNT, "examples at once over all devices")
    probes: int = whole(1, "[0, 10000]", "of the trace, for each draw; 0: the exact trace, a derivative a dimension")
    repeats: int = whole(1, "[1, 10000]", "draws of dequantization, auxiliaries and probes for each example")
    importance_weighted: bool = switch(False, "combine them as a tighter bound, not as a mean")
    auxiliary: str = choice(
        "posterior", ("posterior", "initial"), "law of the auxiliaries; initial: the papers', far looser"
    )
    t_min: float | None = real(None, _TIME, "where the flow ends; None = effective noise of 0.002")
    solver: str = choice(
        "tsit5", tuple(s for s in _ODE_SOLVERS if s != "euler"), "Runge-Kutta method with an error estimate"
    )
    rtol: float = real(1e-5, "[1e-12, 1]", "relative tolerance of a step")
    atol: float = real(1e-5, "[1e-12, 1e6]", "absolute tolerance, units of the state")
    max_steps: int = whole(1000, "[1, 1e6]", "steps of the solver; more is an error")


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """The choice of a sampler, --mode=tune: `hold_jax/loops/tune.py`."""

    calls: int | tuple[int, ...] = several(
        (10, 20, 50),
        int,
        "[2, 1e5]",
        "[1, 20]",
        "network calls to find the best sampler for, e.g. 10,20,50",
        or_one=True,
    )
    samples: int = whole(512, "[64, 1e6]", "samples in the last round; the first has an eighth of them")


@dataclasses.dataclass(frozen=True)
class Config:
    """All of an experiment. It is checked when it is read; what it is passed on to does not check it again."""

    seed: int = whole(0, _SEED, "of parameters, data order, noise, samples")
    logging: str = choice("files", ("files", "wandb"), "metrics.jsonl and TensorBoard; wandb: Weights & Biases too")
    sde: SDEConfig = section(SDEConfig)
    data: DataConfig = section(DataConfig)
    model: ModelConfig = section(ModelConfig)
    loss: LossConfig = section(LossConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    training: TrainingConfig = section(TrainingConfig)
    sampling: SamplingConfig = section(SamplingConfig)
    task: TaskConfig = section(TaskConfig)
    eval: EvalConfig = section(EvalConfig)
    likelihood: LikelihoodConfig = section(LikelihoodConfig)
    tune: TuneConfig = section(TuneConfig)

    def flat(self) -> dict[str, Any]:
        """Every value by `section.key`, in the table's order."""
        return schema.flatten(dataclasses.asdict(self))

    def changed(self, values: Mapping[str, Any]) -> "Config":
        """A copy with other values by `section.key`, checked.

        Raises:
          UserError: naming the key.
        """
        return schema.read(Config, self.flat() | dict(values))


KEYS = schema.keys(Config)
"""Every key by `section.key`: type, range, note."""


def get_config() -> Any:
    """The defaults as the locked ConfigDict that experiments change: third-order HOLD; no data set.

    Its type is left open, because a ConfigDict declares none of its attributes.
    """
    values: dict[str, Any] = dataclasses.asdict(Config())
    for key in KEYS:
        where, _, last = key.rpartition(".")
        inner = values[where] if where else values
        if inner[last] is None:
            inner[last] = placeholder(KEYS[key].kind)
    return ConfigDict(values).lock()


def read(config: ConfigDict) -> Config:
    """The settings that a ConfigDict, made by `get_config` and changed, holds.

    Raises:
      UserError: for a missing or unknown section or key, and for a value that is not allowed.
    """
    return schema.read(Config, flat_values(config))


def flat_values(config: ConfigDict) -> dict[str, Any]:
    """Every value of a ConfigDict by `section.key`; nothing may be missing or unknown.

    Raises:
      UserError: naming the section or key.
    """
    flat = schema.flatten(config.to_dict())
    for key in KEYS:
        where = key.partition(".")[0]
        if key not in flat and where in flat:
            raise UserError(f"`{where}` is {schema.shown(flat[where])}; it must be a section of the config")
        if key not in flat:
            raise UserError(f"the config has no key `{key}`: start from hold_jax.app.config.get_config()")
    for key in flat:
        schema.require_key(key, KEYS)
    return flat


def names(words: str) -> list[str]:
    """The names in a comma-separated list."""
    return [word for word in (part.strip() for part in words.split(",")) if word]
