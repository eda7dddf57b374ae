import dataclasses
import functools
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import small
from training.small import quick_compilation  # noqa: F401

from hold_jax.errors import UserError
from hold_jax.runtime import workdir
from hold_jax.training.checkpoint import DAMAGED_FOLDER, FOLDER, Checkpoints, abstract_state
from hold_jax.training.state import TrainState

OPTIMIZER = optax.adam(1e-3)


def make_state(step=1, width=4):
    """A state of every kind of leaf: tables larger than a kilobyte, scalars, bfloat16, a typed key."""
    key = jax.random.fold_in(jax.random.key(7), step)
    params = {
        "w": jax.random.normal(key, (300, width)),
        "b": jax.random.normal(key, (3,), jnp.bfloat16),
        "deep": {"s": jnp.float32(step)},
    }
    ema = jax.tree.map(lambda a: a + 1, params)
    return TrainState(jnp.int32(step), params, OPTIMIZER.init(params), ema, key)


state_at = jax.jit(make_state, out_shardings=small.devices(8).replicated)


def abstract(count=8, **options):
    return abstract_state(functools.partial(make_state, **options), small.devices(count).replicated)


def steps_in(path):
    return sorted(int(p.name) for p in (path / FOLDER).iterdir())


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(1, None, [6]), (2, None, [5, 6]), (1, 2, [2, 4, 6]), (2, 3, [3, 5, 6])],
)
def test_the_last_and_every_mth_are_kept(tmp_path, keep_last, keep_every, kept):
    with Checkpoints.open(tmp_path, keep_last=keep_last, keep_every=keep_every) as checkpoints:
        for step in range(1, 7):
            checkpoints.save(state_at(step))
        assert checkpoints.latest() == 6
    # Leaving waits for what is being written: nothing half done is left, and every step can be read.
    assert steps_in(tmp_path) == kept
    with Checkpoints.open_to_read(tmp_path) as checkpoints:
        for step in kept:
            small.assert_bitwise(checkpoints.restore(abstract(), step), state_at(step))


@pytest.mark.parametrize("count", [1, 2, 8])
def test_restores_onto_any_number_of_devices_bitwise(tmp_path, count):
    with Checkpoints.open(tmp_path) as checkpoints:
        checkpoints.save(state_at(3))
    with Checkpoints.open(tmp_path) as checkpoints:
        restored = checkpoints.restore(abstract(count))
    small.assert_bitwise(restored, state_at(3))
    for leaf in jax.tree.leaves(restored):
        assert leaf.sharding == small.devices(count).replicated
    # The key is a key again.
    assert jax.random.split(restored.key).shape == (2,)


def test_what_is_written_is_the_state_at_the_call_though_its_buffers_are_donated(tmp_path):
    advance = jax.jit(
        lambda s: s.replace(step=s.step + 1, params=jax.tree.map(lambda a: a * 2, s.params)), donate_argnums=0
    )
    state = state_at(1)
    with Checkpoints.open(tmp_path, keep_last=9) as checkpoints:
        for _ in range(3):
            checkpoints.save(state)
            state = advance(state)
    want = state_at(1)
    with Checkpoints.open_to_read(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            small.assert_bitwise(checkpoints.restore(abstract(), step), want)
            want = advance(want)


def test_saving_a_step_again_changes_nothing(tmp_path):
    with Checkpoints.open(tmp_path) as checkpoints:
        checkpoints.save(state_at(2))
    before = small.contents(tmp_path)
    with Checkpoints.open(tmp_path) as checkpoints:
        checkpoints.save(state_at(2).replace(params=make_state(9).params))
    assert small.contents(tmp_path) == before


def test_steps_rise_as_numbers(tmp_path):
    with Checkpoints.open(tmp_path, keep_last=4) as checkpoints:
        assert checkpoints.steps() == []
        for step in (9, 10, 100):
            checkpoints.save(state_at(step))
    (tmp_path / FOLDER / "200.orbax-checkpoint-tmp").mkdir()
    with Checkpoints.open_to_read(tmp_path) as checkpoints:
        assert checkpoints.steps() == [9, 10, 100] and checkpoints.latest() == 100


def test_reading_creates_and_deletes_nothing(tmp_path):
    with Checkpoints.open_to_read(tmp_path) as checkpoints:
        assert checkpoints.latest() is None and checkpoints.steps() == []
    assert not list(tmp_path.iterdir())
    with Checkpoints.open(tmp_path, keep_last=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state_at(step))
    (tmp_path / FOLDER / "4.orbax-checkpoint-tmp").mkdir()  # as a run in another process leaves it while writing
    before = small.contents(tmp_path)
    with Checkpoints.open_to_read(tmp_path) as checkpoints:
        assert checkpoints.latest() == 3
        checkpoints.restore(abstract())
    assert small.contents(tmp_path) == before and (tmp_path / FOLDER / "4.orbax-checkpoint-tmp").is_dir()


def test_missing_checkpoints_are_one_clear_line(tmp_path):
    with Checkpoints.open(tmp_path, keep_last=3) as checkpoints:
        with pytest.raises(UserError, match=r"no checkpoint in .*: run --mode=train with this --workdir first"):
            checkpoints.restore(abstract())
        checkpoints.save(state_at(2))
        checkpoints.save(state_at(4))
    with (
        Checkpoints.open_to_read(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"^there is no checkpoint of step 3 in .*; it holds steps 2, 4$"),
    ):
        checkpoints.restore(abstract(), 3)


@pytest.mark.parametrize("other", ["shape", "missing", "extra"])
def test_a_state_of_another_structure_is_refused(tmp_path, other):
    with Checkpoints.open(tmp_path) as checkpoints:
        checkpoints.save(state_at(1))
    wanted = abstract(width=5) if other == "shape" else abstract()
    if other == "missing":
        wanted = wanted.replace(ema={"w": wanted.ema["w"]})
    if other == "extra":
        wanted = wanted.replace(ema=wanted.ema | {"new": jax.ShapeDtypeStruct((2,), np.float32)})
    with Checkpoints.open_to_read(tmp_path) as checkpoints, pytest.raises(ValueError, match=r"w|new|ema"):
        checkpoints.restore(wanted)


def write(path, keep_last=3, steps=(1, 2)):
    with Checkpoints.open(path, keep_last=keep_last) as checkpoints:
        for step in steps:
            checkpoints.save(state_at(step))


def resume(path, **options):
    with Checkpoints.open(path, keep_last=3) as checkpoints:
        return checkpoints.resume(abstract(**options)), checkpoints.steps()


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path, *places):
    """One bit at each place. By default at many: Orbax's file has parts that nothing refers to any more."""
    data = bytearray(path.read_bytes())
    for place in places or np.linspace(0, 1, 40, endpoint=False):
        data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "bits": lambda c: flip(largest(c)),
    "half": lambda c: cut(largest(c)),
    "data gone": lambda c: largest(c).unlink(),
    "manifest": lambda c: cut(c / "state" / "manifest.ocdbt"),
    "metadata": lambda c: cut(c / "state" / "_METADATA"),
    "metadata gone": lambda c: (c / "state" / "_METADATA").unlink(),
    "fingerprints": lambda c: cut(c / "fingerprints" / "metadata"),
    "state": lambda c: shutil.rmtree(c / "state"),
    "all": lambda c: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in c.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path, capsys, damage):
    write(tmp_path)
    damage(tmp_path / FOLDER / "2")
    kept = small.contents(tmp_path / FOLDER / "2")
    state, left = resume(tmp_path)
    small.assert_bitwise(state, state_at(1))
    assert left == [1]
    assert small.contents(tmp_path / DAMAGED_FOLDER / "step_2") == kept
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("checkpoint 2 is damaged (")]
    assert len(said) == 1 and said[0].endswith("step_2; going on from step 1")
    # The step is free again, and a second damaged one finds a place of its own.
    write(tmp_path, steps=(2,))
    flip(largest(tmp_path / FOLDER / "2"))
    small.assert_bitwise(resume(tmp_path)[0], state_at(1))
    assert sorted(p.name for p in (tmp_path / DAMAGED_FOLDER).iterdir()) == ["step_2", "step_2_1"]


def test_a_flipped_bit_is_named_by_its_array(tmp_path):
    write(tmp_path, steps=(1,))
    marks = tmp_path / FOLDER / "1" / "fingerprints" / "metadata"
    text = marks.read_text()
    name = "params/w"
    at = text.index(name) + len(name) + 3
    digit = next(i for i in range(at, len(text)) if text[i].isdigit())
    marks.write_text(text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :])
    with (
        Checkpoints.open_to_read(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"^checkpoint 1 in .* is damaged \(changed since .*: params/w\): choose"),
    ):
        checkpoints.restore(abstract())


def test_with_none_intact_nothing_is_moved(tmp_path):
    write(tmp_path)
    for step in "12":
        for place in (0.3, 0.4, 0.5, 0.6):  # a single bit of a compressed file may mean nothing
            flip(largest(tmp_path / FOLDER / step), place)
    before = small.contents(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact \(step 2: .*; step 1: .*\): restore one from"):
        resume(tmp_path)
    assert small.contents(tmp_path) == before


def test_another_structure_is_no_damage(tmp_path):
    write(tmp_path)
    before = small.contents(tmp_path)
    with pytest.raises(UserError, match=r"params/w is \(300, 4\) there, \(300, 5\) here\): repeat the flags"):
        resume(tmp_path, width=5)
    assert small.contents(tmp_path) == before


def test_a_checkpoint_made_without_fingerprints_is_read(tmp_path):
    write(tmp_path, steps=(1,))
    shutil.rmtree(tmp_path / FOLDER / "1" / "fingerprints")
    small.assert_bitwise(resume(tmp_path)[0], state_at(1))


def test_a_start_without_checkpoints_is_none(tmp_path):
    assert resume(tmp_path) == (None, [])


def test_no_room_is_one_line_and_the_next_run_goes_on(tmp_path):
    write(tmp_path, steps=(1,))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = state_at(2)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        with (
            pytest.raises(UserError, match=r"could not be written \(File too large\): .* it goes on from step 1$"),
            Checkpoints.open(tmp_path, keep_last=3) as checkpoints,
        ):
            checkpoints.save(state)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    small.assert_bitwise(resume(tmp_path)[0], state_at(1))
    write(tmp_path, steps=(2,))
    small.assert_bitwise(resume(tmp_path)[0], state)
    assert not [p for p in (tmp_path / FOLDER).iterdir() if "tmp" in p.name]


def record(path, run):
    workdir.write(path, workdir.Record({}, (2,), 0, run=run))


def saved(path, run, *steps):
    record(path, run)
    with Checkpoints.open(path, keep_last=9) as checkpoints:
        for step in steps:
            checkpoints.save(state_at(step))


def test_the_checkpoints_of_another_run_are_not_taken(tmp_path):
    saved(tmp_path / "a", "a1", 3)
    saved(tmp_path / "b", "b2", 5)
    shutil.rmtree(tmp_path / "a" / FOLDER)
    shutil.copytree(tmp_path / "b" / FOLDER, tmp_path / "a" / FOLDER)
    before = small.contents(tmp_path / "a")
    with (
        Checkpoints.open(tmp_path / "a") as checkpoints,
        pytest.raises(UserError, match="another run wrote it, not that"),
    ):
        checkpoints.resume(abstract())
    with (
        Checkpoints.open_to_read(tmp_path / "a") as checkpoints,
        pytest.raises(UserError, match=r"another run wrote it, not that of config\.json"),
    ):
        checkpoints.restore(abstract())
    assert small.contents(tmp_path / "a") == before
    # A run from before there were identities keeps its checkpoints.
    record(tmp_path / "b", None)
    with Checkpoints.open_to_read(tmp_path / "b") as checkpoints:
        small.assert_bitwise(checkpoints.restore(abstract()), state_at(5))


def test_a_checkpoint_renamed_to_a_later_step_is_set_aside(tmp_path, capsys):
    saved(tmp_path, "a1", 2, 4)
    (tmp_path / FOLDER / "2").rename(tmp_path / FOLDER / "6")
    with Checkpoints.open(tmp_path) as checkpoints:
        small.assert_bitwise(checkpoints.resume(abstract()), state_at(4))
    assert "checkpoint 6 is damaged (it holds step 2: its folder was renamed)" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"null", b"[]", b'{"a":'])
def test_fingerprints_that_are_gone_or_of_another_type_are_damage(tmp_path, content, capsys):
    saved(tmp_path, "a1", 2, 4)
    folder = tmp_path / FOLDER / "4" / "fingerprints"
    if content is None:
        shutil.rmtree(folder)
    else:
        (folder / "metadata").write_bytes(content)
    with Checkpoints.open(tmp_path) as checkpoints:
        small.assert_bitwise(checkpoints.resume(abstract()), state_at(2))
    assert "checkpoint 4 is damaged (" in capsys.readouterr().err


def test_an_old_checkpoint_without_fingerprints_is_taken_and_said(tmp_path, capsys):
    saved(tmp_path, None, 4)
    shutil.rmtree(tmp_path / FOLDER / "4" / "fingerprints")
    with Checkpoints.open(tmp_path) as checkpoints:
        small.assert_bitwise(checkpoints.resume(abstract()), state_at(4))
    assert "checkpoint 4 has no fingerprints: damage to it would not be noticed" in capsys.readouterr().err


def test_a_record_whose_statistics_changed_is_an_error_and_costs_no_checkpoint(tmp_path):
    """Samples are mapped back by the mean and deviation of the record: those of the training, or wrong in silence."""
    run = workdir.Record({}, (2,), 0, {"mean": [1.5, 2.5], "std": [1.0, 0.1]}, "a1")
    workdir.write(tmp_path, run)
    write(tmp_path, steps=(3, 5))
    small.assert_bitwise(resume(tmp_path)[0], state_at(5))
    workdir.write(tmp_path, dataclasses.replace(run, statistics={"mean": [1.5, 2.5], "std": [1.0, 0.2]}))
    before = small.contents(tmp_path)
    with pytest.raises(UserError, match=r"statistics .* in config\.json are not those of checkpoint 5 in .*: restore"):
        resume(tmp_path)
    assert small.contents(tmp_path) == before
