import pytest


def slow_except(fast, cases):
    """Parameters of `pytest.mark.parametrize` from {name: value}: the fast tier runs those named in `fast`."""
    return [
        pytest.param(value, id=str(name), marks=() if name in fast else pytest.mark.slow)
        for name, value in cases.items()
    ]
