import numpy as np
import pytest

from hold_jax import parameterization, samplers, sde
from hold_jax.errors import UserError, require, require_choice


def test_an_array_or_a_long_text_is_shown_on_one_short_line():
    for value in (np.linspace(0, 1, 900), np.eye(40), "x" * 10_000):
        with pytest.raises(UserError, match=r"`times` is .* \.\.\. .*; it must be falling") as caught:
            require(False, "times", value, "falling")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 220


def test_a_short_value_is_shown_whole():
    with pytest.raises(UserError, match=r"^`order` is 12; it must be 1 to 6$"):
        require(False, "order", 12, "1 to 6")
    with pytest.raises(
        UserError, match=r"^`name` is 'unipd' \(did you mean 'unipc'\?\); it must be one of: heun, unipc$"
    ):
        require_choice("name", "unipd", ["unipc", "heun"])


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda x: sde.critical_damping(x), "order"),
        (lambda x: sde.psld(Gamma=x), "Gamma"),
        (lambda x: samplers.SAMPLERS["heun"](s_churn=x), "s_churn"),
        (lambda x: samplers.SAMPLERS["heun"](s_max=x), "s_max"),
        (lambda x: samplers.SAMPLERS["probability_flow"](rtol=x), "rtol"),
        (lambda x: samplers.SAMPLERS["conjugate"](lam=x), "lam"),
        (lambda x: samplers.SAMPLERS["predictor_corrector"](snr=x), "snr"),
        (lambda x: samplers.GRIDS["karras"](sde.hold(2), 0.1, 5, rho=x), "rho"),
        (lambda x: parameterization.discrete_time("linear", x), "beta_start"),
        (lambda x: parameterization.discrete_time(num_times=x), "num_times"),
        (lambda x: parameterization.discrete_noise(noise_max=x), "noise_max"),
    ],
)
@pytest.mark.parametrize("value", ["1", None, True])
def test_a_text_is_no_number(make, argument, value):
    with pytest.raises(UserError, match=f"`{argument}` is {value!r}; it must be "):
        make(value)
