import numpy as np
import pytest

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
