import json
import os
import subprocess
import sys

import pytest

from hold_jax.errors import UserError
from hold_jax.runtime import lock, workdir


def record(**changes):
    config = {"seed": 0, "sde": {"name": "hold", "order": 3}, "model": {"channel_multipliers": [1, 2]}}
    return workdir.Record(**{"config": config, "data_shape": (8, 8, 1), "num_classes": 10, "run": "a1"} | changes)


def test_a_record_survives_the_file(tmp_path):
    workdir.write(tmp_path / "a" / "b", record())
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [workdir.RECORD_FILE]
    assert workdir.read(tmp_path / "a" / "b") == workdir.find(tmp_path / "a" / "b") == record()
    workdir.write(tmp_path, record(run=None))
    assert workdir.read(tmp_path).run is None
    assert workdir.new_run() != workdir.new_run()


def test_a_folder_without_a_run_has_no_model(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        assert workdir.find(path) is None
        with pytest.raises(UserError, match=r"no trained model in .* \(no config.json\): run --mode=train with this"):
            workdir.read(path)
    assert not list(tmp_path.iterdir())


def text_of(**changes):
    return json.dumps({"config": {}, "data_shape": [2], "num_classes": 0} | changes)


DAMAGED = {
    "empty": ("", "Expecting value"),
    "truncated": ("{", "Expecting property name"),
    "list": ("[]", "it holds [], not an object"),
    "nothing": ("{}", "it has no config, data_shape, num_classes"),
    "no UTF-8": (b"\xff\xfe\0", "invalid start byte"),
    "NaN": ('{"config": NaN}', "NaN is not JSON"),
    "deep": ("[" * 100_000, "it is nested too deeply"),
    "a config that is a list": (text_of(config=[]), "`config` is []"),
    "a number for a shape": (text_of(data_shape=3), "`data_shape` is 3; it must be a tuple"),
    "a text for a shape": (text_of(data_shape="ab"), "`data_shape` is 'ab'"),
    "no axes": (text_of(data_shape=[]), "its length from 1 to 3"),
    "negative": (text_of(data_shape=[-2]), "`data_shape` is [-2]"),
    "huge": (text_of(data_shape=[10**12]), "`data_shape` is [1000000000000]"),
    "nested": (text_of(data_shape=[[2]]), "`data_shape` is [[2]]"),
    "floats": (text_of(data_shape=[2.0]), "`data_shape` is [2.0]"),
    "booleans": (text_of(data_shape=[True]), "`data_shape` is [True]"),
    "classes": (text_of(num_classes="x"), "`num_classes` is 'x'; it must be a whole number from 0 to 1e6"),
    "fewer than no classes": (text_of(num_classes=-3), "`num_classes` is -3"),
    "a run's number": (text_of(run=3), "`run` is 3"),
    "more": (text_of(more=3), "there is no key `more`"),
    "digits": ('{"config": {}, "data_shape": [' + "9" * 5000 + '], "num_classes": 0}', "Exceeds the limit"),
}


@pytest.mark.parametrize(("text", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_record_is_one_line_and_stays(tmp_path, text, reason):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / workdir.RECORD_FILE).write_bytes(data)
    for do in (workdir.read, workdir.find):
        with pytest.raises(UserError) as caught:
            do(tmp_path)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path}/config.json cannot be read (") and reason in message
        assert message.endswith("restore it, or choose another --workdir") and "\n" not in message
    assert (tmp_path / workdir.RECORD_FILE).read_bytes() == data


def test_a_folder_where_the_record_is_due_is_one_line(tmp_path):
    (tmp_path / workdir.RECORD_FILE).mkdir()
    with pytest.raises(UserError, match=r"config.json cannot be read \(.*"):
        workdir.find(tmp_path)


def test_a_lock_that_is_a_link_or_a_folder_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / lock.FILE).symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"`workdir` .* cannot be written: "), workdir.locked(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "precious"
    (tmp_path / lock.FILE).unlink()
    (tmp_path / lock.FILE).mkdir()
    with pytest.raises(UserError, match=r"`workdir` .* cannot be written: Is a directory"), workdir.locked(tmp_path):
        pass


def test_a_system_without_locks_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "fcntl", None)
    with workdir.locked(tmp_path):
        assert (
            capsys.readouterr().err == f"no lock on {tmp_path}: this system has none; do not start a second run there\n"
        )


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path.__class__("/proc/nothing/here")):
        with pytest.raises(UserError, match=f"`workdir` {path} cannot be written: .*; make it writable, or choose"):
            workdir.write(path, record())
    assert (tmp_path / "file").read_text() == "x"


def test_a_folder_of_another_user_is_found_before_work_is_done(tmp_path, monkeypatch):
    workdir.require_writable(tmp_path)
    workdir.require_writable(tmp_path / "new")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UserError, match=f"`workdir` {tmp_path} cannot be written: Permission denied; make it writable"):
        workdir.require_writable(tmp_path)


def test_a_folder_is_one_run_s_at_a_time_and_free_when_its_process_ends(tmp_path):
    folder = tmp_path / "new"
    hold = f"import sys, pathlib, hold_jax.runtime.workdir as w\nwith w.locked(pathlib.Path({str(folder)!r})):\n"
    hold += "    print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=rf"{folder} is in use by process {other.pid} on .*: wait for that run"),
            workdir.locked(folder),
        ):
            pass
        other.kill()
        other.wait()
        with workdir.locked(folder):
            assert (folder / lock.FILE).read_text().startswith(f"process {os.getpid()} on ")


def test_a_folder_of_its_own_on_another_machine_is_named(tmp_path):
    with pytest.raises(UserError, match="is not the one that the first process writes: give a folder that all"):
        workdir.require_shared(tmp_path)
    workdir.write(tmp_path, record())
    workdir.require_shared(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        workdir.write(tmp_path, record())
    tmp_path.chmod(0o700)


def test_the_record_is_plain_readable_json(tmp_path):
    workdir.write(tmp_path, record())
    text = (tmp_path / workdir.RECORD_FILE).read_text()
    assert text.count("\n") > 15 and json.loads(text)["config"]["sde"]["name"] == "hold"
