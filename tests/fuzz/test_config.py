"""Whatever the keys of a config are set to, it can be built or is a `UserError` of one line: nothing else is raised."""

import math

from hypothesis import given
from hypothesis import strategies as st

from hold_jax.app import build, constructors, flags
from hold_jax.app.config import KEYS, Config
from hold_jax.errors import UserError
from hold_jax.runtime import schema

NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 3, 1e9, 10**20, math.nan, math.inf, -math.inf, 1e-300, 1e300, 0.5, 1e-3]),
    st.integers(),
    st.floats(),
)
WORDS = st.sampled_from(
    ["", "abc", "None", "True", "(1, 2)", "(1,", "[]", "{}", "1e400", "-", "\0", "é", "9" * 30, " 1"]
)
OTHERS = st.one_of(st.none(), st.booleans(), WORDS, st.lists(NUMBERS, max_size=4), st.lists(NUMBERS).map(tuple))


def value_of(key):
    """Values of the right kind more often than others."""
    choices = st.sampled_from(key.choices) if key.choices else NUMBERS
    return st.one_of(choices, NUMBERS, OTHERS)


CHANGES = st.lists(
    st.sampled_from(list(KEYS)).flatmap(lambda name: st.tuples(st.just(name), value_of(KEYS[name]))),
    min_size=1,
    max_size=3,
)
FAMILIES = st.fixed_dictionaries({key: st.sampled_from(list(names)) for key, names in constructors.SELECTORS.items()})


def built(config):
    """Everything that the names and numbers of a config make."""
    process = build.process(config)
    assert 0 < process.t_min < process.T < math.inf
    shape = (8, 8, 1) if config.model.name == "ncsnpp" else (2,)
    build.model(config, shape, 10)
    build.loss(config), build.optimizer(config), build.training(config)
    build.sampling(config), build.evaluation(config), build.likelihood(config)


def one_line(call):
    """Whether the call returns; anything but a `UserError` of one line is a failure."""
    try:
        call()
    except UserError as error:
        assert 10 < len(str(error)) < 3000 and "\n" not in str(error), error
        return False
    return True


@given(FAMILIES, CHANGES)
def test_any_settings_are_built_or_named(families, changes):
    one_line(
        lambda: built(constructors.resolve(Config().changed({"data.name": "digits", **families, **dict(changes)})))
    )


@given(st.sampled_from(list(KEYS)), st.one_of(WORDS, st.text(), NUMBERS.map(str)))
def test_any_flag_is_read_or_named(key, text):
    def read():
        given = flags.read(None, [f"--config.{key}={text}"])
        settings = Config().changed({"data.name": "digits", **given.values})
        assert settings.flat().keys() == KEYS.keys()
        assert all(schema.shown(value) for value in settings.flat().values())

    one_line(read)


def test_the_families_of_the_test_can_be_built():
    """Otherwise the first test would say little."""
    for name in constructors.SELECTORS["sde.name"]:
        assert one_line(
            lambda name=name: built(constructors.resolve(Config().changed({"data.name": "x", "sde.name": name})))
        )
