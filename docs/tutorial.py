# %% [markdown]
# # From a damped spring to a generative model
#
# A diffusion model turns data into noise, step by step, and learns the way back. In the usual ones noise is thrown at
# the data itself. In *high-order Langevin dynamics* (HOLD) the data is the position of a particle which also has a
# velocity, an acceleration and so on, and noise enters only the last of them. This tutorial goes from the physics of
# that particle to a model trained in seconds, and checks every claim it makes with an `assert`.
#
# From the root of the repository: `python -m docs.tutorial` (about 20 seconds on a laptop's CPU, no download); the
# figures go to `docs/tutorial`, which is beside the notebook `docs/tutorial.ipynb`. The notebook is this file.
# Both need the package with matplotlib: `pip install -e ".[train]"` at the root of the repository.

# %%
"""From a damped spring to a generative model."""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from scipy.linalg import expm

from hold_jax import kernels, losses, parameterization, samplers, sde
from hold_jax.metrics.sliced_wasserstein import sliced_wasserstein

flags = argparse.ArgumentParser(allow_abbrev=False)
here = Path("docs") if Path("docs").is_dir() else Path()  # Jupyter runs a notebook in the notebook's own folder
flags.add_argument("--output", type=Path, default=here / "tutorial", help="folder of the figures")
FOLDER = flags.parse_known_args()[0].output
FOLDER.mkdir(parents=True, exist_ok=True)

ORDERS = (1, 2, 3, 4)
COLORS = {1: "#8c8c8c", 2: "#e39b27", 3: "#2d6cb5", 4: "#b5352d"}
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
plt.rcParams["figure.constrained_layout.h_pad"] = 0.08

# %% [markdown]
# ## 1. What damping does
#
# Without noise the chain of order $n$ is a linear system $\dot u = F u$ on $u = (q, p, \dots)$: neighbors exchange
# energy through couplings $\gamma_i$, and the last of them is slowed by a friction $\xi$. For $n = 2$ it is a spring:
# $\dot q = p,\ \dot p = -q - \xi p$. Too little friction, and it swings; too much, and it creeps, because the friction
# holds the velocity back. In between lies **critical damping**, where all eigenvalues of $F$ are equal: the start
# decays fastest.
#
# Why fastest? The trace of $F$ is $-\xi$, so that its $n$ eigenvalues have the mean $-\xi / n$, and the slowest of them
# is at best as fast as the mean. With all of them equal it is. HOLD++ (2506.21741) gives the couplings that do so at
# every order; `sde.critical_damping` returns them.

# %%


def chain(gammas, xi):
    """The drift matrix of HOLD: couplings gammas between neighbors, friction xi on the last block."""
    upper = np.diag(np.asarray(gammas, float), k=1)
    drift = upper - upper.T
    drift[-1, -1] = -xi
    return drift


def slowest_rate(drift):
    """How fast the slowest mode dies out; of many drifts (..., n, n) at once."""
    return -np.linalg.eigvals(drift).real.max(axis=-1)


figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
time = np.linspace(0, 12, 121)
springs = {"under-damped": (0.3, "#e39b27"), "critical": (2.0, "#2d6cb5"), "over-damped": (8.0, "#8c8c8c")}
for name, (xi, color) in springs.items():
    position = [(expm(chain([1.0], xi) * t) @ [1.0, 0.0])[0] for t in time]
    left.plot(time, position, color=color, label=rf"$\xi$ = {xi:g}, {name}")
left.axhline(0, color="black", lw=0.5)
left.set(title="a spring let go ($n = 2$)", xlabel="$t$", ylabel="position")
left.legend()

factors = np.exp(np.linspace(np.log(0.25), np.log(4), 401))
for order in ORDERS[1:]:
    gammas, xi = sde.critical_damping(order)
    rates = slowest_rate(np.stack([chain(gammas, xi * factor) for factor in factors]))
    right.plot(factors, rates, color=COLORS[order], label=f"order {order}")
    # Critical damping is the best friction, and its rate is omega = sqrt(2n - 3). (An n-fold eigenvalue is known to
    # the n-th root of the rounding error only.)
    assert abs(np.log(factors[rates.argmax()])) < 0.01
    assert np.isclose(slowest_rate(chain(gammas, xi)), np.sqrt(2 * order - 3), rtol=1e-3)
right.set(xscale="log", title="rate of the slowest mode", xlabel="friction over the critical friction")
right.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
right.minorticks_off()
right.legend()
figure.savefig(FOLDER / "damping.png", dpi=80)

# HOLD's own third order is over-damped: its slowest mode is slower, though its friction is larger.
told, critical = sde.hold(order=3, damping="told"), sde.hold(order=3)
print("TOLD's eigenvalues", np.sort(np.linalg.eigvals(told.F).real).round(3), "friction", -told.F[-1, -1])
print("TOLD++'s slowest rate", slowest_rate(critical.F).round(3), "friction", -critical.F[-1, -1].round(3))
assert slowest_rate(critical.F) > 1.7 * slowest_rate(told.F)

# %% [markdown]
# ## 2. Forward: from data to noise, smoothly
#
# Now the noise, $du = F u\,dt + G\,dw$, which enters the last block only. It reaches the position through $n - 1$
# integrations, and so the position's path has $n - 1$ derivatives, the last as rough as Brownian motion:
# the higher the order, the
# smoother the way from data to noise. `sde.hold(order=n)` holds the matrices; everything else in the package
# reads these matrices, whatever the model.

# %%
processes = {n: sde.hold(order=n) for n in ORDERS}
rng = np.random.default_rng(3)
figure, panels = plt.subplots(1, 4, figsize=(9, 2.2), sharey=True, layout="constrained")
for order, axes in zip(ORDERS, panels, strict=True):
    m = processes[order]
    step = 0.01
    phi, chol = (np.asarray(matrix) for matrix in kernels.transition(m, 0.0, step))  # exact for any step
    u = np.sqrt(np.diag(m.cov0)) * rng.standard_normal((4, order))  # auxiliaries start small, ...
    u[:, 0] = [1, 1, -1, -1]  # ... the position starts at the data
    path = [u[:, 0]]
    for _ in range(500):
        u = u @ phi.T + rng.standard_normal(u.shape) @ chol.T
        path.append(u[:, 0])
    axes.plot(step * np.arange(501), np.array(path), color=COLORS[order], lw=0.9)
    axes.set(title=f"order {order}", xlabel="$t$")
panels[0].set_ylabel("position")
figure.savefig(FOLDER / "forward.png", dpi=80)

# %% [markdown]
# ## 3. Exact kernels
#
# Training needs $u_t$ given the data at once, without simulating the path. It is Gaussian, and the textbook gives its
# covariance as a difference, $Q = \Sigma_\infty - e^{Fh} \Sigma_\infty e^{F'h}$. The noise of the position after a
# short time $h$ has come through $n - 1$ integrations: its deviation falls as $h^{n - 1/2}$, and the difference of two
# numbers of order one cannot show it. In float32 the textbook's value is rounding error at third order already at
# $h = 0.01$. `hold_jax.kernels` never forms the covariance: it carries its factor, exact to float32 rounding at all
# times.
#
# The same factor gives the **effective noise**. All that $u_t$ says of the data is one number for each dimension,
# $y = q_0 + \sigma_\mathrm{eff}(t)\,\varepsilon$: the sufficient statistic. $\sigma_\mathrm{eff}$ is the clock on which
# all orders agree.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.9), layout="constrained")
h = np.geomspace(1e-4, 1, 41)
for order, m in processes.items():
    phi, chol = (np.asarray(matrix) for matrix in kernels.transition(m, jnp.zeros(len(h)), h))
    exact = chol[:, 0, 0]
    textbook = 0.5 - 0.5 * np.sum(phi[:, 0] ** 2, axis=-1, dtype=np.float32)  # the stationary variance 1/L is 0.5
    left.loglog(h, exact, color=COLORS[order], label=f"order {order}")
    left.loglog(h, np.sqrt(np.where(textbook > 0, textbook, np.nan)), "x", ms=4, mew=0.8, color=COLORS[order])
    slope = np.polyfit(np.log(h[:11]), np.log(exact[:11]), 1)[0]
    assert abs(slope - (order - 0.5)) < 0.01, (order, slope)

    t = np.geomspace(1e-3, m.T, 200)
    noise = kernels.effective_noise(m, t)
    right.loglog(t, noise, color=COLORS[order], label=f"order {order}")
    assert np.isclose(noise[-1], 80, rtol=1e-3)  # hold's T is where it reaches 80
left.set(title="noise of the position after a time $h$", xlabel="$h$", ylabel="deviation", ylim=(1e-15, 3))
left.plot([], [], "x", color="black", ms=4, label="textbook, float32")
left.legend(fontsize=8)
right.set(title=r"effective noise $\sigma_\mathrm{eff}$", xlabel="$t$", ylim=(1e-6, 100))
figure.savefig(FOLDER / "kernels.png", dpi=80)

# %% [markdown]
# ## 4. One denoiser for all orders
#
# To go back in time one needs the score of $u_t$, all $n$ blocks of it. Two identities help. First, the noise of
# the last block determines everything: from it follows the denoiser $D = E[q_0 | u_t]$, and from $D$ the noise of every
# block (`kernels.denoiser`, `kernels.full_score`). Second, $D$ depends on $u_t$ through $y$ alone: *the best denoiser
# of any order is an ordinary denoiser* of $y = q_0 + \sigma_\mathrm{eff}\,\varepsilon$.
#
# Let us not take that on trust. For data at $\pm 1$ with equal odds Bayes' rule gives $D$ from the full state; it must
# be $\tanh(y / \sigma_\mathrm{eff}^2)$, the formula everyone knows from first order.

# %%
m = processes[3]
t = kernels.time_of_noise(m, 0.8)
kernel = kernels.marginal(m, t)
truth = rng.choice([-1.0, 1.0], size=(1000, 1)).astype(np.float32)
u = kernels.perturb(kernel, truth, rng.standard_normal((1000, 3, 1)).astype(np.float32))

phi, chol = np.asarray(kernel.phi, np.float64), np.asarray(kernel.chol, np.float64)
misfit = [np.linalg.solve(chol, np.asarray(u)[..., 0].T - sign * phi[:, :1]) for sign in (1, -1)]
bayes = np.tanh(np.sum(misfit[1] ** 2 - misfit[0] ** 2, axis=0) / 4)  # half the log odds

y, sigma = kernels.sufficient_statistic(m, u, t)
print(f"order 3: largest difference {np.abs(bayes - np.tanh(y[:, 0] / sigma**2)).max():.1e}")
assert np.allclose(bayes, np.tanh(y[:, 0] / sigma**2), atol=1e-4)

# %% [markdown]
# ## 5. Training
#
# The network is yours: any function of arrays. Here it is a perceptron in a dozen lines of plain JAX, which sees $y$,
# suitably scaled, and $\log \sigma_\mathrm{eff} / 4$; `parameterization.eps_function` puts EDM's preconditioning
# (2206.00364) around it and returns what the losses and samplers want, the noise of the last block. The loss is block
# coordinate score matching: perturb the data by the exact kernel, regress the last block's noise. We train at order 1,
# where everything is smallest, and will not train again.
#
# The data: a pinwheel of five arms in the plane.

# %%


def pinwheel(num, seed):
    """Five bent arms, (num, 2) float32, of unit variance."""
    rng = np.random.default_rng(seed)
    radius = 1 + 0.35 * rng.standard_normal(num)
    spread = 0.09 * rng.standard_normal(num) / radius.clip(0.3)
    angle = 2 * np.pi / 5 * rng.integers(5, size=num) + 0.9 * radius + spread
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return (points / np.sqrt((1 + 0.35**2) / 2)).astype(np.float32)


def init(key, sizes=(2 + 6, 128, 128, 128, 2)):
    """Weights and biases of each layer."""
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [(jax.random.normal(k, (a, b)) * jnp.sqrt(2.8 / a), jnp.zeros(b)) for k, a, b in shapes]


def network(params, inputs, noise_cond):
    """inputs (B, 2), noise_cond (B,) -> (B, 2)."""
    waves = noise_cond[:, None] * 2.0 ** jnp.arange(3)
    h = jnp.concatenate([inputs, jnp.sin(waves), jnp.cos(waves)], axis=-1)
    for weight, bias in params[:-1]:
        h = jax.nn.silu(h @ weight + bias)
    return h @ params[-1][0] * 0.1 + params[-1][1]


def eps_fn(m, params):
    """The network as a noise predictor of the process m: of any order, with the same parameters."""
    return parameterization.eps_function(
        m,
        functools.partial(network, params),
        parameterization=parameterization.sufficient,
        sigma_data=1.0,
    )


trained_on, num_steps = processes[1], 1500
data = jnp.asarray(pinwheel(20_000, seed=0))
optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, num_steps))
law = losses.log_normal(mean=-2.0, std=1.5)  # of the effective noise at which the network is trained


@jax.jit
def train(params, key):
    """All steps in one compiled loop; returns the average of the late parameters, and the losses."""

    def step(carry, key):
        params, average, state = carry
        key_batch, key_loss = jax.random.split(key)
        x = data[jax.random.randint(key_batch, (256,), 0, len(data))]

        def objective(params):
            return jnp.mean(losses.bcsm_loss(trained_on, eps_fn(trained_on, params), x, key_loss, time_law=law))

        loss, gradient = jax.value_and_grad(objective)(params)
        updates, state = optimizer.update(gradient, state)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: a + 0.01 * (p - a), average, params)
        return (params, average, state), loss

    carry = (params, params, optimizer.init(params))
    (_, average, _), values = jax.lax.scan(step, carry, jax.random.split(key, num_steps))
    return average, values


params, values = train(init(jax.random.key(0)), jax.random.key(1))
print(f"loss: {values[:50].mean():.3f} at the start, {values[-200:].mean():.3f} at the end")
assert values[-200:].mean() < 0.95 * values[:50].mean()

# %% [markdown]
# ## 6. Backward: from noise to data
#
# The reverse process starts from $N(0, 1/L)$ and is driven by the same kind of noise, in the last block, so that its
# paths are as smooth as the forward ones. All four orders below use *the same network*, trained at order 1 only, in 80
# steps of Strang's splitting. The number is the sliced Wasserstein distance of the samples to fresh data, over that of
# another fresh draw: 1 where the two cannot be told apart, give or take a third.

# %%
count = 1200
target = pinwheel(count, seed=1)
floor = np.mean([sliced_wasserstein(pinwheel(count, seed=i), target) for i in range(2, 10)])


def panel(axes, points, title):
    """A cloud in the plane, without a frame."""
    axes.scatter(*points.T, s=1.5, linewidths=0, color="#9fb4cc")
    axes.set(title=title, aspect="equal", xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


figure, panels = plt.subplots(1, 5, figsize=(11, 2.45), layout="constrained")
panel(panels[0], target, "data")
for order, axes in zip(ORDERS, panels[1:], strict=True):
    m = processes[order]
    options = {"shape": (count, 2), "num_steps": 80, "grid": "log", "frames": 80}
    draw = functools.partial(samplers.sample, samplers.Strang(), m, eps_fn(m, params), **options)
    paths = np.asarray(jax.jit(draw)(key=jax.random.key(2)).frames)
    ratio = sliced_wasserstein(paths[-1], target) / floor
    panel(axes, paths[-1], f"order {order}: {ratio:.1f}")
    for i in range(6):
        axes.plot(*paths[:, i].T, lw=0.8, color=plt.cm.plasma(i / 6.5))
        axes.plot(*paths[-1, i], "o", ms=3.5, color=plt.cm.plasma(i / 6.5))
    print(f"order {order}: sliced Wasserstein distance {ratio:.2f} times that of fresh data")
    assert ratio < 2
figure.savefig(FOLDER / "reverse.png", dpi=80)

# %% [markdown]
# All orders draw the same distribution from the same network. What the order changes is the path, not the end. It
# matters where a *network* has to follow the path (in its inputs and its errors) and where a *solver* has to; the
# [measurements](results/orders.md) show how much.
#
# ## 7. Few calls
#
# How many calls of the network a sample costs is up to the solver. Euler-Maruyama, the usual first choice, needs
# hundreds of steps. The package's default, `gaussian_fitted`, follows the one direction of the state that depends on
# the data; without fresh noise (`churn=0`) it has the arms at ten calls, where Euler-Maruyama has a cloud.

# %%
m = processes[3]
figure, panels = plt.subplots(1, 3, figsize=(7, 2.5), layout="constrained")
panel(panels[0], target, "data")
ratios = []
suite = {"Euler-Maruyama": samplers.EulerMaruyama(), "gaussian_fitted": samplers.gaussian_fitted(churn=0.0)}
for axes, (name, sampler) in zip(panels[1:], suite.items(), strict=True):
    options = {"shape": (count, 2), "num_steps": 9, "grid": "log"}
    out = jax.jit(functools.partial(samplers.sample, sampler, m, eps_fn(m, params), **options))(key=jax.random.key(3))
    ratios.append(sliced_wasserstein(out.x, target) / floor)
    panel(axes, np.asarray(out.x), f"{name}: {ratios[-1]:.1f}")
figure.savefig(FOLDER / "calls.png", dpi=80)
print(f"10 calls: Euler-Maruyama {ratios[0]:.2f}, gaussian_fitted {ratios[1]:.2f}")
assert ratios[1] < 3 and 2 * ratios[1] < ratios[0]

# %% [markdown]
# ## Where to go on
#
# - [docs/library.md](library.md): the Python interface with networks of Flax, Equinox, Haiku or none; likelihoods,
#   encoding, guidance.
# - [docs/method.md](method.md): the mathematics, equation by equation.
# - `python main.py --config=configs/digits_hold.py --mode=train --workdir=runs/digits`: pictures, checkpoints,
#   evaluation; `--config.sde.order` changes the order.
