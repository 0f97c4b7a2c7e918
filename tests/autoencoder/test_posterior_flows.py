"""Flows of posteriors against their Jacobian, zuko's density and numeric integration."""

import copy
import math
import sys

import pytest
import torch
import zuko

from lightning_gen.autoencoder.posterior_flows import AutoregressivePosterior
from lightning_gen.errors import MissingExtra


def posterior(dim=3, context_dim=4, moved=True, std=0.5, **arguments):
    torch.manual_seed(0)
    flow = AutoregressivePosterior(dim, context_dim, **({"hidden": [8]} | arguments)).double()
    if moved:
        with torch.no_grad():
            for one in flow.transform.transforms:
                one.hyper[-1].weight.normal_(std=std)
                one.hyper[-1].bias.normal_(std=std)
    return flow


def draws(k=2, b=5, dim=3, context_dim=4):
    generator = torch.Generator().manual_seed(1)
    z0 = torch.randn(k, b, dim, generator=generator, dtype=torch.float64)
    return z0, torch.randn(b, context_dim, generator=generator, dtype=torch.float64)


def test_at_the_start_it_is_the_identity():
    z0, context = draws()
    z, logdet = posterior(moved=False)(z0, context)
    assert torch.equal(z, z0)
    assert torch.equal(logdet, torch.zeros(2, 5, dtype=torch.float64))


@pytest.mark.parametrize("dim", [1, 3])
def test_the_logarithm_of_the_determinant_is_the_jacobians(dim):
    flow, (z0, context) = posterior(dim), draws(dim=dim)
    z, logdet = flow(z0, context)
    assert z.shape == z0.shape
    assert logdet.shape == (2, 5)
    for k in range(2):
        for b in range(5):
            jacobian = torch.autograd.functional.jacobian(
                lambda one, b=b: flow(one[None, None], context[b : b + 1])[0][0, 0], z0[k, b]
            )
            torch.testing.assert_close(logdet[k, b], torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-12)


def test_the_context_matters_and_every_image_has_its_own():
    flow, (z0, context) = posterior(), draws()
    z, logdet = flow(z0, context)
    changed = context.clone()
    changed[2] += 1
    other, change = flow(z0, changed)
    rest = [0, 1, 3, 4]
    assert torch.equal(z[:, rest], other[:, rest])
    assert (z[:, 2] != other[:, 2]).any()
    assert (logdet[:, 2] != change[:, 2]).all()
    for k in range(2):
        torch.testing.assert_close(flow(z0[k : k + 1], context)[0][0], z[k], rtol=0, atol=1e-14)


def test_its_density_is_zukos():
    """zuko's flow has its transformation from z to z0: the inverse of ours."""
    flow, (z0, context) = posterior(), draws()
    z, logdet = flow(z0, context)
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(3).double(), torch.ones(3).double(), buffer=True
    )
    theirs = zuko.lazy.Flow(flow.transform.inv, base)(context).log_prob(z)
    ours = -0.5 * (z0.square() + math.log(2 * math.pi)).sum(-1) - logdet
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@torch.no_grad()
def test_its_density_integrates_to_one():
    """log q(z) = log q0(z0) - log det, at z0 found by zuko's inverse, over a plane."""
    flow, context = posterior(2, 1, std=0.3), torch.tensor([[0.7]], dtype=torch.float64)
    side = torch.linspace(-40, 40, 1201, dtype=torch.float64)
    z = torch.cartesian_prod(side, side)[:, None]
    z0 = flow.transform(context).inv(z)
    again, logdet = flow(z0, context)
    torch.testing.assert_close(again, z, rtol=0, atol=1e-9)
    density = torch.exp(-0.5 * (z0.square() + math.log(2 * math.pi)).sum(-1) - logdet)
    assert float(density.sum()) * float(side[1] - side[0]) ** 2 == pytest.approx(1, abs=1e-4)


def test_a_draw_takes_one_pass(monkeypatch):
    flow, (z0, context) = posterior(transforms=3), draws()
    calls = []
    for one in flow.transform.transforms:
        one.hyper.register_forward_hook(lambda *_: calls.append(1))
    flow(z0, context)
    assert len(calls) == 3


def test_each_dimension_is_moved_by_those_before_it():
    flow, (z0, context) = posterior(transforms=1), draws(1, 1)
    jacobian = torch.autograd.functional.jacobian(lambda one: flow(one[None, None], context)[0][0, 0], z0[0, 0])
    assert torch.equal(jacobian, jacobian.tril())
    assert jacobian.tril(-1).count_nonzero() == 3
    # with a second transformation in reverse order every dimension is moved by every one
    deep = posterior(transforms=2)
    jacobian = torch.autograd.functional.jacobian(lambda one: deep(one[None, None], context)[0][0, 0], z0[0, 0])
    assert jacobian.count_nonzero() == 9


def test_without_a_context():
    flow = posterior(context_dim=0)
    z0, _ = draws()
    z, logdet = flow(z0, torch.zeros(5, 0, dtype=torch.float64))
    assert z.shape == (2, 5, 3)
    assert logdet.shape == (2, 5)


def test_autocast_leaves_it_its_precision():
    flow = posterior().float()
    z0, context = (tensor.float() for tensor in draws())
    expected = flow(z0, context)
    with torch.autocast("cpu", torch.bfloat16):
        found = flow(z0, context)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_gradients_and_copies():
    flow, (z0, context) = posterior(), draws()
    z0.requires_grad_()
    context.requires_grad_()
    z, logdet = flow(z0, context)
    (z.square().sum() - logdet.sum()).backward()
    tensors = [z0, context, *flow.parameters()]
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in tensors)
    other = posterior(moved=False)
    other.load_state_dict(flow.state_dict())
    assert torch.equal(other(z0, context)[0], z)
    assert torch.equal(copy.deepcopy(flow)(z0, context)[1], logdet)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: posterior(0), "latent_dim"),
        (lambda: posterior(context_dim=-1), "context_dim"),
        (lambda: posterior(transforms=0), "transforms"),
        (lambda: posterior()(draws()[0][0], draws()[1]), r"\(K, B, 3\)"),
        (lambda: posterior()(draws()[0], draws()[1][:, :2]), r"\(5, 4\)"),
    ],
)
def test_bad_input_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(MissingExtra, match="flows"):
        AutoregressivePosterior(2, 2)
