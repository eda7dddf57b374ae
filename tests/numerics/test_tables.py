import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hold_jax.numerics import tables


def tabulate(function, **options):
    """The table, and its evaluation compiled."""
    table = tables.tabulate(function, **options)
    return table, jax.jit(lambda b: table(b))


def graded(b):
    """Entries like B^1/2, B^2, B^3/2 and B^11/2 at 0, one structural zero, a constant at 0."""
    b = b[:, None]
    columns = [
        np.sqrt(b) * (2 + np.cos(b)),
        0 * b,
        b**2 / (1 + b),
        b**1.5 * np.exp(-b),
        b**5.5 / (1 + b) ** 5,
        2 + np.sin(b),
    ]
    return np.concatenate(columns, axis=1).reshape(-1, 3, 2)


def test_every_entry_relatively_accurate_over_its_own_scale():
    # Rows of one scale each, so that "relative to the row" is "relative" for every one of these entries.
    for i in range(3):
        for j in range(2):
            if (i, j) == (0, 1):
                continue
            _, entry = tabulate(lambda b, i=i, j=j: graded(b)[:, i : i + 1, j : j + 1], top=20.0)
            b = np.append(np.geomspace(1e-12, 20.0, 400), [1e-30, 20.0]).astype(np.float32)
            want = graded(b.astype(np.float64))[:, i, j]
            got = np.asarray(entry(b))[:, 0, 0]
            normal = want > 1e-37  # below, float32 has no normal numbers
            np.testing.assert_allclose(got[normal], want[normal], rtol=1e-6, err_msg=f"entry {i}, {j}")
            np.testing.assert_allclose(got[~normal], want[~normal], atol=1e-37)


def test_graded_rows():
    # At small B the entries of a row differ by many orders, and each is still right relatively.
    table, evaluate = tabulate(graded, top=20.0)
    np.testing.assert_array_equal(table.twice_powers, [[1, 0], [4, 3], [11, 0]])
    b = np.geomspace(1e-6, 1e-2, 40).astype(np.float32)
    want, got = graded(b.astype(np.float64)), np.asarray(evaluate(b), np.float64)
    nonzero = want != 0
    np.testing.assert_allclose(got[nonzero], want[nonzero], rtol=1e-6)
    assert (got[~nonzero] == 0).all()


def test_zero_is_exact_and_outside_is_nan():
    _, evaluate = tabulate(graded, top=20.0)
    at_zero, at_top, below, above = evaluate(jnp.array([0.0, 20.0, -1e-6, 20.1]))
    np.testing.assert_allclose(at_zero, [[0, 0], [0, 0], [0, 2]], atol=0, rtol=1e-7)
    assert np.isfinite(at_top).all()
    assert np.isnan(below).all() and np.isnan(above).all()


def test_decay_is_taken_out():
    # e^{-3 B} (1 + B) over 30 decades.
    table, evaluate = tabulate(lambda b: ((1 + b) * np.exp(-3 * b))[:, None, None], top=24.0, rate=3.0)
    b = np.linspace(0, 24, 97).astype(np.float32)
    want = (1 + b.astype(np.float64)) * np.exp(-3 * b.astype(np.float64))
    np.testing.assert_allclose(np.asarray(evaluate(b))[:, 0, 0], want, rtol=8e-6)  # half an ulp of 72 is 4e-6
    assert len(table.edges) < 20


def test_derivative_and_batching():
    table, evaluate = tabulate(lambda b: (b**1.5 * np.exp(-b))[:, None, None], top=8.0)
    b = jnp.linspace(0.01, 7.9, 30)
    slope = jax.jit(jax.vmap(jax.grad(lambda x: table(x)[0, 0])))(b)
    exact = np.asarray(b, np.float64)
    want = (1.5 * exact**0.5 - exact**1.5) * np.exp(-exact)
    np.testing.assert_allclose(slope, want, atol=1e-5)
    np.testing.assert_array_equal(evaluate(b.reshape(5, 6)).ravel(), evaluate(b).ravel())


def test_rounding_errors_and_sums_of_powers_are_no_power():
    def function(b):
        b = b[:, None]
        return np.concatenate([2 + b, 1e-25 / np.sqrt(b), np.sqrt(1e-12 + b)], axis=1)[:, None]

    table, evaluate = tabulate(function, top=8.0)
    np.testing.assert_array_equal(table.twice_powers, [[0, 0, 0]])
    b = np.geomspace(1e-13, 8.0, 40).astype(np.float32)
    np.testing.assert_allclose(np.asarray(evaluate(b))[:, 0, 2], np.sqrt(1e-12 + b.astype(np.float64)), atol=1e-7)


def test_a_function_that_no_polynomial_resolves_is_refused():
    with pytest.raises(ArithmeticError, match="unresolved"):
        tables.tabulate(lambda b: (2 + np.sin(1e6 * b))[:, None, None], top=8.0)


def test_a_root_singularity_costs_pieces_only_where_it_is():
    def root(b):
        return (2 + np.cbrt(b - np.pi))[:, None, None]

    table = tables.tabulate(root, top=8.0)
    b = np.linspace(0.01, 8.0, 999).astype(np.float32)
    away = np.abs(b - np.pi) > 1e-4
    got = np.asarray(table(b))[away]
    np.testing.assert_allclose(got, root(b.astype(np.float64))[away], rtol=3e-6)
    assert len(table.edges) < 100
