"""The learned codebooks against enumeration, numpy and the published equations."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_gen.autoencoder import ResidualQuantizer, VectorQuantizer
from lightning_gen.autoencoder.quantizers import codebook as module
from lightning_gen.autoencoder.quantizers.codebook import Codebook
from lightning_gen.seeding import SampleStreams


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(net, seed=3):
    """Give codebooks of distinct codes."""
    for number, book in enumerate(part for part in net.modules() if isinstance(part, Codebook)):
        book.codes.data = normal(*book.codes.shape, seed=seed + number)
        if book.sums is not None:
            book.sums = book.codes.clone() * book.cluster_size[:, None]
    return net


def vectors(x):
    return x.movedim(1, -1).reshape(-1, x.shape[1]).detach().numpy()


def brute_force(z, codes):
    return np.array([np.argmin([np.sum((one - code) ** 2) for code in codes]) for one in z])


@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize("largest", [2**26, 30])
def test_the_nearest_code_by_enumeration(ema_decay, largest, monkeypatch):
    monkeypatch.setattr(module, "_LARGEST_TABLE", largest)
    net = spread(VectorQuantizer(3, 11, ema_decay=ema_decay).double()).eval()
    x = normal(4, 3, 5, 6)
    bottled = net(x)
    expected = brute_force(vectors(x), net.codebook.codes.detach().numpy())
    assert bottled.indices.flatten().tolist() == expected.tolist()
    assert torch.equal(bottled.z.movedim(1, -1).reshape(-1, 3), net.codebook.codes[expected])
    assert len(set(expected.tolist())) > 5


def test_normalized_codes_are_compared_by_angle():
    net = spread(VectorQuantizer(3, 11, normalized=True).double()).eval()
    x = normal(4, 3, 5, 6)
    bottled = net(x)
    z, codes = vectors(x), net.codebook.codes.detach().numpy()
    cosine = (z @ codes.T) / np.linalg.norm(codes, axis=1)
    assert bottled.indices.flatten().tolist() == cosine.argmax(1).tolist()
    torch.testing.assert_close(bottled.z.norm(dim=1), torch.ones(4, 5, 6).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("beta", [0.25, 1.0, 0.0])
def test_the_loss_and_what_it_moves(beta):
    """The codebook's term has no gradient for the encoder, the commitment, which has the beta, none for the codebook."""
    net = spread(VectorQuantizer(2, 5, beta=beta).double())
    x = normal(3, 2, 4, 4).requires_grad_()
    before = net.codebook.codes.detach().numpy().copy()
    bottled = net(x)
    z, k = vectors(x), bottled.indices.flatten().numpy()
    error = z - before[k]
    np.testing.assert_allclose(bottled.loss.item(), (1 + beta) * np.mean(error**2), rtol=1e-13)
    np.testing.assert_allclose(bottled.logs["commitment_loss"], np.mean(error**2), rtol=1e-13)
    bottled.loss.backward()
    np.testing.assert_allclose(vectors(x.grad), 2 * beta * error / error.size, rtol=0, atol=1e-15)
    pulled = np.zeros_like(before)
    np.add.at(pulled, k, -2 * error / error.size)
    np.testing.assert_allclose(net.codebook.codes.grad, pulled, rtol=0, atol=1e-15)


@pytest.mark.parametrize("normalized", [False, True])
def test_gradients_go_straight_through(normalized):
    net = spread(VectorQuantizer(3, 7, normalized=normalized).double())
    x = normal(2, 3, 4, 4).requires_grad_()
    z_e = F.normalize(x, dim=1) if normalized else x
    z_e.retain_grad()
    given = normal(2, 3, 4, 4, seed=5)
    (net(x).z * given).sum().backward()
    # as if the features themselves had been decoded
    expected = torch.autograd.grad((z_e * given).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=1e-14)
    assert net.codebook.codes.grad is None


def test_moving_averages_by_hand():
    """Van den Oord et al., appendix A.1, with Laplace smoothing, over several batches."""
    decay, size, epsilon = 0.9, 6, 1e-5
    net = spread(VectorQuantizer(3, size, ema_decay=decay).double())
    codes = net.codebook.codes.numpy().copy()
    n, m = np.ones(size), codes.copy()
    for seed in range(4):
        x = normal(2, 3, 4, 4, seed=seed)
        bottled = net(x)
        z = vectors(x)
        k = brute_force(z, codes)
        assert bottled.indices.flatten().tolist() == k.tolist()
        # the batch is decoded with the codes it was looked up with
        np.testing.assert_allclose(vectors(bottled.z), codes[k], rtol=0, atol=1e-13)
        np.testing.assert_allclose(bottled.loss, 0.25 * np.mean((z - codes[k]) ** 2), rtol=1e-12)
        n = decay * n + (1 - decay) * np.bincount(k, minlength=size)
        m = decay * m + (1 - decay) * np.stack([z[k == one].sum(0) for one in range(size)])
        smoothed = (n + epsilon) / (n.sum() + size * epsilon) * n.sum()
        codes = m / smoothed[:, None]
        np.testing.assert_allclose(net.codebook.cluster_size, n, rtol=1e-13)
        np.testing.assert_allclose(net.codebook.codes, codes, rtol=0, atol=1e-13)
    assert not list(net.parameters())


def test_normalized_moving_averages_are_mean_directions():
    net = VectorQuantizer(3, 4, ema_decay=0.0, normalized=True).double()
    x = normal(4, 3, 4, 4)
    k = net(x).indices.flatten().numpy()
    z = vectors(F.normalize(x, dim=1))
    for one in set(k.tolist()):
        mean = z[k == one].sum(0)
        np.testing.assert_allclose(net.codebook.codes[one], mean / np.linalg.norm(mean), rtol=0, atol=1e-13)
    torch.testing.assert_close(net.codebook.codes.norm(dim=1), torch.ones(4).double(), rtol=0, atol=1e-13)


def test_codes_without_vectors_stay_where_they_are():
    """Sums and sizes decay together; Laplace's epsilon shows once a size is that small."""
    net = spread(VectorQuantizer(2, 3, ema_decay=0.9).double())
    net.codebook.codes[2] = net.codebook.sums[2] = torch.tensor([100.0, 0.0])
    for seed in range(20):
        net(normal(2, 2, 4, 4, seed=seed))
    torch.testing.assert_close(net.codebook.codes[2], torch.tensor([100.0, 0.0]).double(), rtol=1e-3, atol=0)


# ---------------------------------------------------------------------- restarts


def dying(ema_decay, **arguments):
    """A code at a place that no vector is near, its size below the threshold after a batch."""
    net = spread(VectorQuantizer(2, 3, ema_decay=ema_decay, restart_below=0.5, **arguments).double())
    net.codebook.cluster_size.fill_(10.0)
    if net.codebook.sums is not None:
        net.codebook.sums = net.codebook.codes.clone() * 10
    net.codebook.codes.data[1] = 1000.0
    net.codebook.cluster_size[1] = 0.1
    net.codebook.updates.fill_(7)
    return net


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_restart_resets_all_and_survives(ema_decay):
    """The code, its sum and its size: were one of them left, the averages would bring the dead code back."""
    net = dying(ema_decay)
    book, x = net.codebook, normal(2, 2, 4, 4)
    alive = book.codes.detach()[[0, 2]].clone()
    probe = copy.deepcopy(book)
    probe.restart(x.movedim(1, -1))
    share = 2 * 16 / 3
    code = probe.codes.detach()[1]
    assert any(np.array_equal(code.numpy(), one) for one in vectors(x))
    torch.testing.assert_close(probe.codes.detach()[[0, 2]], alive, rtol=0, atol=0)
    assert probe.cluster_size.tolist() == pytest.approx([10.0, share, 10.0])
    if ema_decay is not None:
        torch.testing.assert_close(probe.sums[1], share * code, rtol=1e-14, atol=0)
    # the forward pass restarts, looks up and averages: the code decodes its vector, and stays near it
    bottled = net(x)
    assert bool((bottled.indices == 1).any())
    assert any(np.array_equal(code.numpy(), one) for one in vectors(bottled.z))
    after = book.codes.detach()[1].clone()
    assert (after - code).norm() < 1
    net(normal(2, 2, 4, 4, seed=1))
    assert (book.codes.detach()[1] - code).norm() < 1
    assert book.cluster_size[1] > 0.5 * share


def test_a_live_code_is_left_alone():
    net = dying(0.9)
    net.codebook.cluster_size[1] = 0.5 * 32 / 3 + 1e-9
    probe = copy.deepcopy(net.codebook)
    probe.restart(normal(2, 4, 4, 2))
    assert torch.equal(probe.codes, net.codebook.codes)


@pytest.mark.parametrize("ema_decay", [None, 0.99])
def test_a_codebook_with_restarts_begins_as_vectors_of_the_first_batch(ema_decay):
    net = VectorQuantizer(3, 8, ema_decay=ema_decay, restart_below=0.1).double()
    x = normal(2, 3, 4, 4)
    probe = copy.deepcopy(net.codebook)
    probe.restart(x.movedim(1, -1))
    rows = {tuple(row) for row in vectors(x)}
    assert len({tuple(code) for code in probe.codes.tolist()} & rows) == 8


def test_restarts_keep_a_large_codebook_in_use():
    """Clusters around 32 points, codes at 0: without restarts a few codes take all of them."""
    centers = 3 * normal(32, 4, seed=1)

    def use(restart_below):
        torch.manual_seed(0)
        net = VectorQuantizer(4, 64, ema_decay=0.9, restart_below=restart_below).double()
        for seed in range(150):
            rows = centers[torch.randint(32, (128,), generator=torch.Generator().manual_seed(seed))]
            error = net((rows + 0.05 * normal(128, 4, seed=seed))[:, :, None, None]).logs["commitment_loss"]
        return float(net.usage), float(error)

    (few, large), (many, small) = use(0.0), use(0.2)
    assert few < 0.5 < many
    assert small < 0.1 * large


# ---------------------------------------------------------------------- residual quantization


def trained_rvq(**arguments):
    torch.manual_seed(0)
    net = ResidualQuantizer(3, 16, 4, ema_decay=0.9, restart_below=0.1, **arguments).double()
    for seed in range(60):
        net(normal(16, 3, 4, 4, seed=seed), SampleStreams(seed, 0, 16, dtype=torch.float64))
    return net


@pytest.mark.parametrize("shared", [False, True])
def test_residual_stages_by_hand(shared):
    net = spread(ResidualQuantizer(3, 9, 3, beta=0.5, shared=shared).double())
    x = normal(2, 3, 4, 4).requires_grad_()
    tables = [book.codes.detach().numpy() for book in net.codebooks] * (3 if shared else 1)
    left, loss, expected = vectors(x), 0.0, []
    for codes in tables:
        k = brute_force(left, codes)
        loss += 1.5 * np.mean((left - codes[k]) ** 2)
        left = left - codes[k]
        expected.append(k)
    bottled = net(x)
    assert bottled.indices.reshape(-1, 3).tolist() == np.stack(expected, axis=1).tolist()
    np.testing.assert_allclose(bottled.loss.item(), loss, rtol=1e-13)
    np.testing.assert_allclose(vectors(x) - vectors(bottled.z), left, rtol=0, atol=1e-13)
    (bottled.z * 2).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 2.0), rtol=0, atol=0)


def test_shared_averages_are_over_all_stages():
    net = spread(ResidualQuantizer(3, 5, 2, ema_decay=0.0, shared=True).double())
    codes, x = net.codebooks[0].codes.numpy().copy(), normal(4, 3, 4, 4)
    first = vectors(x)
    second = first - codes[brute_force(first, codes)]
    k = np.concatenate([brute_force(part, codes) for part in (first, second)])
    net(x)
    for one in set(k.tolist()):
        mean = np.concatenate([first, second])[k == one].mean(0)
        np.testing.assert_allclose(net.codebooks[0].codes[one], mean, rtol=0, atol=1e-4)


def test_a_batch_is_decoded_with_the_codes_it_was_looked_up_with():
    net = spread(ResidualQuantizer(3, 9, 3, ema_decay=0.5).double())
    before = copy.deepcopy(net).eval()
    bottled = net(normal(2, 3, 4, 4))
    assert torch.equal(before.decode_indices(bottled.indices), bottled.z)
    assert not torch.equal(net.eval().decode_indices(bottled.indices), bottled.z)


def test_stages_begin_as_different_vectors():
    """Residuals of what the first stage has begun as are 0; the second draws others."""
    net = ResidualQuantizer(3, 4, 3, restart_below=0.1).double()
    net(normal(8, 3, 4, 4))
    for book in net.codebooks:
        assert (book.codes.norm(dim=1) > 1e-6).sum() >= 3


@pytest.mark.parametrize("arguments", [{}, {"shared": True}, {"dropout": 1.0}])
def test_every_prefix_decodes_and_each_stage_helps(arguments):
    net = trained_rvq(**arguments).eval()
    x = normal(64, 3, 4, 4, seed=1000)
    codes = net(x).indices
    errors = [float((net.decode_indices(codes[..., :n]) - x).square().mean()) for n in range(1, 5)]
    assert errors[0] < float(x.square().mean())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.2 * errors[0]


def test_dropout_gives_samples_a_prefix():
    net = spread(ResidualQuantizer(3, 9, 4, dropout=0.5).double())
    reference = copy.deepcopy(net).eval()
    x, n = normal(400, 3, 1, 1), 400
    bottled = net(x, SampleStreams(0, 0, n, dtype=torch.float64))
    kept = (bottled.indices >= 0).reshape(n, 4)
    stages = kept.sum(1)
    assert torch.equal(kept, torch.arange(4) < stages[:, None])
    # half keep all four, the others 1 to 4 alike; three standard deviations of a binomial
    found = torch.bincount(stages, minlength=5)[1:] / n
    assert np.abs(found.numpy() - [0.125, 0.125, 0.125, 0.625]).max() < 3 * np.sqrt(0.625 * 0.375 / n)
    assert torch.equal(reference.decode_indices(bottled.indices), bottled.z)
    # codes of the stages kept are those without dropout
    whole = reference(x).indices.reshape(n, 4)
    assert torch.equal(whole[kept], bottled.indices.reshape(n, 4)[kept])


def test_dropped_stages_learn_nothing():
    net = spread(ResidualQuantizer(3, 4, 2, ema_decay=0.5, dropout=1.0).double())
    x = normal(32, 3, 1, 1)
    codes = [book.codes.numpy().copy() for book in net.codebooks]
    stream = SampleStreams(1, 0, 32, dtype=torch.float64)
    told = net(x, stream).indices.reshape(32, 2)
    second = (vectors(x) - codes[0][told[:, 0]])[told[:, 1] >= 0]
    k = brute_force(second, codes[1])
    assert 5 < len(k) < 27
    np.testing.assert_allclose(net.codebooks[1].cluster_size, 0.5 + 0.5 * np.bincount(k, minlength=4), rtol=1e-13)
    assert net.counts.counts[0, 1].tolist() == np.bincount(k, minlength=4).tolist()


def test_dropout_is_for_training_alone():
    net = spread(ResidualQuantizer(3, 4, 2, dropout=1.0).double()).eval()
    assert net(normal(32, 3, 1, 1)).indices.min() >= 0


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: VectorQuantizer(0), "channels"),
        (lambda: VectorQuantizer(4, 0), "codebook_size"),
        (lambda: VectorQuantizer(4, beta=-1.0), "beta"),
        (lambda: VectorQuantizer(4, ema_decay=1.0), "ema_decay"),
        (lambda: VectorQuantizer(4, restart_below=1.0), "restart_below"),
        (lambda: ResidualQuantizer(4, num_quantizers=0), "num_quantizers"),
        (lambda: ResidualQuantizer(4, dropout=2.0), "dropout"),
        (lambda: ResidualQuantizer(4, 8, 2).decode_indices(torch.zeros(1, 2, 2, 3, dtype=torch.int64)), "1 to 2"),
    ],
)
def test_bad_arguments_are_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()
