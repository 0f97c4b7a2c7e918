"""One network read in training and in sampling; what networks are told, and what they refuse."""

import itertools

import pytest
import torch
from affine import AffineDenoiser

from lightning_gen.diffusion.denoiser import Denoiser, PointDenoiser
from lightning_gen.diffusion.grids import CLEAN
from lightning_gen.diffusion.parameterizations import X0, EDMPreconditioning, Epsilon, V, Velocity
from lightning_gen.diffusion.paths import EDM, VE, VP, CosineVP, DiscreteVP, RectifiedFlow
from lightning_gen.diffusion.solvers.base import points_of
from lightning_gen.networks.denoiser import Condition

PATHS = [VP(), CosineVP(), VE(), EDM(), RectifiedFlow(), DiscreteVP(), DiscreteVP(zero_terminal_snr=True)]
ASKED = [Epsilon(), X0(), V(), Velocity(), EDMPreconditioning(0.7)]


def fits(parameterization, path):
    try:
        parameterization.check(path)
    except ValueError:
        return False
    return True


PAIRS = [(path, asked) for path, asked in itertools.product(PATHS, ASKED) if fits(asked, path)]


def state(dtype=torch.float64):
    return torch.randn(3, 2, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("path", "asked"), PAIRS)
def test_in_sampling_the_estimate_is_that_of_training(path, asked):
    net, x, cond = AffineDenoiser(num_classes=3).double(), state(), Condition(torch.tensor([0, 3, 1]))
    for t in (1.0, 0.8, 0.25, 0.003):
        in_training = Denoiser(net, path, asked)(x, path.at(torch.full((3,), t, dtype=torch.float64)), cond)
        (point,) = points_of(path, [t])
        in_sampling = PointDenoiser(net, path, asked)(x, point, CLEAN, cond)
        torch.testing.assert_close(in_sampling.x0, in_training.x0, rtol=1e-12, atol=1e-12)
        assert in_sampling.variance is None
        (given, label, *_), (given_then, label_then, *_) = net.seen[-2:]
        torch.testing.assert_close(given_then, given, rtol=1e-14, atol=0)
        torch.testing.assert_close(label_then, label, rtol=1e-14, atol=0)


def test_every_sample_has_its_own_level_in_training():
    net, x, path = AffineDenoiser().double(), state(), RectifiedFlow()
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    together = Denoiser(net, path, Velocity())(x, path.at(t)).x0
    for i in range(3):
        alone = Denoiser(net, path, Velocity())(x[i : i + 1], path.at(t[i : i + 1])).x0
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-13, atol=1e-13)


def test_the_estimate_is_what_the_output_stands_for():
    net, x, path = AffineDenoiser().double(), state(), RectifiedFlow()
    (point,) = points_of(path, [0.3])
    velocity = net(x, torch.full((3,), 300.0, dtype=torch.float64))
    found = PointDenoiser(net, path, Velocity())(x, point, CLEAN, None).x0
    torch.testing.assert_close(found, x - 0.3 * velocity, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reader", [Denoiser, PointDenoiser])
def test_the_second_half_of_the_channels_is_the_variance(reader):
    net, x, path = AffineDenoiser(learned_variance=True).double(), state(), DiscreteVP(10)
    if reader is Denoiser:
        found = Denoiser(net, path, Epsilon())(x, path.at(torch.full((3,), 0.4, dtype=torch.float64)))
    else:
        found = PointDenoiser(net, path, Epsilon())(x, points_of(path, [0.4])[0], CLEAN, None)
    output = net(x, torch.full((3,), 3.0, dtype=torch.float64))
    (alpha,), (sigma,) = (value.tolist() for value in path.coefficients(torch.tensor([0.4], dtype=torch.float64)))
    torch.testing.assert_close(found.x0, (x - sigma * output[:, :2]) / alpha, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.variance, 0.5 * output[:, 2:] + 0.5, rtol=1e-12, atol=1e-12)


def test_networks_of_two_times_are_told_where_the_step_goes():
    net, x, path = AffineDenoiser(two_times=True).double(), state(), RectifiedFlow()
    here, there = points_of(path, [0.75, 0.25])
    PointDenoiser(net, path, Velocity())(x, here, there, None)
    PointDenoiser(net, path, Velocity())(x, here, CLEAN, None)
    assert [seen[3].tolist() for seen in net.seen] == [[250.0] * 3, [0.0] * 3]
    level, second = (path.at(torch.full((3,), t)) for t in (0.75, 0.25))
    Denoiser(net, path, Velocity()).output(x, level, None, second=second)
    assert [seen[1].tolist() for seen in net.seen] == [[750.0] * 3] * 3
    assert net.seen[-1][3].tolist() == [250.0] * 3


@pytest.mark.parametrize("net_kind", [torch.float32, torch.bfloat16])
def test_the_state_keeps_its_precision_and_so_does_the_label(net_kind):
    net, x, path = AffineDenoiser().to(net_kind), state(torch.float32), DiscreteVP()
    (point,) = points_of(path, [0.997])
    found = PointDenoiser(net, path, Epsilon(), net_kind)(x, point, CLEAN, None)
    assert found.x0.dtype == torch.float32
    given, label, *_ = net.seen[-1]
    assert given.dtype == net_kind
    assert label.dtype == torch.float32
    assert label.tolist() == [996.0] * 3


def test_a_point_is_worked_out_once():
    class Counting(RectifiedFlow):
        calls = 0

        def coefficients(self, t):
            self.calls += 1
            return super().coefficients(t)

    path = Counting()
    estimate = PointDenoiser(AffineDenoiser().double(), path, V())
    (point,) = points_of(path, [0.5])
    path.calls = 0
    for _ in range(5):
        estimate(state(), point, CLEAN, None)
    assert path.calls == 1


# ---------------------------------------------------------------------- the condition and the network's type


def told_everything():
    return Condition(
        torch.tensor([0, 1, 2]),
        torch.ones(3, 2),
        torch.ones(3, 5, 4),
        torch.ones(3, 5, dtype=torch.bool),
        torch.ones(3, 1, 4, 4),
        torch.ones(3, 6),
    )


EVERYTHING = {"num_classes": 3, "vector_dim": 2, "token_dim": 4, "image_channels": 1, "augment_dim": 6}


def test_one_mask_drops_class_vector_and_tokens():
    where = torch.tensor([True, False, True])
    dropped = told_everything().dropped(where, 3)
    assert dropped.label.tolist() == [3, 1, 3]
    assert dropped.label.dtype == torch.int64
    assert dropped.vector.any(1).tolist() == [False, True, False]
    assert dropped.tokens.flatten(1).any(1).tolist() == [False, True, False]
    assert bool(dropped.mask.all())
    assert bool((dropped.image == 1).all())
    assert bool((dropped.augment == 1).all())
    assert Condition().dropped(where, None) == Condition()


def test_a_function_of_every_tensor():
    rows = told_everything().map(lambda value: value[1:])
    assert [len(value) for value in rows] == [2] * 6
    assert Condition(vector=torch.ones(2, 2)).map(lambda value: value * 2).label is None


def test_channels_and_rows():
    net = AffineDenoiser(**EVERYTHING, learned_variance=True)
    assert (net.in_channels, net.out_channels, net.label_rows) == (3, 4, 4)
    assert AffineDenoiser(num_classes=3, null_class=False).label_rows == 3
    assert AffineDenoiser().label_rows == 0
    assert not AffineDenoiser().null_class


def test_what_is_told_is_taken():
    net, x, label = AffineDenoiser(**EVERYTHING), state(torch.float32), torch.zeros(3)
    assert net(x, label, told_everything()).shape == x.shape
    # tokens without a mask are all there, and an augmentation not told is none
    assert net(x, label, told_everything()._replace(mask=None, augment=None)).shape == x.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "given no label"),
        ({"label": torch.tensor([0, 1, 4])}, r"labels in \[0, 3\], not from 0 to 4"),
        ({"vector": None}, "needs the condition's vector"),
        ({"vector": torch.ones(3, 3)}, r"vector of shape \(3, 2\), not \(3, 3\)"),
        ({"vector": torch.ones(2, 2)}, r"vector of shape \(3, 2\), not \(2, 2\)"),
        ({"tokens": None, "mask": None}, "needs the condition's tokens"),
        ({"tokens": torch.ones(3, 5, 2)}, "tokens of shape"),
        ({"mask": torch.ones(3, 4, dtype=torch.bool)}, r"mask of shape \(3, 4\) for tokens of shape \(3, 5, 4\)"),
        ({"image": None}, "needs the condition's image"),
        ({"image": torch.ones(3, 1, 2, 2)}, r"image of shape \(3, 1, 4, 4\), not \(3, 1, 2, 2\)"),
        ({"augment": torch.ones(3, 2)}, r"6 numbers of the augmentation, not \(3, 2\)"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(change, message):
    net = AffineDenoiser(**EVERYTHING)
    with pytest.raises(ValueError, match=message):
        net(state(torch.float32), torch.zeros(3), told_everything()._replace(**change))


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (Condition(label=torch.zeros(3).long()), "unconditional"),
        (Condition(vector=torch.ones(3, 2)), "was given the condition's vector"),
        (Condition(tokens=torch.ones(3, 5, 2)), "was given the condition's tokens"),
        (Condition(mask=torch.ones(3, 5, dtype=torch.bool)), "for no tokens"),
        (Condition(image=torch.ones(3, 1, 4, 4)), "was given the condition's image"),
        (Condition(augment=torch.ones(3, 2)), "0 numbers of the augmentation"),
    ],
)
def test_what_a_network_is_not_told_is_refused(cond, message):
    with pytest.raises(ValueError, match=message):
        AffineDenoiser()(state(torch.float32), torch.zeros(3), cond)


def test_images_and_second_times_that_do_not_fit_are_refused():
    t = torch.zeros(3)
    for shape in ((3, 2, 4), (3, 1, 4, 4), (3, 2, 4, 5)):
        with pytest.raises(ValueError, match=r"images of shape \(B, 2, 4, 4\), not"):
            AffineDenoiser()(torch.ones(shape), t)
    with pytest.raises(ValueError, match="two_times=False and was given a second time"):
        AffineDenoiser()(state(torch.float32), t, None, t)
    with pytest.raises(ValueError, match="two_times=True and was not given a second time"):
        AffineDenoiser(two_times=True)(state(torch.float32), t)


@pytest.mark.parametrize("name", ["vector_dim", "token_dim", "image_channels", "augment_dim"])
def test_negative_widths_are_refused(name):
    with pytest.raises(ValueError, match=f"AffineDenoiser: {name} is 0 \\(none\\) or more, not -1"):
        AffineDenoiser(**{name: -1})
