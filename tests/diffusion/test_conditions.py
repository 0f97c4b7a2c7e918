"""What a network is told of a training batch, and of a request."""

import pytest
import torch
from affine import AffineDenoiser

from lightning_gen.diffusion.conditions import condition_of_batch, condition_of_request
from lightning_gen.labels import ClassPrior
from lightning_gen.networks.denoiser import Condition
from lightning_gen.seeding import GeneratorStream

EVERYTHING = {"num_classes": 3, "vector_dim": 2, "token_dim": 4}


def batch():
    return {
        "image": torch.zeros(3, 2, 4, 4),
        "label": torch.tensor([0, 1, 2]),
        "vector": torch.ones(3, 2),
        "tokens": torch.ones(3, 5, 4),
        "mask": torch.ones(3, 5, dtype=torch.bool),
    }


def asked(cond, n=3, prior=None, **told):
    net = AffineDenoiser(**told)
    prior = prior or ClassPrior(net.num_classes, "uniform")
    stream = GeneratorStream(torch.Generator().manual_seed(0), n)
    return condition_of_request(cond, net, prior, stream, n, torch.device("cpu"))


def test_a_batch_tells_what_the_network_takes():
    full = condition_of_batch(batch(), AffineDenoiser(**EVERYTHING))
    for name in ("label", "vector", "tokens", "mask"):
        assert getattr(full, name) is not None
    assert full.image is None
    assert condition_of_batch(batch(), AffineDenoiser()) == Condition()
    without = condition_of_batch({k: v for k, v in batch().items() if k != "mask"}, AffineDenoiser(**EVERYTHING))
    assert without.mask is None


@pytest.mark.parametrize(
    ("missing", "message"),
    [("label", "no labels"), ("vector", "told a 'vector' of width 2"), ("tokens", "told a 'tokens' of width 4")],
)
def test_data_that_lacks_something_is_refused(missing, message):
    with pytest.raises(ValueError, match=message):
        condition_of_batch({k: v for k, v in batch().items() if k != missing}, AffineDenoiser(**EVERYTHING))


def test_classes_are_those_asked_for_or_drawn():
    assert asked(2, num_classes=3).label.tolist() == [2, 2, 2]
    assert asked([0, 1, 2], num_classes=3).label.tolist() == [0, 1, 2]
    assert asked({"label": 1}, num_classes=3).label.tolist() == [1, 1, 1]
    prior = ClassPrior(3)
    prior.probabilities.copy_(torch.tensor([0.0, 1.0, 0.0]))
    assert asked(None, prior=prior, num_classes=3).label.tolist() == [1, 1, 1]
    assert asked(None) == Condition()


def test_one_of_a_kind_is_for_all_samples():
    one = {"vector": [[1.0, 2.0]], "tokens": torch.ones(1, 5, 4), "mask": torch.ones(1, 5, dtype=torch.bool)}
    cond = asked(one, vector_dim=2, token_dim=4)
    assert cond.vector.tolist() == [[1.0, 2.0]] * 3
    assert cond.tokens.shape == (3, 5, 4)
    assert cond.mask.shape == (3, 5)
    each = asked({"vector": torch.arange(6.0).view(3, 2)}, vector_dim=2)
    assert each.vector.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


def test_samples_are_not_augmented():
    assert asked(None, augment_dim=4).augment.tolist() == [[0.0] * 4] * 3


@pytest.mark.parametrize(
    ("cond", "told", "message"),
    [
        ({"caption": "a cat"}, {}, "cond has label, vector, tokens and mask; given was 'caption'"),
        ({"vector": torch.ones(1, 2)}, {}, "takes no 'vector'"),
        ({"mask": torch.ones(1, 2)}, {}, "takes no 'mask'"),
        (1, {}, "no classes"),
        (None, {"vector_dim": 2}, "needs cond={'vector': ...}"),
        (None, {"token_dim": 2}, "needs cond={'tokens': ...}"),
        (3, {"num_classes": 3}, "0 to 2"),
    ],
)
def test_requests_that_do_not_fit_are_refused(cond, told, message):
    with pytest.raises(ValueError, match=message):
        asked(cond, **told)
