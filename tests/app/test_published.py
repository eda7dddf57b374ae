"""What each published experiment states, with its source, and what our config does otherwise on purpose.

docs/results/papers.md says the same in prose.
"""

import importlib
from pathlib import Path

import numpy as np
import pytest

import configs
from hold_jax.app import build, constructors
from hold_jax.app import config as base
from hold_jax.training.optimizer import adam

# By source: a config's keys and the values stated there.
CLD_CODE = "CLD-SGM, configs/default_cifar10.txt, specific_cifar10.txt, main.py, losses.py"
CLD_FACES = "CLD-SGM, configs/default_celeba_post_paper.txt, specific_celeba_post_paper.txt"
HOLDPP_CODE = "HOLD++'s authors' code (MIAHOLDCIFAR), sde_lib.py, configs"
PSLD_CODE = "PSLD, scripts_psld/sota/uncond/cifar10/train_uncond_psld.sh, configs/dataset/cifar10/cifar10_psld.yaml"
PSLD_TABLE = "2402.07211, table 1 and appendix D"
TOLDPP = "2409.07697, section IV.B and table II"
SCORE_SDE = "score_sde_pytorch, configs/{vp,ve}, configs/default_cifar10_configs.py, losses.py"
SCORE_SDE_FACES = "score_sde_pytorch, configs/ve/celebahq_256_ncsnpp_continuous.py, configs/default_lsun_configs.py"
EDM = "2206.00364, tables 1 and 7; edm/train.py"

NCSNPP = {
    "model.channels": 128,
    "model.channel_multipliers": (1, 2, 2, 2),
    "model.attention_resolutions": (16,),
    "model.resblock_type": "biggan",
    "model.resample_with_conv": True,
    "model.skip_rescale": True,
    "model.progressive": "none",
    "model.init_scale": 0.0,
}
# score_sde's, and of what comes from it. NCSN++'s way down and the embedding of the time.
FIR = {"model.fir": True, "model.fir_kernel": (1.0, 3.0, 3.0, 1.0), "model.progressive_input": "residual"}
PLAIN = {"model.fir": False, "model.progressive_input": "none", "model.embedding": "positional"}
FOURIER = {"model.embedding": "fourier", "model.fourier_scale": 16.0}
ADAM = {
    "optimizer.learning_rate": 2e-4,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.weight_decay": 0.0,
    "training.ema_decay": 0.9999,
}
# Independent times, uniform in t; weight 1 of the squared error of the noise.
UNIFORM = {"loss.weighting": "eps", "loss.time_law": "uniform", "loss.stratified": False, "loss.t_min": 1e-5}
TOLD = {
    TOLDPP: {
        **NCSNPP,
        "model.num_res_blocks": 4,
        "loss.name": "bcsm",
        "loss.time_law": "uniform",
        "training.batch_size": 64,
        "training.num_steps": 700_000,
        "sampling.name": "euler_maruyama",
        "sampling.num_steps": 199,  # and the denoising
        "sampling.denoise": True,
        "eval.num_samples": 10_000,
    },
    HOLDPP_CODE: {
        **{**NCSNPP, **FIR, **FOURIER, **ADAM, **UNIFORM},
        "sde.name": "hold",
        "sde.L_inv": 0.5,
        "sde.alpha": 0.08,
        "sde.beta": 1.0,
        "sde.T": 5.0,
        "data.flip": True,
        "model.parameterization": "eps",
        "model.conditioning": "log_time",
        "model.dropout": 0.1,
        "loss.name": "bcsm",
        "optimizer.warmup_steps": 5000,
        "sampling.t_min": 1e-3,
        "sampling.denoise": True,
    },
}
PUBLISHED = {
    "cifar10_told": {**TOLD, "2409.07697, section II": {"sde.damping": "told", "sde.order": 3}},
    "cifar10_toldpp": {**TOLD, "2409.07697, section III": {"sde.damping": "critical", "sde.order": 3}},
    "cifar10_hold_paper": {
        "2404.12814; 2409.07697, section IV.B": {
            **NCSNPP,
            "sde.damping": "told",
            "sde.order": 3,
            "model.num_res_blocks": 4,
        },
        HOLDPP_CODE: TOLD[HOLDPP_CODE],
    },
    "cifar10_hold4": {
        HOLDPP_CODE: {
            **TOLD[HOLDPP_CODE],
            "sde.damping": "critical",
            "model.num_res_blocks": 8,
            "training.num_steps": 800_000,
            "sampling.name": "euler_maruyama",
        }
    },
    "cifar10_psld": {
        PSLD_CODE: {
            **{**NCSNPP, **FIR, **FOURIER, **ADAM},
            "sde.name": "psld",
            "sde.beta": 8.0,
            "sde.T": 1.0,
            "sde.mass": 0.25,
            "sde.Gamma": 0.01,
            "sde.nu": 4.01,
            "sde.kappa": 0.04,
            "model.channel_multipliers": (2, 2, 2),
            "model.num_res_blocks": 8,
            "model.dropout": 0.15,
            "model.conditioning": "log_time",
            "data.flip": True,
            "optimizer.warmup_steps": 5000,
            "loss.name": "bcsm",
            "loss.time_law": "uniform",
            "loss.stratified": False,
            "loss.t_min": 1e-5,
            "training.batch_size": 128,  # 16 on each of 8 devices
        },
        PSLD_TABLE: {
            "sampling.name": "euler_maruyama",
            "sampling.num_steps": 999,
            "sampling.grid": "quadratic",
            "sampling.t_min": 1e-3,
            "sampling.denoise": True,
            "eval.num_samples": 50_000,
        },
    },
    "cifar10_cld": {
        CLD_CODE: {
            **{**NCSNPP, **FIR, **FOURIER, **ADAM, **UNIFORM},
            "sde.name": "cld",
            "sde.beta": 4.0,
            "sde.T": 1.0,
            "sde.mass": 0.25,
            "sde.gamma": 0.04,
            "data.flip": True,
            "model.num_res_blocks": 8,
            "model.parameterization": "mixed",
            "model.conditioning": "log_time",
            "model.dropout": 0.1,
            "loss.name": "bcsm",
            "optimizer.warmup_steps": 100_000,
            "training.batch_size": 128,
            "training.num_steps": 800_000,
            "sampling.name": "probability_flow",
            "sampling.rtol": 1e-5,
            "sampling.atol": 1e-5,
            "sampling.t_min": 1e-3,
            "sampling.denoise": True,
            "eval.num_samples": 50_000,
        }
    },
    "celebahq256_cld": {
        CLD_FACES: {
            **{**NCSNPP, **PLAIN, **ADAM, **UNIFORM},
            "sde.name": "cld",
            "sde.beta": (0.1, 6.9),
            "sde.T": 1.0,
            "sde.mass": 0.25,
            "sde.gamma": 0.04,
            "data.image_size": 256,
            "data.flip": True,
            "model.channel_multipliers": (1, 1, 2, 2, 2, 2, 2),
            "model.num_res_blocks": 4,
            "model.parameterization": "mixed",
            "model.dropout": 0.1,
            "loss.name": "bcsm",
            "loss.t_min": 1e-3,
            "optimizer.learning_rate": 1e-4,
            "optimizer.weight_decay": 1e-2,
            "optimizer.warmup_steps": 100_000,
            "training.batch_size": 96,
            "training.num_steps": 600_000,
            "sampling.name": "probability_flow",
            "sampling.t_min": 1e-3,
            "sampling.denoise": True,
        }
    },
    "celebahq256_hold": {
        SCORE_SDE_FACES: {
            **{**NCSNPP, **FOURIER},
            "data.image_size": 256,
            "data.flip": True,
            "model.channel_multipliers": (1, 1, 2, 2, 2, 2, 2),
            "model.num_res_blocks": 2,
            "model.fir": True,
            "model.fir_kernel": (1.0, 3.0, 3.0, 1.0),
            "model.dropout": 0.0,
            "optimizer.warmup_steps": 5000,
            "optimizer.clip_norm": 1.0,
            "training.batch_size": 64,
        },
        CLD_FACES: {"optimizer.learning_rate": 1e-4, "training.num_steps": 600_000, "training.ema_decay": 0.9999},
    },
    "cifar10_vp": {
        SCORE_SDE: {
            **{**NCSNPP, **PLAIN, **ADAM, **UNIFORM},
            "sde.name": "vp",
            "sde.beta": (0.1, 19.9),  # from 0.1 to 20
            "sde.T": 1.0,
            "data.flip": True,
            "model.parameterization": "vp",
            "model.conditioning": "vp_time",
            "model.num_res_blocks": 4,
            "model.dropout": 0.1,
            "optimizer.warmup_steps": 5000,
            "optimizer.clip_norm": 1.0,
            "optimizer.eps": 1e-8,
            "training.batch_size": 128,
            "training.num_steps": 1_300_000,
            "sampling.name": "euler_maruyama",
            "sampling.num_steps": 999,
            "sampling.grid": "uniform",
            "sampling.t_min": 1e-3,
            "sampling.denoise": True,
            "eval.num_samples": 50_000,
        }
    },
    "cifar10_ve": {
        SCORE_SDE: {
            **{**NCSNPP, **FIR, **FOURIER, **ADAM},
            "sde.name": "ve",
            "sde.sigma_min": 0.02,  # theirs 0.01 and 50, for data in [0, 1]
            "sde.sigma_max": 100.0,
            "data.flip": True,
            "model.parameterization": "ve",
            "model.conditioning": "ve_noise",
            "model.num_res_blocks": 4,
            "model.dropout": 0.1,
            "loss.weighting": "eps",
            "loss.time_law": "log_uniform",  # uniform t, and sigma geometric in t
            "loss.stratified": False,
            "optimizer.warmup_steps": 5000,
            "training.batch_size": 128,
            "training.num_steps": 1_300_000,
            "training.ema_decay": 0.999,
            "sampling.name": "predictor_corrector",
            "sampling.predictor": "euler_maruyama",  # reverse diffusion is Euler-Maruyama in sigma^2
            "sampling.corrector_steps": 1,
            "sampling.snr": 0.16,
            "sampling.num_steps": 1000,
            "sampling.grid": "uniform",
            "sampling.denoise": True,
            "eval.num_samples": 50_000,
        }
    },
    "cifar10_edm": {
        EDM: {
            **PLAIN,
            "sde.order": 1,
            "data.augment": 0.12,
            "data.flip": False,  # half of the pictures are mirrored by the augmentation
            "model.parameterization": "sufficient",
            "model.conditioning": "log_noise",
            "model.sigma_data": 0.5,
            "model.channels": 128,
            "model.channel_multipliers": (2, 2, 2),
            "model.num_res_blocks": 4,
            "model.attention_resolutions": (16,),
            "model.skip_rescale": True,
            "model.dropout": 0.13,
            "loss.weighting": "edm",
            "loss.time_law": "log_normal",
            "loss.time_mean": -1.2,
            "loss.time_std": 1.2,
            "loss.stratified": False,
            "optimizer.learning_rate": 1e-3,
            "optimizer.b1": 0.9,
            "optimizer.b2": 0.999,
            "optimizer.warmup_images": 10_000_000,
            "optimizer.clip_norm": 0.0,
            "training.batch_size": 512,
            "training.num_steps": 390_625,  # 200 million pictures
            "training.ema_halflife_images": 500_000,
            "training.ema_rampup_ratio": 0.05,
            "sampling.name": "heun",
            "sampling.num_steps": 17,  # and the denoising: 35 calls
            "sampling.grid": "karras",
            "sampling.rho": 7.0,
            "sampling.s_churn": 0.0,
            "sampling.denoise": True,
            "eval.num_samples": 50_000,
        }
    },
}
ADM = "2206.00364, table 8 and README.md of github.com/NVlabs/edm: imagenet-64x64-cond-adm"
PUBLISHED["imagenet64_edm"] = {
    ADM: {
        **{
            key: value
            for key, value in PUBLISHED["cifar10_edm"][EDM].items()
            if key.startswith(("loss.", "optimizer.b", "optimizer.warmup", "sampling."))
        },
        "sde.order": 1,
        "data.augment": 0.0,
        "model.parameterization": "sufficient",
        "model.conditioning": "log_noise",
        "model.sigma_data": 0.5,
        "model.class_conditional": True,
        "model.channels": 192,
        "model.channel_multipliers": (1, 2, 3, 4),
        "model.num_res_blocks": 3,
        "model.attention_resolutions": (32, 16, 8),
        "model.attention_head_dim": 64,
        "model.dropout": 0.1,
        "optimizer.learning_rate": 1e-4,
        "optimizer.clip_norm": 0.0,
        "training.batch_size": 4096,
        "training.num_steps": 610_352,  # 2,500 million pictures
        "training.ema_halflife_images": 50_000_000,
        "training.ema_rampup_ratio": 0.05,
        "sampling.num_steps": 255,  # and the denoising: 511 calls
        "sampling.s_churn": 40 * 255 / 256,  # theirs is divided by the 256 levels
        "sampling.s_min": 0.05,
        "sampling.s_max": 50.0,
        "sampling.s_noise": 1.003,
    }
}
SUMMED = "the same steps: theirs sums the loss over a picture's values, ours is their mean"
CLIPPING = {
    "optimizer.clip_norm": (1.0, 1 / 3072, SUMMED),
    "optimizer.eps": (1e-8, 1e-8 / 3072, SUMMED),
}
NOT_STATED = ("not stated", "uniform", "the authors' later code has it so by default")
# Config: key: what is published, what is here, why.
ON_PURPOSE = {
    "cifar10_told": {**CLIPPING, "sampling.grid": NOT_STATED},
    "cifar10_toldpp": {**CLIPPING, "sampling.grid": NOT_STATED},
    "cifar10_hold4": {
        **CLIPPING,
        "sampling.grid": NOT_STATED,
        "sampling.num_steps": ("not stated", 199, "TOLD++'s"),
        "training.batch_size": ("not stated", 128, "CLD's"),
    },
    "cifar10_hold_paper": {
        **CLIPPING,
        "sampling.grid": NOT_STATED,
        "sampling.num_steps": ("not stated", 999, "as many as CLD's table goes up to"),
        "sampling.name": (
            "a Lie-Trotter sampler, its order not stated",
            "lie_trotter_split",
            "score, noise, couplings",
        ),
        "training.batch_size": ("not stated", 128, "CLD's"),
    },
    "cifar10_psld": {
        "model.parameterization": ("the noise of both blocks", "signal", "all but the noise along the signal is known"),
        "loss.weighting": ("the sum of both squared errors", "signal", "the same sum, by that one noise"),
        "optimizer.clip_norm": (1.0, 2.0, "the same steps: theirs is the mean over both blocks, ours their sum"),
        "optimizer.eps": (1e-8, 2e-8, "the same"),
    },
    "cifar10_cld": {**CLIPPING, "sampling.solver": ("RK45 of torchdiffeq's scipy", "dopri5", "the same pair")},
    "celebahq256_cld": {
        "optimizer.clip_norm": (1.0, 1 / 196_608, SUMMED),
        "optimizer.eps": (1e-8, 1e-8 / 196_608, SUMMED),
        "model.conditioning": ("t itself", "time", "999 t, as score_sde: small times differ then"),
    },
    "celebahq256_hold": {
        "model.progressive_input": ("input_skip, and output_skip", "residual", "CLD's and HOLD's network of CIFAR-10"),
    },
    "cifar10_ve": {
        "optimizer.clip_norm": (1.0, 1 / 1536, "the same steps: theirs is half the sum over a picture's values"),
        "optimizer.eps": (1e-8, 1e-8 / 1536, "the same"),
    },
    "cifar10_edm": {
        "optimizer.eps": (1e-8, 1e-8 / 3072, SUMMED),
    },
    "imagenet64_edm": {
        "optimizer.eps": (1e-8, 1e-8 / 12_288, SUMMED),
    },
}
# This package's own experiments.
OURS = {"cifar10_fast", "cifar10_hold", "cifar10_small_hold"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_has_every_published_value(name):
    # With the defaults that constructors have: what is not set in the file is listed too.
    settings = constructors.resolve(base.read(importlib.import_module(f"configs.{name}").get_config()))
    flat, deviations = settings.flat(), ON_PURPOSE.get(name, {})
    for source, stated in PUBLISHED[name].items():
        for key, wanted in stated.items():
            assert key not in deviations, f"{key} is listed twice"
            assert flat[key] == wanted, f"{key}: {source}"
    for key, (published, ours, why) in deviations.items():
        assert published != ours and why
        assert flat[key] == ours, key
    build.sampling(settings), build.loss(settings)


def test_every_config_of_a_paper_is_listed():
    found = {
        path.stem
        for pattern in ("cifar10_*", "celebahq256_*", "imagenet64_*")
        for path in Path(configs.__path__[0]).glob(pattern)
    }
    assert found - OURS == set(PUBLISHED)


def test_a_summed_loss_and_a_mean_make_the_same_steps():
    # The gradient of the sum over 3,072 values is 3,072 times the mean's: clipping and Adam's eps scale with it.
    rng = np.random.default_rng(0)
    # The norms are below and above the one at which they clip.
    gradients = [(scale * rng.standard_normal(1000)).astype(np.float32) for scale in (1e-6, 1e-3, 1.0)]

    def last_step(factor: float, clip_norm: float, eps: float) -> np.ndarray:
        optimizer = adam(2e-4, b1=0.9, b2=0.999, weight_decay=0.0, clip_norm=clip_norm, eps=eps)
        params = np.zeros(1000, np.float32)
        state = optimizer.init(params)
        for gradient in gradients:
            step, state = optimizer.update(factor * gradient, state, params)
        return np.asarray(step)

    summed = last_step(3072, 1.0, 1e-8)
    np.testing.assert_allclose(last_step(1, 1 / 3072, 1e-8 / 3072), summed, rtol=1e-5, atol=1e-9)
    assert np.abs(last_step(1, 1.0, 1e-8) - summed).max() > 1e-5  # of steps of about 1e-4


def test_psld_s_epochs():
    config = importlib.import_module("configs.cifar10_psld").get_config()
    epochs = config.training.num_steps * config.training.batch_size / 50_000
    assert epochs == pytest.approx(2500, rel=1e-3)
