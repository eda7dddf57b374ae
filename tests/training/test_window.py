import itertools
import time

import jax.numpy as jnp
import numpy as np
import pytest

from hold_jax.errors import UserError
from hold_jax.training.window import Window


def call(*losses, grad_norm=1.0):
    return {"grad_norm": jnp.full(len(losses), grad_norm), "loss": jnp.array(losses, jnp.float32)}


def test_means_are_over_the_steps_that_were_taken():
    window = Window(batch_size=4, skip_limit=2)
    for losses in ((1.0, 2.0), (np.nan, 4.0), (np.inf, 5.0)):
        window.add(call(*losses))
    values, skipped = window.close(step=16, latest=None)
    assert values["loss"] == 3.0 and values["grad_norm"] == 1.0 and values["skipped"] == 2.0
    assert skipped == [
        "loss is nan at step 13: skipped (1 in a row; more than 2 stop the run)",
        "loss is inf at step 15: skipped (1 in a row; more than 2 stop the run)",
    ]
    window.add(call(7.0))
    values, skipped = window.close(step=17, latest=None)
    assert values["loss"] == 7.0 and "skipped" not in values and not skipped


def test_the_cause_is_named_the_loss_before_the_rest():
    window = Window(batch_size=4, skip_limit=5)
    window.add(call(1.0, grad_norm=np.inf))
    window.add(call(np.nan, grad_norm=np.nan))
    assert [line.split(":")[0] for line in window.close(2, None)[1]] == [
        "grad_norm is inf at step 1",
        "loss is nan at step 2",
    ]


def test_too_many_in_a_row_stop_the_run_also_over_several_lines_of_the_log():
    window = Window(batch_size=4, skip_limit=2)
    window.add(call(1.0, np.nan))
    window.close(2, None)
    window.add(call(np.nan, 1.0))  # two in a row are allowed, and a good step begins anew
    window.close(4, None)
    window.add(call(np.nan, np.nan))
    window.close(6, 4)
    window.add(call(np.nan))
    with pytest.raises(UserError) as caught:
        window.close(7, 4)
    assert str(caught.value) == (
        "training stopped: loss is nan at step 7, after 2 such steps in a row; the last good checkpoint, step 4, is "
        "kept. Lower optimizer.learning_rate, lengthen optimizer.warmup_steps, or compute in float32"
    )


def test_rates_are_of_the_window_alone():
    def feed():
        for i in itertools.count():
            waited.append(-time.monotonic())
            time.sleep(0.05)
            waited.append(time.monotonic())
            yield i

    waited, batches = [], feed()
    window = Window(batch_size=10, skip_limit=0)
    window.add(call(1.0))
    time.sleep(0.2)
    window.start_clock()
    began = time.monotonic()
    for want in range(4):
        assert window.next_batch(batches) == want
        window.add(call(1.0, 1.0))
    time.sleep(0.1)
    values, _ = window.close(9, None)
    seconds = time.monotonic() - began
    assert values["images_per_second"] == pytest.approx(80 / seconds, rel=0.1)
    assert values["data_wait"] == pytest.approx(sum(waited) / seconds, abs=0.1)


def test_parameters_that_are_not_finite_stop_the_run_at_once():
    window = Window(batch_size=4, skip_limit=9)
    window.add(call(1.0) | {"param_norm": jnp.full(1, np.inf)})
    with pytest.raises(
        UserError, match="training stopped: param_norm is inf at step 3; the last good checkpoint, step 2"
    ):
        window.close(3, 2)
