"""Guided estimates by the papers' formulas, and how often the network is asked for them."""

import pytest
import torch
from affine import AffineDenoiser

from lightning_gen.diffusion.denoiser import PointDenoiser
from lightning_gen.diffusion.grids import CLEAN
from lightning_gen.diffusion.guidance import Autoguidance, ClassifierFree
from lightning_gen.diffusion.parameterizations import EDMPreconditioning, Epsilon, V
from lightning_gen.diffusion.paths import EDM, VP, DiscreteVP, RectifiedFlow
from lightning_gen.diffusion.solvers.base import points_of
from lightning_gen.networks.denoiser import Condition

LABEL = torch.tensor([0, 1, 2, 1])
NONE = torch.tensor([3] * 4)


def estimate(path=None, parameterization=None, seed=0, **told):
    net = AffineDenoiser(seed=seed, **({"num_classes": 3} | told)).double().eval()
    return PointDenoiser(net, path or VP(), parameterization or V())


def state(seed=0, channels=2):
    return torch.randn(4, channels, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def at(path, t=0.6):
    return points_of(path, [t])[0]


@pytest.mark.parametrize("scale", [3.0, 0.0, 0.3, -1.0])
@pytest.mark.parametrize(
    ("path", "parameterization"),
    [(VP(), V()), (VP(), Epsilon()), (EDM(), EDMPreconditioning()), (DiscreteVP(), Epsilon())],
)
def test_one_pass_of_twice_the_batch_is_two_passes(path, parameterization, scale):
    """Every channel is guided, and on the image, the noise and v it is the same (DDPM's formula is on the noise)."""
    d, x, point = estimate(path, parameterization), state(), at(path)
    with_condition = d(x, point, CLEAN, Condition(LABEL)).x0
    without = d(x, point, CLEAN, Condition(NONE)).x0
    d.net.calls = 0
    guided = ClassifierFree(scale)(d, None, x, point, CLEAN, Condition(LABEL)).x0
    assert d.net.calls == 1
    torch.testing.assert_close(guided, without + scale * (with_condition - without), rtol=1e-12, atol=1e-12)

    def noise_of(image):
        return (x - point.alpha * image) / point.sigma

    def v_of(image):
        return point.alpha * noise_of(image) - point.sigma * image

    for space in (noise_of, v_of):
        there = space(without) + scale * (space(with_condition) - space(without))
        torch.testing.assert_close(space(guided), there, rtol=1e-11, atol=1e-11)
    # no channel is the unguided one
    assert bool(((guided - with_condition).abs().amax((0, 2, 3)) > 1e-3).all())


def test_a_scale_of_one_is_off_and_zero_is_without_the_condition():
    d, x, point = estimate(), state(), at(VP())
    guided = ClassifierFree()(d, None, x, point, CLEAN, Condition(LABEL))
    assert d.net.calls == 1
    assert len(d.net.seen[-1][0]) == 4
    assert torch.equal(guided.x0, d(x, point, CLEAN, Condition(LABEL)).x0)
    nothing = ClassifierFree(0.0)(d, None, x, point, CLEAN, Condition(LABEL))
    torch.testing.assert_close(nothing.x0, d(x, point, CLEAN, Condition(NONE)).x0, rtol=1e-13, atol=1e-13)


def test_outside_of_the_interval_the_batch_is_not_doubled():
    path, d, x = EDM(), estimate(EDM(), EDMPreconditioning()), state()
    guidance = ClassifierFree(2.0, low=0.3, high=5.0)
    sizes = []
    for level in (0.1, 0.3, 0.31, 1.0, 5.0, 5.01, 70.0):
        point = at(path, float(path.time(torch.tensor(level))))._replace(sigma=level)
        d.net.seen.clear()
        guidance(d, None, x, point, CLEAN, Condition(LABEL))
        sizes += [len(given) for given, *_ in d.net.seen]
    # above the lower bound, up to the upper one
    assert sizes == [4, 4, 8, 8, 8, 4, 4]
    # noise without an image is above every bound but none
    everything = points_of(RectifiedFlow(), [1.0])[0]
    assert not guidance.active(everything)
    assert ClassifierFree(2.0).active(everything)


def test_another_scale_keeps_the_rest():
    first = ClassifierFree(2.0, low=0.3, high=5.0, rescale=0.5, rescale_space="image")
    other = first.with_scale(4)
    assert (first.scale, other.scale) == (2.0, 4.0)
    assert (other.low, other.high, other.rescale, other.rescale_space) == (0.3, 5.0, 0.5, "image")
    assert isinstance(other, ClassifierFree)


def test_all_that_is_told_is_left_out_by_one_mask():
    told = {"vector_dim": 2, "token_dim": 3, "image_channels": 1, "augment_dim": 2}
    d, x = estimate(**told), state()
    given = Condition(
        LABEL,
        torch.ones(4, 2).double(),
        torch.ones(4, 5, 3).double(),
        torch.ones(4, 5, dtype=torch.bool),
        torch.ones(4, 1, 4, 4).double(),
        torch.ones(4, 2).double(),
    )
    ClassifierFree(2.0)(d, None, x, at(VP()), CLEAN, given)
    seen = d.net.seen[0][2]
    assert seen.label.tolist() == [0, 1, 2, 1, 3, 3, 3, 3]
    for told_as in (seen.vector, seen.tokens):
        assert bool((told_as[:4] == 1).all())
        assert not told_as[4:].any()
    # a picture beside the noisy one and the augmentation stay, and which tokens there are
    for kept in (seen.image, seen.augment, seen.mask):
        assert bool((kept == 1).all())


def test_batch_norm_in_training_mode_would_differ():
    """Why sampling puts the network into evaluation mode: there the doubled batch is two batches."""
    d, x, point = estimate(norm=True), state(), at(VP())
    cond = Condition(LABEL)

    def apart():
        with_condition, without = (d(x, point, CLEAN, c).x0 for c in (cond, Condition(NONE)))
        return without + 3 * (with_condition - without)

    torch.testing.assert_close(ClassifierFree(3.0)(d, None, x, point, CLEAN, cond).x0, apart(), rtol=1e-12, atol=1e-12)
    d.net.train()
    assert (ClassifierFree(3.0)(d, None, x, point, CLEAN, cond).x0 - apart()).abs().max() > 1e-3


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("space", ["v", "noise", "image"])
@pytest.mark.parametrize("path", [VP(), RectifiedFlow(), EDM()])
def test_rescaling_by_hand_in_each_space(path, space, share):
    """Eq. 14 to 16: the guided output times std(conditional) / std(guided), then mixed; there, the output is v."""
    parameterization = EDMPreconditioning() if isinstance(path, EDM) else V()
    d, x, point = estimate(path, parameterization), state(), at(path)
    alpha, sigma = point.alpha, point.sigma

    def to(image):
        noise = (x - alpha * image) / sigma
        return {"v": alpha * noise - sigma * image, "noise": noise, "image": image}[space]

    def back(value):
        if space == "image":
            return value
        noise = value if space == "noise" else (sigma * x + alpha * value) / (alpha**2 + sigma**2)
        return (x - sigma * noise) / alpha

    with_condition, without = (d(x, point, CLEAN, Condition(label)).x0 for label in (LABEL, NONE))
    guided = to(without + 4 * (with_condition - without))
    factor = to(with_condition).std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
    expected = back(share * guided * factor + (1 - share) * guided)
    guidance = ClassifierFree(4.0, rescale=share, rescale_space=space)
    found = guidance(d, None, x, point, CLEAN, Condition(LABEL)).x0
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert (found - (without + 4 * (with_condition - without))).abs().max() > 1e-3


def test_the_spaces_of_rescaling_differ_and_agree_in_pure_noise():
    d, x = estimate(RectifiedFlow(), V()), state()

    def found(t, space):
        guidance = ClassifierFree(4.0, rescale=0.7, rescale_space=space)
        return guidance(d, None, x, at(RectifiedFlow(), t), CLEAN, Condition(LABEL)).x0

    assert (found(0.6, "v") - found(0.6, "image")).abs().max() > 1e-3
    assert (found(0.6, "v") - found(0.6, "noise")).abs().max() > 1e-3
    # v is the image but for its sign there; the noise is the state itself, and nothing is left to rescale
    torch.testing.assert_close(found(1.0, "v"), found(1.0, "image"), rtol=1e-12, atol=1e-12)
    plain = ClassifierFree(4.0)(d, None, x, at(RectifiedFlow(), 1.0), CLEAN, Condition(LABEL)).x0
    assert torch.equal(found(1.0, "noise"), plain)


def test_the_learned_variance_is_the_conditional_one():
    d, x = estimate(DiscreteVP(), Epsilon(), learned_variance=True), state()
    point = at(DiscreteVP())
    guided = ClassifierFree(3.0)(d, None, x, point, CLEAN, Condition(LABEL))
    torch.testing.assert_close(guided.variance, d(x, point, CLEAN, Condition(LABEL)).variance, rtol=1e-13, atol=1e-13)


def test_autoguidance():
    strong, weak, x, point = estimate(), estimate(seed=1), state(), at(VP())
    cond = Condition(LABEL)
    guided = Autoguidance(1.7)(strong, weak, x, point, CLEAN, cond).x0
    good, bad = strong(x, point, CLEAN, cond).x0, weak(x, point, CLEAN, cond).x0
    torch.testing.assert_close(guided, bad + 1.7 * (good - bad), rtol=1e-12, atol=1e-12)
    calls = weak.net.calls
    for off in (Autoguidance(), Autoguidance(1.7, low=100.0), Autoguidance(1.7, high=0.01)):
        assert torch.equal(off(strong, weak, x, point, CLEAN, cond).x0, good)
        assert torch.equal(off(strong, None, x, point, CLEAN, cond).x0, good)
    assert weak.net.calls == calls
    # a network without classes can be guided like this
    Autoguidance(2.0).check(AffineDenoiser())


def test_autoguidance_without_a_worse_network_is_refused():
    with pytest.raises(ValueError, match="give sample\\(guide="):
        Autoguidance(2.0)(estimate(), None, state(), at(VP()), CLEAN, Condition(LABEL))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, "AffineDenoiser has no condition that could be left out.*scale to 1"),
        ({"num_classes": 3, "null_class": False}, "AffineDenoiser has no null class: train one with null_class=true"),
        # its vector could be left out, its class could not
        ({"num_classes": 3, "null_class": False, "vector_dim": 2}, "no null class"),
    ],
)
def test_networks_that_know_no_none_are_refused(told, message):
    net = AffineDenoiser(**told)
    with pytest.raises(ValueError, match=message):
        ClassifierFree(2.0).check(net)
    ClassifierFree(1.0).check(net)


@pytest.mark.parametrize("told", [{"num_classes": 3}, {"vector_dim": 2}, {"token_dim": 2}])
def test_networks_that_know_a_none_will_do(told):
    ClassifierFree(2.0).check(AffineDenoiser(**told))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassifierFree(2.0, low=1.0, high=1.0), "low < high; given were 1.0 and 1.0"),
        (lambda: Autoguidance(2.0, low=-1.0), "given were -1.0 and None"),
        (lambda: ClassifierFree(rescale=1.5), "rescale is 0 to 1; given was 1.5"),
        (lambda: ClassifierFree(rescale_space="x0"), "rescale_space is v, noise or image; given was 'x0'"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
