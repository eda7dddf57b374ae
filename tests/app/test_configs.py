"""Every experiment builds, and every key of `base` is used."""

import dataclasses
import importlib
import inspect
import json
import math
import pkgutil
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import slow_except

import configs
from hold_jax import inverse, kernels, likelihood, losses, parameterization, samplers, sde
from hold_jax.app import build, constructors
from hold_jax.app import config as base
from hold_jax.loops.draw import SampleSettings
from hold_jax.loops.evaluate import EvalSettings
from hold_jax.loops.likelihood import LikelihoodSettings
from hold_jax.loops.train import TrainSettings
from hold_jax.nn import MLP, NCSNpp, embeddings
from hold_jax.numerics import ode
from hold_jax.samplers import SAMPLERS, poisson_midpoint, predictor_corrector, splitting, whitened
from hold_jax.training import optimizer

SHAPES = {
    "celebahq256_cld": ((256, 256, 3), 0),
    "celebahq256_hold": ((256, 256, 3), 0),
    "cifar10_cld": ((32, 32, 3), 10),
    "cifar10_edm": ((32, 32, 3), 10),
    "cifar10_fast": ((32, 32, 3), 10),
    "cifar10_hold": ((32, 32, 3), 10),
    "cifar10_hold4": ((32, 32, 3), 10),
    "cifar10_hold_paper": ((32, 32, 3), 10),
    "cifar10_psld": ((32, 32, 3), 10),
    "cifar10_small_hold": ((32, 32, 3), 10),
    "cifar10_told": ((32, 32, 3), 10),
    "cifar10_toldpp": ((32, 32, 3), 10),
    "cifar10_ve": ((32, 32, 3), 10),
    "cifar10_vp": ((32, 32, 3), 10),
    "damped_sines_hold": ((64, 1), 3),
    "digits_hold": ((8, 8, 1), 10),
    "imagenet32_hold": ((32, 32, 3), 1000),
    "imagenet64_edm": ((64, 64, 3), 1000),
    "my_pictures": ((32, 32, 3), 0),
    "my_points": ((5,), 0),
    "my_signals": ((64, 2), 0),
    "swissroll_hold": ((2,), 4),
}
# Published processes: what they are is part of the experiment.
BASELINES = {
    "cifar10_hold4": sde.hold(order=4, gammas=(1.0, 2.0, 5.0), xi=4 * math.sqrt(5), L_inv=0.5, alpha=0.08, T=5.0),
    "cifar10_hold_paper": sde.hold(order=3, gammas=(1.0, math.sqrt(10)), xi=6.0, L_inv=0.5, alpha=0.08, T=5.0),
    "cifar10_psld": sde.psld(beta=8.0, Gamma=0.01, nu=4.01, kappa=0.04, mass=0.25),
    "cifar10_told": sde.hold(order=3, gammas=(1.0, math.sqrt(10)), xi=6.0, L_inv=0.5, alpha=0.08, T=5.0),
    "cifar10_toldpp": sde.hold(
        order=3, gammas=(1.0, 2 * math.sqrt(2)), xi=3 * math.sqrt(3), L_inv=0.5, alpha=0.08, T=5.0
    ),
}
# Counted in the authors' own networks, where the network is another's.
MILLIONS = {
    "cifar10_cld": 107.59,
    "cifar10_edm": 55.73,
    "cifar10_fast": 10.1,
    "cifar10_hold": 107.6,
    "cifar10_psld": 97.62,
    "cifar10_small_hold": 1.8,
    "cifar10_ve": 62.76,
    "imagenet64_edm": 295.90,
    "cifar10_vp": 61.80,
}
PROCESSES = [
    *({"name": "hold", "order": order} for order in (1, 2, 3, 4)),
    {"name": "hold", "damping": "told"},
    *({"name": name} for name in ("vp", "ve", "cld", "psld")),
]


def load(name):
    return importlib.import_module("hold_jax.app.config" if name == "base" else f"configs.{name}").get_config()


def typed(config):
    if not config.data.name:
        config.data.name = "digits"
    return base.read(config)


def test_every_experiment_is_listed_here():
    assert {module.name for module in pkgutil.iter_modules(configs.__path__)} == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_experiments_build_with_every_process(name):
    shape, num_classes = SHAPES[name]
    config = load(name)
    (
        build.loss(typed(config)),
        build.optimizer(typed(config)),
        build.training(typed(config)),
        build.evaluation(typed(config)),
    )
    settings = build.sampling(typed(config))
    assert settings.frames == 0 or settings.num_steps % settings.frames == 0
    features = base.names(config.eval.features)
    assert features and set(features) <= {"classifier", "inception", "pixels"}
    # Inception has seen pictures in color; a classifier needs labels.
    assert "inception" not in features or shape[-1:] == (3,)
    assert "classifier" not in features or num_classes >= 2
    # A report at the end of the training needs no file that must be fetched first.
    assert not (config.training.report and "inception" in features)
    assert build.checkpoint_steps(typed(config)) is None
    # Evaluated with the FID, CIFAR-10 and ImageNet have bits per dimension too: published figures to compare with.
    # `cifar10_fast` has none: its training and figures together fit the first minutes on a card.
    published = "inception" in features and shape == (32, 32, 3) and name != "cifar10_fast"
    assert config.eval.likelihood == published
    config.eval.likelihood = True
    assert build.evaluation(typed(config)).likelihood.solver.adaptive
    own = (*BASELINES, "celebahq256_cld", "cifar10_edm", "imagenet64_edm", "cifar10_ve")
    for changes in () if name in own else PROCESSES:
        config = load(name)
        if changes["name"] != "hold":
            config.sde.sigma_max = None  # of hold, for pictures of 256 x 256
        config.sde.update(changes)
        if changes["name"] == "psld" and name == "cifar10_cld":
            # PSLD's last noise alone says too little of the data.
            config.model.parameterization = "signal"
        given = {"sigma_max": config.sde.sigma_max} if changes["name"] == "hold" else {}
        assert build.model(typed(config), shape, num_classes).sde == constructors.SDES[changes["name"]](
            **{k: v for k, v in changes.items() if k != "name"}, **given
        )


def test_networks_of_others_have_their_processes():
    assert build.process(typed(load("cifar10_vp"))) == sde.vp(beta=(0.1, 19.9))
    assert build.process(typed(load("cifar10_cld"))) == sde.cld(mass=0.25, beta=4.0, gamma=0.04)
    # score_sde's noise from 0.01 to 50 is of data in [0, 1].
    m = build.process(typed(load("cifar10_ve")))
    assert m == sde.ve(sigma_min=0.02, sigma_max=100.0)
    t_min = load("cifar10_ve").loss.t_min
    assert float(kernels.effective_noise(m, jnp.float32(t_min))) == pytest.approx(0.02, rel=1e-5)
    low, high = (float(kernels.effective_noise(build.process(typed(load("cifar10_edm"))), t)) for t in edm_ends())
    assert (low, high) == (pytest.approx(0.002, rel=1e-4), pytest.approx(80, rel=1e-4))
    # Of another process the experiment is its network.
    other = importlib.import_module("configs.cifar10_ve").get_config("hold")
    other.sde.order = 3
    assert (
        build.model(typed(other), (32, 32, 3), 10).network
        == build.model(typed(load("cifar10_ve")), (32, 32, 3), 10).network
    )
    assert build.sampling(typed(other)).t_min is None


def edm_ends():
    m = build.process(typed(load("cifar10_edm")))
    return jnp.float32(m.t_min), jnp.float32(m.T)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_the_published_processes(name):
    config = load(name)
    m, published = build.process(typed(config)), BASELINES[name]
    for field in ("F", "G", "cov0", "prior_cov"):
        np.testing.assert_allclose(getattr(m, field), getattr(published, field), rtol=1e-12, atol=0)
    assert (m.schedule, m.T) == (published.schedule, published.T)
    # The same network at another order is one flag.
    config.sde.update({"name": "hold"} if name == "cifar10_psld" else {"damping": "critical"})
    config.sde.order = 2
    assert build.model(typed(config), *SHAPES[name]).network == build.model(typed(load(name)), *SHAPES[name]).network


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10_cld", "cifar10_hold4", "cifar10_psld"])
def test_baselines_are_finite_at_their_least_times(name):
    config = load(name)
    m = build.process(typed(config))

    # Effective noises go down to 1e-18 there: the exact eps_fn of data at 0 must still have no loss.
    def exact(u, t):
        return kernels.last_noise(m, u, t, jnp.zeros_like(u[..., 0, :]))

    assert jnp.max(build.loss(typed(config))(m, exact, jnp.zeros((64, 2)), jax.random.key(0))) < 1e-6
    settings = build.sampling(typed(config))
    out = samplers.sample(
        settings.sampler, m, exact, key=jax.random.key(1), shape=(8, 2), num_steps=settings.num_steps,
        grid=settings.grid, t_min=settings.t_min,
    )  # fmt: skip
    assert jnp.max(jnp.abs(out.x)) < 1e-3


def parameters(model):
    return jax.eval_shape(model.init, jax.random.key(0))


@pytest.mark.parametrize("name", slow_except({"cifar10_hold"}, {name: name for name in MILLIONS}))
def test_networks_have_the_published_count_of_parameters(name):
    tree = parameters(build.model(typed(load(name)), *SHAPES[name]))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) / 1e6
    assert count == pytest.approx(MILLIONS[name], abs=0.1)


@pytest.mark.parametrize(
    ("name", "order"), [*((name, None) for name in SHAPES), ("digits_hold", 1), ("digits_hold", 4)]
)
def test_the_blocks_of_the_state_lie_on_the_channels(name, order):
    config = load(name)
    config.sde.order = order
    model = build.model(typed(config), *SHAPES[name])
    points = name in ("my_points", "swissroll_hold")
    if not points:  # what comes behind the first convolution takes long to trace
        small = dataclasses.replace(model.network, channel_multipliers=(1,), num_res_blocks=1)
        model = dataclasses.replace(model, network=small)
    first = parameters(model)["hidden0" if points else "conv_in"]
    # A denoiser sees one block.
    blocks = 1 if build.any_process(typed(config)) else model.sde.order
    assert first["kernel"].shape[-2] == blocks * SHAPES[name][0][-1]


def test_configs_are_locked_and_each_is_a_copy_of_its_own():
    for name in SHAPES:
        config = load(name)
        with pytest.raises((AttributeError, KeyError)):
            config.training.num_step = 1
        config.training.num_steps = 1
        assert load(name).training.num_steps > 1


OPTIONS = ("ve_noise", "discrete_time", "discrete_noise", "time")  # conditionings with options


def parameters_of(section):
    """The names that what is built from a section takes."""
    taken = {
        "sde": [sde.hold, sde.vp, sde.ve, sde.cld, sde.psld],
        "model": [NCSNpp, MLP, build.Model, *map(constructors.CONDITIONINGS.get, OPTIONS)],
        "data": [build.load],
        "loss": [build.losses.score_matching_loss],
        "optimizer": [build.adam, build.learning_rate_schedule],
        "training": [TrainSettings],
        "sampling": [SampleSettings, *SAMPLERS.values()],
        "task": list(constructors.TASKS.values()),
        "eval": [EvalSettings],
        "likelihood": [LikelihoodSettings, ode.Solver],
        "tune": [],
    }
    return {name for constructor in taken[section] for name in inspect.signature(constructor).parameters}


def test_no_key_of_the_base_is_dead():
    readers = ("build", "modes", "packed", "prepare", "results", "tuned")
    source = "".join(inspect.getsource(importlib.import_module(f"hold_jax.app.{name}")) for name in readers)
    for section, keys in load("base").items():
        if section in ("seed", "logging"):  # no sections
            continue
        for key in keys:
            read_by_name = re.search(rf"\b(c|config\.{section})\.{key}\b", source)
            by_prefix = section == "loss" and key in ("time_mean", "time_std")
            assert key in parameters_of(section) or read_by_name or by_prefix, f"{section}.{key}"


def test_no_option_of_a_constructor_is_out_of_reach():
    bound = {
        "sde": set(),
        "model": {
            *("out_channels", "num_classes", "sde", "network", "data_shape", "statistics", "parent", "name"),
            *("augment", "augment_labels"),  # of data.augment
        },
        "data": {"split", "memory_limit_bytes"},
        "loss": {"sde", "eps_fn", "x", "key", "pair", "sigma_data"},
        "optimizer": {"num_steps", "batch_size"},  # of training
        "training": {"seed", "flip"},
        "sampling": {"sampler", "seed"},
        "task": set(),
        "eval": {"seed"},
        # Without error control there is nothing to trust.
        "likelihood": {"seed", "adaptive"},
    }
    for section, ours in bound.items():
        missing = parameters_of(section) - ours - set(load("base")[section])
        assert not missing, f"{section}: {missing}"


def test_every_key_has_a_note_and_a_range():
    assert len(base.KEYS) > 130
    for key, schema in base.KEYS.items():
        assert len(schema.note) >= 4 and schema.allowed, key


def test_the_names_that_a_key_may_have_are_those_of_its_table():
    tables = {
        "sde.name": constructors.SDES,
        "task.name": constructors.TASKS,
        "task.method": inverse.METHODS,
        "sde.damping": sde._DAMPINGS,
        "model.name": constructors.NETWORKS,
        "model.dtype": constructors.DTYPES,
        "model.parameterization": parameterization.PARAMETERIZATIONS,
        "model.conditioning": parameterization.CONDITIONINGS,
        "model.beta_schedule": parameterization.BETA_SCHEDULES,
        "model.embedding": embeddings.EMBEDDINGS,
        "model.label_place": embeddings.LABEL_PLACES,
        "loss.name": losses.LOSSES,
        "loss.weighting": losses.WEIGHTINGS,
        "loss.time_law": losses.TIME_LAWS,
        "optimizer.schedule": optimizer.SCHEDULES,
        "sampling.name": SAMPLERS,
        "sampling.grid": samplers.GRIDS,
        "sampling.base": poisson_midpoint.BASES,
        "sampling.spacing": poisson_midpoint.SPACINGS,
        "sampling.scheme": splitting.SCHEMES,
        "sampling.gauge": whitened.GAUGES,
        "sampling.predictor": predictor_corrector.PREDICTORS,
        "sampling.solver": ode.SOLVERS,
        "likelihood.auxiliary": likelihood.AUXILIARIES,
    }
    for key, table in tables.items():
        assert set(base.KEYS[key].choices) == set(table), key
    assert set(constructors.TIME_LAWS) == set(losses.TIME_LAWS)
    assert set(constructors.CONDITIONINGS) == set(parameterization.CONDITIONINGS)
    # Without an error estimate a likelihood is not to be trusted.
    assert set(base.KEYS["likelihood.solver"].choices) == set(ode.SOLVERS) - {"euler"}


@pytest.mark.parametrize("name", SHAPES)
def test_resolved_settings_build_the_same_and_leave_no_default_to_later_versions(name):
    given = typed(load(name))
    resolved = constructors.resolve(given)
    assert constructors.resolve(resolved) == resolved
    assert build.model(resolved, *SHAPES[name]) == build.model(given, *SHAPES[name])
    assert build.sampling(resolved).sampler == build.sampling(given).sampler
    if given.sde.name == "hold":
        assert resolved.sde.order == build.process(given).order
        assert None not in (resolved.sde.order, resolved.sde.L_inv, resolved.sde.alpha, resolved.sde.beta)
    # What is set is never replaced.
    flat, after = given.flat(), resolved.flat()
    assert all(after[key] == value for key, value in flat.items() if value is not None)


@pytest.mark.parametrize("name", ["base", *SHAPES])
def test_configs_survive_json(name):
    config = load(name)
    once = build.as_json(typed(config))
    assert json.loads(json.dumps(once)) == once
    assert once.keys() == set(config.keys())
