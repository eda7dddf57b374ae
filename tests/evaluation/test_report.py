"""Figures in words."""

import pytest

from hold_jax.evaluation import report


def of(key, **results):
    (row,) = report.rows({key: results.pop("value"), **results})
    return row


@pytest.mark.parametrize(
    ("value", "more", "text"),
    [
        (0.0843944, {"fid_error": 0.00076}, "0.08439 +- 0.00076"),
        (0.741551, {"fid_error": 0.184}, "0.74 +- 0.18"),
        (12345.6, {"fid_error": 120.0}, "12,346 +- 120"),
        (3.14159265, {}, "3.142"),
        (0.5, {"fid_low": 0.25, "fid_high": 0.75}, "0.500 [0.250, 0.750]"),
        (float("nan"), {"fid_error": float("nan")}, "nan"),
        (2.0, {"fid_error": 0.0}, "2"),
    ],
)
def test_a_value_has_as_many_digits_as_its_error_allows(value, more, text):
    assert of("fid", value=value, **more).value == text


def test_the_meaning_says_which_way_is_better_and_what_to_compare_with():
    assert of("fid", value=3.0).meaning == "lower is better"
    row = of("fid", value=3.0, fid_floor=3.1518, floor_examples=10_000.0)
    assert row.meaning == "lower is better; 10,000 test examples give 3.15"
    assert of("fid", value=3.0, fid_floor=3.1518).meaning == "lower is better"  # of an earlier version
    assert of("bits_per_dim", value=3.0, bits_per_dim_is_bound=1.0).meaning == "an upper bound; lower is better"
    assert of("bits_per_dim", value=3.0, bits_per_dim_is_bound=0.0).meaning == "lower is better"


def test_the_spread_of_the_inception_score_is_not_called_an_error():
    found = report.rows({"fid": 3.0, "inception_score": 9.2, "inception_score_std": 0.3})
    (row,) = (row for row in found if row.key == "inception_score")
    assert row.value == "9.20 +- 0.30"
    assert row.meaning == "higher is better; after +- the deviation of its 10 splits"


def test_losses_and_distances_come_before_the_rest_and_what_is_not_there_is_left_out():
    found = {"pixels_recall": 0.4, "frechet_raw": 0.5, "fid": 2.0, "inception_kid": 1e-3, "test_loss": 0.1, "step": 3}
    names = [row.name for row in report.rows(found)]
    assert names == ["loss, test", "FID", "Frechet distance, pixels", "KID, inception", "recall, pixels"]
    assert [row.name for row in report.rows(found, most=2)] == names[:2]
    assert report.rows({"step": 3}) == []
    assert {name: value for name, (value, _, _) in report.intervals(found).items()} == dict(
        zip(names, [0.1, 2.0, 0.5, 1e-3, 0.4], strict=True)
    )


def test_intervals_are_the_errors_that_are_printed():
    found = {"test_loss": 0.5, "test_loss_error": 0.125, "fid": 2.0, "fid_error": float("nan")}
    found |= {"pixels_recall": 0.4, "pixels_recall_low": 0.3, "pixels_recall_high": 0.6, "frechet_raw": 1.0}
    got = report.intervals(found)
    assert got["loss, test"] == (0.5, 0.375, 0.625) and got["FID"] == (2.0, 2.0, 2.0)
    assert got["recall, pixels"] == (0.4, 0.3, 0.6)


def test_features_of_ones_own_are_named_by_their_function_and_come_last():
    found = {"frechet_hue": 4.0, "frechet_hue_bias": 0.1, "hue_kid": 0.2, "fd_dinov2": 3.0, "frechet_raw": 2.0}
    assert [row.name for row in report.rows(found)] == [
        "FD-DINOv2",
        "Frechet distance, pixels",
        "Frechet distance, hue",
        "KID, hue",
    ]


def test_lines_are_columns():
    lines = report.lines([report.Row("x", "a", "1.0", "low"), report.Row("y", "abc", "1.25", "high")])
    assert lines == ["a    1.0   low", "abc  1.25  high"] and report.lines([]) == []
