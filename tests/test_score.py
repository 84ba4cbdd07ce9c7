"""The score, the pairing with control batches, and the ranking, by hand."""

import numpy as np
import pytest

from mechrl.score import best_first, control_of_batch, rank, score


def test_the_score_is_damage_minus_weighted_control_damage():
    assert score(3.0, 1.0) == 2
    assert score(3.0, 1.0, 0.5) == 2.5
    np.testing.assert_array_equal(score(np.array([[3.0, 1], [0, 2]]), np.array([1.0, 2]), 2), [[1, -3], [-2, -2]])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("weight", [1, 0.1, np.float64(0.1), np.float32(0.1)])
def test_the_score_keeps_the_precision_of_the_damage(kind, weight):
    assert score(np.ones(3, kind), np.ones(3, kind), weight).dtype == kind


def test_control_batches_go_round():
    assert control_of_batch(7, 3).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert control_of_batch(2, 3).tolist() == [0, 1]
    assert control_of_batch(2, 3).dtype == np.int64


def test_the_largest_is_first_and_of_equal_ones_the_first():
    values = np.array([1, 3, -2, 3, 1, 0], np.float32)
    assert best_first(values).tolist() == [1, 3, 0, 4, 5, 2]
    assert rank(values).tolist() == [3, 1, 6, 2, 4, 5]
    assert best_first(values).dtype == rank(values).dtype == np.int64
    many = np.random.default_rng(0).integers(0, 3, 1000).astype(np.float32)
    assert best_first(many).tolist() == sorted(range(1000), key=lambda i: -many[i])
    assert best_first(np.array([[0, 1], [1, 0], [2, 2]])).tolist() == [[1, 0], [0, 1], [0, 1]], "each row by itself"
