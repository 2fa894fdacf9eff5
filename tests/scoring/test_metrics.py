"""The segmentation metrics, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from fcnproto.errors import UsageError
from fcnproto.scoring.metrics import confusion_matrix, metrics


def test_confusion_matrix_has_truth_in_rows_and_skips_void():
    truth = np.array([[0, 0, 1], [2, 255, 1]], np.uint8)
    prediction = np.array([[0, 1, 1], [0, 2, 1]])
    assert confusion_matrix(truth, prediction, 3).tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_truth_outside_the_classes_is_skipped_on_both_sides():
    truth, prediction = np.array([-1, 0, 3, 2]), np.array([0, 0, 1, 2])
    assert confusion_matrix(truth, prediction, 3).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_a_prediction_outside_the_classes_counts_only_where_the_truth_does():
    assert confusion_matrix(np.array([255, 1]), np.array([9, 1]), 2).tolist() == [[0, 0], [0, 1]]
    with pytest.raises(UsageError, match="expected 0 to 1"):
        confusion_matrix(np.array([0, 1]), np.array([9, 1]), 2)


def test_unlike_shapes_are_refused():
    with pytest.raises(UsageError, match="must be alike"):
        confusion_matrix(np.zeros((2, 3)), np.zeros((3, 2)), 2)


def test_metrics_by_hand():
    # t = (10, 6, 4), p = (9, 8, 3); IU = 8/11, 5/9, 2/5
    matrix = np.array([[8, 2, 0], [0, 5, 1], [1, 1, 2]])
    result = metrics(matrix)
    assert result.pixel_accuracy == pytest.approx(15 / 20)
    assert result.mean_accuracy == pytest.approx((8 / 10 + 5 / 6 + 2 / 4) / 3)
    assert result.class_iu == pytest.approx((8 / 11, 5 / 9, 2 / 5))
    assert result.mean_iu == pytest.approx((8 / 11 + 5 / 9 + 2 / 5) / 3)
    assert result.frequency_weighted_iu == pytest.approx((10 * 8 / 11 + 6 * 5 / 9 + 4 * 2 / 5) / 20)


def test_absent_classes_are_left_out_unless_predicted():
    # class 1 occurs nowhere; class 2 is predicted but never true: IU 0 in the mean IU, no part in mean accuracy
    result = metrics(np.array([[3, 0, 1], [0, 0, 0], [0, 0, 0]]))
    assert result.mean_accuracy == pytest.approx(3 / 4)
    assert result.mean_iu == pytest.approx((3 / 4 + 0) / 2)
    assert result.frequency_weighted_iu == pytest.approx(3 / 4)
    assert math.isnan(result.class_iu[1]) and result.class_iu[2] == 0


def test_no_pixels_at_all_gives_nan_without_a_warning():
    assert math.isnan(metrics(np.zeros((2, 2))).mean_iu)


def test_lines_are_what_the_command_line_prints():
    assert list(metrics(np.array([[3, 1], [1, 3]])).lines()) == [
        "pixel accuracy 0.7500",
        "mean accuracy 0.7500",
        "mean IU 0.6000",
        "frequency weighted IU 0.6000",
    ]
