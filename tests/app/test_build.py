import jax
import numpy as np
import pytest
from training import small

from configs import (
    cifar10_cld,
    cifar10_edm,
    cifar10_hold,
    cifar10_ve,
    cifar10_vp,
    digits_hold,
    swissroll_hold,
)
from hold_jax import losses, sde
from hold_jax.app import build, constructors
from hold_jax.app import config as base
from hold_jax.errors import UserError
from hold_jax.evaluation import inception_weights
from hold_jax.evaluation.feature_network import FeatureNetwork
from hold_jax.loops.evaluate import EvalSettings
from hold_jax.loops.likelihood import LikelihoodSettings
from hold_jax.nn import MLP, NCSNpp
from hold_jax.numerics import ode
from hold_jax.samplers import EulerMaruyama, Strang, gaussian_fitted, grids
from hold_jax.training.step import mean_loss

PICTURE, POINT = ((8, 8, 1), 10), ((2,), 4)


def config_of(module=digits_hold, **changes):
    config = module.get_config()
    changes = ({"data__name": "digits"} if module is base else {}) | changes
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return base.read(config)


def test_a_key_left_at_none_keeps_the_constructor_s_default():
    config = config_of(base)
    assert build.process(config) == sde.hold()
    model = build.model(config, (32, 32, 3), 0)
    want = NCSNpp(3)
    assert model.network == want
    assert build.sampling(config).sampler == gaussian_fitted()
    config = config_of(base, model__name="mlp")
    assert build.model(config, (5,), 0).network == MLP(5)


def test_a_key_that_is_set_arrives():
    config = config_of(
        sde__order=2, sde__alpha=0.5, model__channels=16, model__attention_resolutions=(8, 4), model__dtype="bfloat16",
        model__class_conditional=True, model__sigma_data=0.7, sampling__churn=0.5, seed=11,
        training__steps_per_call=5, data__flip=True, eval__repeats=4,
    )  # fmt: skip
    model = build.model(config, *PICTURE)
    assert model.sde == sde.hold(order=2, alpha=0.5)
    assert (model.network.channels, model.network.attention_resolutions) == (16, (8, 4))
    assert (model.network.num_classes, model.network.out_channels, model.sigma_data) == (10, 1, 0.7)
    assert model.network.dtype == constructors.DTYPES["bfloat16"]
    assert build.sampling(config).sampler == gaussian_fitted(churn=0.5)
    settings = build.training(config)
    assert (settings.seed, settings.flip, settings.steps_per_call) == (11, True, 5)
    assert build.evaluation(config).repeats == 4 and build.sampling(config).seed == 11
    assert build.sampling(config_of(sampling__name="euler_maruyama")).sampler == EulerMaruyama()
    start = config_of(sampling__name="strang", sampling__score_time="start")
    assert build.sampling(start).sampler == Strang(score_time="start")


def test_the_evaluation_arrives(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    changes = dict(batch_size=7, repeats=2, num_samples=30, neighbors=4)
    one = dict(eval__features="pixels")
    config = config_of(seed=11, eval__stats="~/a.npz", **one, **{f"eval__{name}": v for name, v in changes.items()})
    assert build.evaluation(config) == EvalSettings(**changes, stats=tmp_path / "a.npz", likelihood=None, seed=11)
    assert build.evaluation(config_of(base)).num_samples == 50_000
    assert build.evaluation(config_of()).num_samples is None and build.evaluation(config_of()).stats is None
    monkeypatch.chdir(tmp_path)
    assert build.evaluation(config_of(eval__stats="b.npz", **one)).stats == tmp_path / "b.npz"


def test_the_likelihood_arrives():
    changes = dict(
        num_examples=5, batch_size=6, probes=0, repeats=3, importance_weighted=True, auxiliary="initial", t_min=0.2
    )
    solver = dict(solver="bosh3", rtol=1e-3, atol=1e-2, max_steps=50)
    config = config_of(seed=4, eval__likelihood=True, **{f"likelihood__{k}": v for k, v in (changes | solver).items()})
    assert build.evaluation(config).likelihood == LikelihoodSettings(**changes, solver=ode.Solver(**solver), seed=4)
    # Left as it is, it is the default of `likelihood.bits_per_dim`: adaptive, at these tolerances.
    assert build.likelihood(config_of(base)).solver == ode.Solver(rtol=1e-5, atol=1e-5)
    assert build.evaluation(config_of(base)).likelihood is None


def test_only_a_denoiser_leaves_its_process_open():
    assert build.any_process(config_of())
    assert not build.any_process(config_of(model__conditioning="time"))
    assert not build.any_process(config_of(model__parameterization="gaussian"))
    assert all(build.any_process(module.get_config()) for module in (cifar10_vp, cifar10_ve, cifar10_edm))
    assert not build.any_process(cifar10_cld.get_config())


def never():
    raise AssertionError("the training data were read")


def test_feature_networks_are_those_asked_for_in_order(tmp_path, monkeypatch):
    def of(features, load_train=never, **changes):
        config = config_of(eval__features=features, **changes)
        return [network.name for network in build.feature_networks(config, load_train, tmp_path)]

    points = small.points()
    assert of("pixels", lambda: points) == ["pixels"] and of("") == [] and of(" , ") == []
    called = []
    for name in ("classifier", "inception"):
        stand_in = FeatureNetwork(name, name, None, None)
        monkeypatch.setattr(build, name, lambda *args, network=stand_in: called.append(args) or network)
    assert of(" pixels,classifier ", lambda: points) == ["pixels", "classifier"]
    assert of("classifier,pixels", lambda: points) == ["classifier", "pixels"]
    assert of("inception", eval__inception="w.pth") == ["inception"]
    assert called == [(points, tmp_path), (points, tmp_path), ("w.pth", "eval.inception")]


@pytest.mark.parametrize("features", ["pixles", "pixles,classifier", "classifier,pixles"])
def test_a_feature_network_that_is_unknown_is_named_before_any_is_made(features, tmp_path):
    with pytest.raises(UserError) as caught:
        build.feature_networks(config_of(eval__features=features), never, tmp_path)
    assert str(caught.value) == (
        "`eval.features` is 'pixles' (did you mean 'pixels'?); it must be one of: classifier, dinov2, inception, pixels"
    )


@pytest.mark.parametrize(
    ("frames", "num_steps", "want"), [(60, 60, 60), (60, 20, 20), (8, 34, 2), (30, 34, 17), (5, 7, 1), (0, 20, 0)]
)
def test_a_film_has_the_most_frames_that_divide_the_steps(frames, num_steps, want):
    config = config_of(digits_hold, sampling__frames=frames, sampling__num_steps=num_steps)
    assert build.sampling(config).frames == want


def test_inceptions_weights_are_the_published_ones_or_the_users_own(tmp_path, monkeypatch):
    # Neither a file nor a server that answers.
    monkeypatch.setattr(inception_weights, "FILE_URL", "http://127.0.0.1:9/pt_inception.pth")
    monkeypatch.setenv("HOLD_JAX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError) as caught:
        build.feature_networks(config_of(cifar10_hold), never, tmp_path)
    message = str(caught.value)
    assert message.startswith("the FID's Inception network cannot be fetched from http://127.0.0.1:9/")
    assert message.endswith("or take --config.eval.features=classifier") and "\n" not in message
    with pytest.raises(UserError, match=r"`eval.inception` is '.*none\.pth'; there is no such file"):
        build.feature_networks(config_of(cifar10_hold, eval__inception=str(tmp_path / "none.pth")), never, tmp_path)


def test_checkpoints_are_the_newest_all_or_a_list():
    def of(text):
        return build.checkpoint_steps(config_of(eval__checkpoints=text))

    assert (of("newest"), of("all"), of("500"), of(" 1000, 500,")) == (None, [], [500], [1000, 500])
    assert of("best") == ["best"]
    for text in ("", ",", "last", "1000,last", "-5", "5.0", "newest,5", "1e3"):
        with pytest.raises(UserError) as caught:
            of(text)
        want = f"`eval.checkpoints` is {text!r}; it must be newest, best, all, or steps like 10000,20000"
        assert str(caught.value) == want


def test_label_dropout_and_guidance_arrive():
    config = config_of(model__class_conditional=True, model__label_dropout=0.2, sampling__guidance=2.5)
    assert build.model(config, *PICTURE).label_dropout == 0.2
    assert build.sampling(config).guidance == 2.5
    assert build.model(config_of(), *PICTURE).label_dropout == 0.0
    assert build.sampling(config_of()).guidance is None


def test_own_couplings_arrive():
    config = config_of(sde__order=2, sde__gammas=(1.5,), sde__xi=2.0)
    assert build.process(config) == sde.hold(order=2, gammas=(1.5,), xi=2.0)


@pytest.mark.slow
def test_the_loss_has_its_options():
    loss = build.loss(config_of(loss__name="dsm", loss__weighting="q0", loss__time_law="uniform", loss__t_min=0.25))
    assert loss.func is losses.dsm_loss
    assert loss.keywords == dict(weighting=losses.q0_weight, time_law=losses.uniform, stratified=True, t_min=0.25)
    m, quantile = sde.hold(), np.linspace(0.1, 0.9, 5, dtype=np.float32)
    law = build.loss(config_of(loss__time_mean=0.5, loss__time_std=0.7)).keywords["time_law"]
    want = losses.log_normal(0.5, 0.7)
    np.testing.assert_array_equal(law(m, quantile, m.t_min).t, want(m, quantile, m.t_min).t)


def test_the_grid_has_its_exponent():
    m = sde.hold()
    grid = build.sampling(config_of(sampling__grid="karras", sampling__rho=3.0)).grid
    np.testing.assert_array_equal(grid(m, 0.1, 4), build.samplers.GRIDS["karras"](m, 0.1, 4, rho=3.0))


def test_times_of_one_s_own_replace_the_grid():
    m, times = sde.hold(), (2.0, 1.0, 0.5)
    settings = build.sampling(config_of(sampling__times=times, sampling__num_steps=2))
    np.testing.assert_array_equal(grids.times_of(m, settings.grid, 0.1, settings.num_steps), times)


def test_the_learning_rate_ends_with_the_run():
    config = config_of(optimizer__schedule="cosine", optimizer__warmup_steps=2, training__num_steps=10)
    params = {"w": np.ones(3, np.float32)}
    transformation = build.optimizer(config)
    state = transformation.init(params)
    sizes = []
    for _ in range(11):
        updates, state = transformation.update(params, state, params)
        sizes.append(float(np.abs(updates["w"]).max()))
    np.testing.assert_allclose(sizes[:2], [1e-3, 2e-3], rtol=1e-4)
    assert sizes[-1] == pytest.approx(0.0, abs=1e-8)


def all_of(config):
    build.loss(config), build.optimizer(config)
    build.training(config), build.sampling(config), build.evaluation(config), build.process(config)
    data = build.dataset(config, "train")
    return build.model(config, data.shape, data.num_classes)


def bits(**changes):
    return {"eval__likelihood": True} | {f"likelihood__{name}": value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # Unknown names, with the nearest.
        ({"sde__name": "hodl"}, "`sde.name` is 'hodl' (did you mean 'hold'?); it must be one of: cld, hold, psld, ve"),
        ({"sde__damping": "critcal"}, "`sde.damping` is 'critcal' (did you mean 'critical'?)"),
        ({"data__name": "digit"}, "`data.name` is 'digit' (did you mean 'digits'?)"),
        ({"model__name": "unet"}, "`model.name` is 'unet'; it must be one of: mlp, ncsnpp"),
        ({"model__dtype": "bfloat"}, "`model.dtype` is 'bfloat' (did you mean 'bfloat16'?)"),
        ({"model__parameterization": "gauss"}, "`model.parameterization` is 'gauss' (did you mean 'gaussian'?)"),
        ({"model__conditioning": "lognoise"}, "`model.conditioning` is 'lognoise' (did you mean 'log_noise'?)"),
        ({"model__embedding": "furier"}, "`model.embedding` is 'furier' (did you mean 'fourier'?)"),
        ({"model__resblock_type": "biggans"}, "`model.resblock_type` is 'biggans' (did you mean 'biggan'?)"),
        ({"loss__name": "bcms"}, "`loss.name` is 'bcms' (did you mean 'bcsm'?)"),
        ({"loss__weighting": "epsilon"}, "`loss.weighting` is 'epsilon'"),
        ({"loss__time_law": "lognormal"}, "`loss.time_law` is 'lognormal' (did you mean 'log_normal'?)"),
        ({"optimizer__schedule": "cosin"}, "`optimizer.schedule` is 'cosin' (did you mean 'cosine'?)"),
        ({"sampling__name": "strung"}, "`sampling.name` is 'strung' (did you mean 'strang'?)"),
        ({"sampling__grid": "karas"}, "`sampling.grid` is 'karas' (did you mean 'karras'?)"),
        ({"sampling__name": "strang", "sampling__score_time": "begin"}, "`sampling.score_time` is 'begin'"),
        # Values out of range.
        ({"sampling__order": 5}, "`sampling.order` is 5; it must be a whole number from 1 to 4"),
        ({"sampling__churn": -0.1}, "`sampling.churn` is -0.1; it must be a number from 0 to 1e4, or None"),
        ({"sampling__gauge": "cholesk"}, "`sampling.gauge` is 'cholesk' (did you mean 'cholesky'?)"),
        ({"sampling__name": "poisson_midpoint", "sampling__K": 0}, "`sampling.K` is 0; it must be a whole number"),
        ({"sampling__name": "probability_flow", "sampling__rtol": 0.0}, "`sampling.rtol` is 0.0; it must be a number"),
        ({"sampling__times": (2.0, 1.0), "sampling__rho": 7.0, "sampling__grid": "karras"}, "`sampling.rho` is 7.0"),
        ({"sampling__times": (2.0, 1.0), "sampling__num_steps": 1, "sampling__t_min": 0.1}, "`sampling.t_min` is 0.1"),
        ({"sde__order": 0}, "`sde.order` is 0; it must be a whole number from 1 to 6"),
        ({"sde__order": 12}, "`sde.order` is 12; it must be a whole number from 1 to 6"),
        ({"sde__order": 4, "sde__damping": "told"}, "`sde.order` is 4; it must be 3 with damping=\"told\""),
        ({"sde__L_inv": 0.0}, "`sde.L_inv` is 0.0; it must be a number above 0 and at most 1e6, or None"),
        ({"sde__L_inv": float("nan")}, "`sde.L_inv` is nan; it must be a number above 0 and at most 1e6, or None"),
        ({"sde__alpha": -0.1}, "`sde.alpha` is -0.1; it must be a number above 0 and at most 1e6, or None"),
        ({"sde__beta": 0.0}, "`sde.beta` is 0.0; it must be positive"),
        ({"sde__T": 0.0}, "`sde.T` is 0.0; it must be a number above 0 and below 1e6, or None"),
        ({"sde__xi": 1.0}, "`sde.gammas` is None; it must be given together with xi"),
        ({"sde__name": "vp", "sde__T": -1.0}, "`sde.T` is -1.0; it must be a number above 0 and below 1e6, or None"),
        ({"sde__name": "cld", "sde__mass": 0.0}, "`sde.mass` is 0.0; it must be a number above 0 and at most 1e6"),
        ({"model__sigma_data": 0.0}, "`model.sigma_data` is 0.0; it must be a number above 0 and at most 1e6"),
        ({"model__dropout": 1.0}, "`model.dropout` is 1.0; it must be a number at least 0 and below 1, or None"),
        ({"model__label_dropout": 1.0}, "`model.label_dropout` is 1.0; it must be a number at least 0 and below 1"),
        (
            {"model__label_dropout": 0.1},
            "`model.label_dropout` is 0.1; it must be 0 or None unless model.class_conditional is True",
        ),
        ({"sampling__guidance": float("inf")}, "`sampling.guidance` is inf; it must be a number from -1e4 to 1e4"),
        ({"loss__t_min": 0.0}, "`loss.t_min` is 0.0; it must be a number above 0 and below 1e6, or None"),
        ({"loss__t_min": 99.0}, "`loss.t_min` is 99.0; it must be between 0 and T = "),
        ({"loss__t_min": 1e-30}, "`loss.t_min` is 1e-30; it must be a time of an effective noise above 1.2e-38, not "),
        ({"loss__time_std": 0.0}, "`loss.time_std` is 0.0; it must be a number above 0 and at most 100, or None"),
        ({"optimizer__learning_rate": 0.0}, "`optimizer.learning_rate` is 0.0; it must be a number above 0"),
        ({"optimizer__b1": 1.0}, "`optimizer.b1` is 1.0; it must be a number above 0 and below 1"),
        ({"optimizer__warmup_steps": 1000}, "`optimizer.warmup_steps` is 1000; it must be below num_steps = 1000"),
        ({"training__steps_per_call": 3}, "`training.num_steps` is 1000; it must be a multiple of steps_per_call = 3"),
        ({"training__ema_decay": 1.5}, "`training.ema_decay` is 1.5; it must be a number at least 0 and below 1"),
        ({"seed": -1}, "`seed` is -1; it must be a whole number at least 0 and below 2^32"),
        ({"eval__repeats": 0}, "`eval.repeats` is 0; it must be a whole number from 1 to 1e5"),
        ({"eval__num_samples": 1}, "`eval.num_samples` is 1; it must be None, 0, or 2 or more"),
        ({"eval__neighbors": -1}, "`eval.neighbors` is -1; it must be a whole number from 0 to 1000"),
        ({"sampling__num_samples": 0}, "`sampling.num_samples` is 0; it must be a whole number from 1 to 1e8"),
        # The likelihood, where it is asked for.
        (bits(solver="tsit"), "`likelihood.solver` is 'tsit' (did you mean 'tsit5'?)"),
        (bits(rtol=0.0), "`likelihood.rtol` is 0.0; it must be a number from 1e-12 to 1"),
        (bits(atol=-1.0), "`likelihood.atol` is -1.0; it must be a number from 1e-12 to 1e6"),
        (bits(max_steps=0), "`likelihood.max_steps` is 0; it must be a whole number from 1 to 1e6"),
        (bits(num_examples=1), "`likelihood.num_examples` is 1; it must be a whole number from 2 to 1e8, or None"),
        (bits(batch_size=0), "`likelihood.batch_size` is 0; it must be a whole number from 1 to 1e6"),
        (bits(probes=-1), "`likelihood.probes` is -1; it must be a whole number from 0 to 10000"),
        (bits(repeats=0), "`likelihood.repeats` is 0; it must be a whole number from 1 to 10000"),
        (bits(auxiliary="prior"), "`likelihood.auxiliary` is 'prior'"),
        ({"data__image_size": 0}, "`data.image_size` is 0; it must be a whole number from 1 to 4096, or a tuple"),
        ({"data__channels": 2}, "`data.channels` is 2; it must be 1, 3 or None"),
        ({"data__memory_limit_gib": 0.0}, "`data.memory_limit_gib` is 0.0; it must be a number above 0"),
        # What the chosen thing does not take.
        ({"sde__name": "vp", "sde__order": 2}, "`sde.order` has no effect with sde.name = 'vp': leave it unset"),
        ({"sde__kappa": 1.0}, "`sde.kappa` has no effect with sde.name = 'hold': leave it unset"),
        ({"model__width": 3}, "`model.width` has no effect with model.name = 'ncsnpp': leave it unset"),
        ({"data__size": 3}, "`data.size` is 3; the data set 'digits' has no such option: leave it None"),
        (
            {"sampling__name": "lie_trotter", "sampling__score_time": "start"},
            "`sampling.score_time` has no effect with sampling.name = 'lie_trotter': leave it unset",
        ),
        (
            {"sampling__grid": "uniform", "sampling__rho": 7.0},
            "`sampling.grid` is 'uniform'; it must be 'karras' to use sampling.rho",
        ),
        (
            {"loss__time_law": "uniform", "loss__time_std": 1.0},
            "`loss.time_law` is 'uniform'; it must be 'log_normal' to use loss.time_std",
        ),
        # The wrong network or data.
        ({"data__image_size": 9}, "`height` is 9; it must be a multiple of 2 = 2**(num_levels - 1)"),
        ({"data__name": "gaussians8"}, "`model.name` is 'ncsnpp'; it must be 'mlp' for data of shape (2,)"),
        ({"model__standardize": True}, "`model.standardize` is True; it must be None for pictures"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_one_line_that_names_it(changes, message):
    with pytest.raises(UserError) as caught:
        all_of(config_of(**changes))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_an_mlp_takes_no_pictures_and_no_labels_where_there_are_none():
    with pytest.raises(UserError, match=r"`model.name` is 'mlp'; it must be 'ncsnpp' for data of shape \(8, 8, 1\)"):
        build.model(config_of(swissroll_hold), *PICTURE)
    with pytest.raises(UserError, match=r"`model.hidden_layers` is 0; it must be a whole number from 1 to 1000"):
        build.model(config_of(swissroll_hold, model__hidden_layers=0), *POINT)
    with pytest.raises(UserError, match=r"`model.class_conditional` is True; it must be False for data without labels"):
        build.model(config_of(swissroll_hold, model__class_conditional=True), (2,), 0)


def test_the_data_are_those_asked_for():
    data = build.dataset(config_of(swissroll_hold, data__size=12, data__seed=4), "train")
    assert (len(data), data.shape, data.num_classes) == (12, (2,), 4)
    digits = build.dataset(config_of(data__image_size=4), "test")
    assert (digits.shape, digits.split, digits.source.dtype) == ((4, 4, 1), "test", np.uint8)


def test_the_workdir_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert build.workdir("runs/a") == tmp_path / "runs" / "a"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build.workdir("~/b") == tmp_path / "b"
    with pytest.raises(UserError, match="`workdir` is ''; it must be a folder: pass --workdir=DIR"):
        build.workdir("")


@pytest.mark.parametrize("name", ["eps", "mixed", "score"])
def test_the_last_noise_alone_is_not_learned_where_its_errors_are_amplified(name):
    # PSLD has noise in both blocks: at t_min the last one's says 25 times less of the data than both.
    config = config_of(sde__name="psld", model__parameterization=name)
    message = f"`model.parameterization` is '{name}'; it must be signal, gaussian or sufficient: .* grow 25 times"
    with pytest.raises(UserError, match=message):
        build.model(config, *PICTURE)
    for able in ("signal", "gaussian", "sufficient"):
        build.model(config.changed({"model.parameterization": able}), *PICTURE)
    # PSLD without noise in the position is a CLD.
    build.model(config.changed({"sde.Gamma": 0.0, "sde.nu": 4.0}), *PICTURE)


def test_couplings_whose_last_noise_loses_the_data_are_an_error():
    config = config_of(sde__order=2, sde__gammas=(4.0,), sde__xi=0.5, sde__T=3.0)
    with pytest.raises(UserError, match=r"`sde` is .*'gammas': \(4.0,\), 'xi': 0.5.*nearer to critical damping"):
        build.model(config, *PICTURE)


def test_standardized_vectors_have_deviation_one_whatever_sigma_data_is():
    """Noise levels are absolute: a sigma_data of 47, as measured in data units, would leave them too small."""
    statistics = build.Statistics(mean=(1000.0, -3.0), std=(47.0, 47.0))
    model = build.model(config_of(swissroll_hold, model__sigma_data=47.0), *POINT, statistics)
    x = np.array([[1047.0, 44.0]], np.float32)
    np.testing.assert_allclose(model.to_model(x), [[1.0, 1.0]], rtol=1e-6)
    assert model.sigma_data == 1.0


@pytest.mark.slow
def test_the_loss_weighs_standardized_vectors_by_their_deviation_of_one():
    """EDM's weight makes every noise level's error 1 for Gaussian data and a network that is zero, as at the start."""
    mean, std = np.array([1000.0, -3.0]), np.array([47.0, 0.1])
    config = config_of(
        swissroll_hold, model__parameterization="sufficient", model__sigma_data=0.3, model__init_scale=0.0,
        model__width=2, model__hidden_layers=1, loss__weighting="edm", sde__order=1,
    )  # fmt: skip
    model = build.model(config, *POINT, build.Statistics(mean=tuple(mean), std=tuple(std)))
    x = (mean + std * np.random.default_rng(0).standard_normal((4096, 2))).astype(np.float32)
    batch = {"x": x, "label": np.zeros(len(x), np.int32)}
    params = model.init(jax.random.key(0))
    value = jax.jit(lambda batch: mean_loss(model, build.loss(config), params, batch, jax.random.key(1), train=False))
    # 2 * 4096 squares of normal numbers: the standard error is sqrt(2 / 8192) = .016.
    assert float(value(batch)) == pytest.approx(1.0, abs=0.05)
