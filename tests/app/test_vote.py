import math

import pytest
import torch

from pdiff_hf.app.vote import take_vote


def test_networks_that_are_sure_of_the_same_class_leave_no_uncertainty():
    vote = take_vote(torch.tensor([[0.0, 1.0, 0.0]] * 4))
    assert (vote.winner, vote.counts, vote.agreement, vote.size) == (1, [0, 4, 0], 1.0, 4)
    assert vote.uncertainty == vote.disagreement == 0


def test_sure_networks_that_contradict_each_other_disagree_by_all_of_the_uncertainty():
    vote = take_vote(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert vote.agreement == 0.5
    assert vote.uncertainty == pytest.approx(1.0) and vote.disagreement == pytest.approx(1.0)


def test_networks_that_are_unsure_alike_do_not_disagree():
    vote = take_vote(torch.full((5, 4), 0.25))
    assert vote.uncertainty == pytest.approx(math.log2(4)) and vote.disagreement == pytest.approx(0, abs=1e-9)


def test_of_classes_with_as_many_votes_the_more_probable_one_wins():
    assert take_vote(torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.9, 0.0]])).winner == 1


def test_networks_that_are_not_finite_do_not_vote():
    vote = take_vote(torch.tensor([[math.nan, math.nan], [0.2, 0.8]]))
    assert (vote.size, vote.winner) == (1, 1)
    with pytest.raises(ValueError, match="no network gives an answer"):
        take_vote(torch.tensor([[math.nan, 1.0]]))
