"""The example agrees with quadrature."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).resolve().parents[2] / "examples" / "langevin.py"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample_mixture", "sample_logistic"])
def test_the_example_is_right(name):
    spec = importlib.util.spec_from_file_location("langevin_example", PATH)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    found, exact, _ = getattr(example, name)(num_samples=500)
    # Means in units of the exact deviations; some hundreds of effective samples at the least.
    np.testing.assert_allclose((found[0] - exact[0]) / exact[1], 0, atol=0.12)
    np.testing.assert_allclose(found[1] / exact[1], 1, atol=0.1)
