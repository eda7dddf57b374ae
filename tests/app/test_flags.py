from pathlib import Path

import pytest

from hold_jax.app import config as base
from hold_jax.app import flags
from hold_jax.errors import UserError

ROOT = Path(__file__).parents[2]
START = "from hold_jax.app import config as base\ndef get_config(*more):\n    c = base.get_config()\n    c.unlock()\n"
START += "    c.data.name = 'digits'\n"


def of(tmp_path, body, *arguments, name="own.py"):
    (tmp_path / name).write_text(body)
    return flags.read(str(tmp_path / name), arguments)


def test_a_file_anywhere_and_flags_after_it(tmp_path):
    found = of(
        tmp_path,
        START + "    c.sde.order = 2\n    return c.lock()\n",
        "--config.sde.order=4",
        "--config.eval.likelihood",
    )
    assert found.name == "own"
    config = base.Config().changed(found.values)
    assert (config.data.name, config.sde.order, config.eval.likelihood) == ("digits", 4, True)
    assert config == base.Config().changed({"data.name": "digits", "sde.order": 4, "eval.likelihood": True})


def test_flags_alone_are_what_they_say():
    found = flags.read(None, ["--config.sde.order", "2", "--config.sde.gammas=(1.5,)", "--config.sampling.label=None"])
    values = {"sde.order": 2, "sde.gammas": (1.5,), "sampling.label": None}
    assert found == flags.Given(None, values, frozenset(values))


def test_none_is_a_choice_where_there_is_one():
    given = flags.read(None, ["--config.model.progressive_input=none", "--config.sde.damping=none"])
    assert given.values == {"model.progressive_input": "none", "sde.damping": None}
    assert flags.read(None, ["--config.model.progressive_input=None"]).values == {"model.progressive_input": None}


def test_the_argument_of_a_config_file_follows_a_colon():
    assert flags.read(f"{ROOT}/configs/cifar10_ve.py", []).values["sde.name"] == "ve"
    other = flags.read(f"{ROOT}/configs/cifar10_ve.py:hold", []).values
    assert (other["sde.name"], other["model.noise_min"]) == ("hold", 0.02)  # what the network saw


FILES = {
    "syntax": ("def get_config(:", ", line 1: SyntaxError: "),
    "null byte": ("a = 1\0", "SyntaxError: source code"),
    "exception": ("import math\n1 / 0", ", line 2: ZeroDivisionError: division by zero"),
    "in the function": (START + "    c.lock().training.num_stepz = 3\n", ", line 6: "),
    "import": ("import no_such_module_at_all", ", line 1: ModuleNotFoundError: No module named"),
    "exit": ("raise SystemExit(5)", ", line 1: SystemExit: 5"),
    "no function": ("", ": it has no function get_config()"),
    "no config": ("def get_config(): return {'a': 1}", ": get_config() returns {'a': 1}; it must return a ConfigDict"),
    "nothing": ("def get_config(): pass", ": get_config() returns None; it must return a ConfigDict"),
    "an empty config": (
        "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict()",
        ": the config has no key `seed`",
    ),
    "no section": (START + "    del c.training\n    return c", ": the config has no key `training.batch_size`"),
    "a section that is none": (
        START + "    c.training = None\n    return c",
        ": `training` is None; it must be a section",
    ),
    "a key too few": (
        START + "    del c.sampling.num_steps\n    return c",
        ": the config has no key `sampling.num_steps`",
    ),
    "a key too many": (START + "    c.sampling.foo = 1\n    return c", ": there is no key `sampling.foo`"),
    "a section too many": (START + "    c.more = 1\n    return c", ": there is no key `more`"),
    "a text for a number": (START + "    c.training.num_steps = 'x'\n    return c", ", line 6: TypeError: "),
}


@pytest.mark.parametrize(("body", "message"), FILES.values(), ids=FILES)
def test_a_config_file_that_is_wrong_is_one_line(tmp_path, body, message):
    with pytest.raises(UserError) as caught:
        of(tmp_path, body)
    assert str(caught.value).startswith(f"--config={tmp_path}/own.py{message}") or message in str(caught.value)
    assert str(caught.value).startswith("--config=") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("PATH", "--config=PATH is a folder: give a file in it"),
        ("PATH/none.py", "--config=PATH/none.py: no such file; configs/ holds the experiments"),
        ("PATH/text", "--config=PATH/text: it is not a Python file: its name must end in .py"),
        ("", "`config` is ''; it must be the path of a config file"),
        ("a" * 300, "`config` is 'aaa"),
        ("a\0", "`config` is 'a\\x00'; it must be the path of a config file"),
        ("~no_such_user/a.py", "`config` is '~no_such_user/a.py'; it must be the path of a config file"),
    ],
)
def test_a_path_that_is_no_config_file_is_one_line(tmp_path, path, message):
    (tmp_path / "text").write_text("x")
    with pytest.raises(UserError) as caught:
        flags.read(path.replace("PATH", str(tmp_path)), [])
    assert str(caught.value).startswith(message.replace("PATH", str(tmp_path)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "unknown argument 'train'; flags are written --name=value"),
        (["--configs.seed=3"], "unknown argument '--configs.seed'"),
        (["--config.sed=3"], "there is no key `sed` (did you mean 'seed'?)"),
        (["--config.seed"], "`seed` has no value: write --config.seed=VALUE"),
        (["--config.seed="], "`seed` is ''; it must be a whole number"),
        (["--config.seed=1.5"], "`seed` is '1.5'; it must be a whole number"),
        (["--config.sde.gammas=(1,"], "`sde.gammas` is '(1,'; it must be a tuple"),
        (["--config.eval.likelihood=maybe"], "`eval.likelihood` is 'maybe'; it must be True or False"),
    ],
)
def test_a_flag_that_is_wrong_is_one_line(arguments, message):
    with pytest.raises(UserError) as caught:
        base.Config().changed(flags.read(None, arguments).values)
    assert str(caught.value).startswith(message)
