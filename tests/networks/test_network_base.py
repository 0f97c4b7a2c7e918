"""What the base classes refuse, and what they say."""

import pytest
import torch
from torch import Tensor, nn

from lightning_gen.networks import (
    DCGANDiscriminator,
    DCGANGenerator,
    Discriminator,
    DiscriminatorOutput,
    Generator,
    LeNetDiscriminator,
    MLPDiscriminator,
    MLPGenerator,
    ResNetDiscriminator,
    ResNetGenerator,
)


class OwnGenerator(Generator):
    def __init__(self) -> None:
        super().__init__(latent_dim=2, image_shape=[1, 1, 2])

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        self.check(z, label)
        return torch.tanh(z).view(-1, 1, 1, 2)


class OwnCritic(Discriminator):
    def __init__(self, auxiliary: bool = False) -> None:
        super().__init__(image_shape=(1, 1, 2), num_classes=4, auxiliary=auxiliary)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor | DiscriminatorOutput:
        self.check(x, label)
        return x.flatten(1).sum(1)


def test_a_users_own_networks_fit():
    generator, critic = OwnGenerator(), OwnCritic()
    assert (generator.latent_dim, generator.image_shape, generator.num_classes) == (2, (1, 1, 2), None)
    assert critic(generator(torch.zeros(3, 2)), torch.tensor([0, 3, 1])).shape == (3,)


def test_the_base_classes_are_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Generator(2, (1, 1, 2))
    with pytest.raises(TypeError, match="abstract"):
        Discriminator((1, 1, 2))


GENERATOR = MLPGenerator(5, [4], (1, 2, 2), num_classes=3)
DISCRIMINATOR = MLPDiscriminator([4], (1, 2, 2), num_classes=3)
Z, X = torch.zeros(2, 5), torch.zeros(2, 1, 2, 2)


@pytest.mark.parametrize(("net", "argument"), [(GENERATOR, Z), (DISCRIMINATOR, X)])
@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, r"conditional on 3 classes and was given no label; pass int64 labels of shape \(2,\)"),
        (torch.tensor([0, 3]), r"labels in \[0, 2\], not from 0 to 3"),
        (torch.tensor([-1, 1]), r"labels in \[0, 2\], not from -1 to 1"),
        (torch.tensor([0, 1, 2]), r"of shape \(2,\), not torch.int64 of shape \(3,\)"),
        (torch.tensor([[0], [1]]), r"of shape \(2,\), not torch.int64 of shape \(2, 1\)"),
        (torch.tensor([0.0, 1.0]), r"int64 labels of shape \(2,\), not torch.float32"),
    ],
)
def test_a_conditional_net_refuses_a_wrong_label(net: nn.Module, argument, label, message):
    with pytest.raises(ValueError, match=type(net).__name__ + ".*" + message):
        net(argument, label)


@pytest.mark.parametrize(
    ("net", "argument"),
    [(MLPGenerator(5, [4], (1, 2, 2)), Z), (MLPDiscriminator([4], (1, 2, 2)), X)],
)
def test_an_unconditional_net_refuses_a_label(net, argument):
    with pytest.raises(ValueError, match="unconditional and was given a label; leave the label out"):
        net(argument, torch.tensor([0, 1]))


@pytest.mark.parametrize("shape", [(2, 4), (2, 5, 1), (5,)])
def test_a_generator_refuses_latents_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"MLPGenerator takes latents of shape \(B, 5\)"):
        GENERATOR(torch.zeros(shape), torch.tensor([0, 1]))


@pytest.mark.parametrize("shape", [(2, 4), (2, 2, 2, 2), (1, 2, 2), (2, 1, 2, 3)])
def test_a_discriminator_refuses_images_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"takes images of shape \(B, 1, 2, 2\), not"):
        DISCRIMINATOR(torch.zeros(shape), torch.tensor([0, 1]))


def test_a_discriminator_refuses_bytes():
    with pytest.raises(ValueError, match=r"floating-point images in .*not torch.uint8; .*from_uint8"):
        DISCRIMINATOR(X.to(torch.uint8), torch.tensor([0, 1]))


def test_an_auxiliary_classifier_needs_no_label_and_checks_a_given_one():
    critic = OwnCritic(auxiliary=True)
    x = torch.zeros(2, 1, 1, 2)
    assert torch.equal(critic(x), critic(x, torch.tensor([3, 0])))
    with pytest.raises(ValueError, match=r"labels in \[0, 3\]"):
        critic(x, torch.tensor([4, 0]))


def test_the_label_check_leaves_vmap_and_empty_batches_alone():
    label = torch.tensor([0, 2])
    together = DISCRIMINATOR(X, label)
    apart = torch.func.vmap(lambda x, y: DISCRIMINATOR(x[None], y[None])[0])(X, label)
    torch.testing.assert_close(apart, together)
    assert GENERATOR(Z[:0], label[:0]).shape == (0, 1, 2, 2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLPGenerator(latent_dim=0), "MLPGenerator takes a positive integer as latent_dim, not 0"),
        (lambda: MLPGenerator(image_shape=(28, 28)), r"image_shape as \[channels, height, width\], not \[28, 28"),
        (lambda: MLPGenerator(image_shape=(1, 0, 28)), "positive integer as each number of image_shape"),
        (lambda: MLPGenerator(num_classes=0), "positive integer as num_classes"),
        (lambda: MLPGenerator(hidden=[8, 0]), "positive integer as each number of hidden"),
        (lambda: MLPGenerator(dropout=1.0), r"dropout in \[0, 1\), not 1.0"),
        (lambda: LeNetDiscriminator(dropout=-0.1), r"dropout in \[0, 1\), not -0.1"),
        (lambda: MLPGenerator(activation="leaky"), "no activation 'leaky'.*Did you mean 'leaky_relu'"),
        (lambda: DCGANGenerator(norm="bach"), "no normalization 'bach'.*Did you mean 'batch'"),
        (lambda: DCGANGenerator(channels=0), "positive integer as channels"),
        (lambda: DCGANGenerator(image_shape=(3, 48, 48)), "8, 16, 28, 32, 64, 128, not 48 x 48"),
        (lambda: DCGANDiscriminator(image_shape=(3, 32, 64)), "not 32 x 64"),
        (lambda: LeNetDiscriminator(image_shape=(1, 64, 64)), "side 28, 32, not 64 x 64"),
        (lambda: ResNetGenerator(image_shape=(3, 16, 16)), "side 28, 32, 64, not 16 x 16"),
        (lambda: ResNetGenerator(channels=24, image_shape=(3, 64, 64)), "multiple of 16 as channels, not 24"),
        (lambda: ResNetGenerator(upsampling="linear"), "no upsampling 'linear'.*'bilinear'"),
        (lambda: ResNetDiscriminator(pooling="max"), "no pooling 'max'; allowed are: sum, mean"),
    ],
)
def test_constructors_refuse_with_a_reason(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "net", [DCGANGenerator, DCGANDiscriminator, ResNetGenerator, ResNetDiscriminator, LeNetDiscriminator]
)
def test_conditioning_and_classes_come_together(net):
    with pytest.raises(ValueError, match=r"num_classes=3 and conditioning='none'; choose one of 'concat'"):
        net(num_classes=3)
    with pytest.raises(ValueError, match="conditioning='concat' also needs num_classes"):
        net(conditioning="concat")
    with pytest.raises(ValueError, match=r"knows no conditioning 'concatenate'.*Did you mean 'concat'"):
        net(conditioning="concatenate", num_classes=3)
    other = "projection" if issubclass(net, Generator) else "cbn"
    with pytest.raises(ValueError, match=f"knows no conditioning '{other}'"):
        net(conditioning=other, num_classes=3)


def test_a_conditional_batch_norm_goes_with_batch_norm_only():
    with pytest.raises(ValueError, match="goes with norm='batch', not 'group'"):
        DCGANGenerator(conditioning="cbn", num_classes=3, norm="group")
