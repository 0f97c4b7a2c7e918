"""Reading pickles made the way EDM makes them, and refusing those made to do harm."""

import builtins
import io
import operator
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from edm_nets import DhariwalUNet, EDMLoss, EDMPrecond, Persistence, SongUNet
from torch import nn

from lightning_gen.interop import inert_pickle
from lightning_gen.interop.edm_pickle import EDMNetwork, read_edm_pickle
from lightning_gen.interop.edm_unet import edm_arguments, edm_state
from lightning_gen.networks.denoiser import Condition
from lightning_gen.networks.unet import UNet

SMALL = {
    "img_resolution": 8,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "channel_mult_emb": 2,
}


@pytest.fixture
def marker(tmp_path):
    """A file that is there after something of a pickle was executed."""
    return tmp_path / "executed"


def saved(path, content, marker, protocol=4):
    with Persistence(marker) as persistence, open(path, "wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # storages of torch on their way out
        pickle.dump(content(persistence) if callable(content) else content, file, protocol=protocol)
    return path


def precond(**more):
    torch.manual_seed(0)
    return EDMPrecond(**{**SMALL, "img_channels": 3, "label_dim": 4, "augment_dim": 9, **more}).eval()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_network_comes_out_whole_and_nothing_is_executed(tmp_path, marker, protocol):
    net = precond()
    path = saved(
        tmp_path / "net.pkl",
        lambda p: {
            "ema": net,
            "loss_fn": EDMLoss(P_mean=-1.0),
            "augment_pipe": None,
            "dataset_kwargs": p.easy_dict(path="x.zip"),
        },
        marker,
        protocol,
    )
    assert b"pathlib" in path.read_bytes()
    read = read_edm_pickle(path)
    assert not marker.exists()
    assert not [name for name in sys.modules if name.startswith(("torch_utils", "dnnlib"))]
    assert (read.class_name, read.model.class_name) == ("EDMPrecond", "SongUNet")
    assert read.arguments == {**SMALL, "img_channels": 3, "label_dim": 4, "augment_dim": 9}
    assert read.model.arguments == {**SMALL, "in_channels": 3, "out_channels": 3, "label_dim": 4, "augment_dim": 9}
    for given, module in ((read.state, net), (read.model.state, net.model)):
        expected = module.state_dict()
        assert list(given) == list(expected)
        for name, value in expected.items():
            assert given[name].dtype == value.dtype
            assert torch.equal(given[name], value), name


class Parts(nn.Module):
    """Tensors of every kind in containers of every kind."""

    def __init__(self, **_):
        super().__init__()
        shared = torch.randn(6, 4)
        self.parts = nn.ModuleList([nn.Sequential(nn.ModuleDict()), nn.ModuleDict()])
        self.weight = nn.Parameter(shared[1:3].T)
        self.short = nn.Parameter(torch.randn(2).half())
        self.brain = nn.Parameter(torch.randn(3).bfloat16())
        self.wide = nn.Parameter(torch.randn(3).double())
        self.register_buffer("view", shared[:, 2])
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("absent", None)
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.numbers = np.arange(6.0).reshape(2, 3, order="F")
        self.kinds = {"device": torch.device("cpu"), "dtype": torch.float16, "shape": torch.Size([2, 3]), "set": {1}}


def test_tensors_of_every_kind(tmp_path, marker):
    from edm_nets import persistent

    arguments = {
        "double": np.float64(0.1),
        "single": np.float32(0.1),
        "integer": np.int64(-3),
        "flag": np.bool_(True),
        "big": np.dtype(">f8").type(2.5),
        "array": np.array([[1, 2], [3, 4]], dtype=np.int16, order="F"),
        "nested": {"tuple": (1, "a", None)},
    }
    net = persistent(Parts)(**arguments)
    read = read_edm_pickle(saved(tmp_path / "net.pkl", {"net": net}, marker), "net")
    assert read.model is None
    expected = {k: v for k, v in net.state_dict().items() if k != "passing"}
    assert list(read.state) == list(expected)
    for name, value in expected.items():
        assert (read.state[name].dtype, read.state[name].shape) == (value.dtype, value.shape)
        assert torch.equal(read.state[name], value), name
    assert read.arguments == {
        "double": 0.1,
        "single": float(np.float32(0.1)),
        "integer": -3,
        "flag": True,
        "big": 2.5,
        "array": [[1, 2], [3, 4]],
        "nested": {"tuple": [1, "a", None]},
    }
    assert all(type(value) in (int, float, bool, list, dict) for value in read.arguments.values())


def test_a_network_owns_its_memory(tmp_path, marker):
    path = saved(tmp_path / "net.pkl", {"ema": precond()}, marker)
    read = read_edm_pickle(path)
    for value in read.state.values():
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_names_of_older_numpy(tmp_path, marker):
    path = saved(tmp_path / "net.pkl", {"ema": precond()}, marker, protocol=2)
    raw = path.read_bytes()
    new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    assert (new in raw) != (old in raw)
    for name in (new, old):
        path.write_bytes(raw.replace(new, name).replace(old, name))
        assert read_edm_pickle(path).model.class_name == "SongUNet"


class Call:
    """Pickled as a call."""

    def __init__(self, function, *args, state=None, items=None):
        self.call = (function, args, state, None, items)

    def __call__(self):
        """So that it can be pickled as what is called."""

    def __reduce__(self):
        return self.call


def command(marker):
    return f"touch {marker}"


def torch_saved(content, **how):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, buffer, **how)
    return buffer.getvalue()


def storage(n=4):
    return Call(
        torch.storage._load_from_bytes, torch_saved(torch.zeros(n).storage(), _use_new_zipfile_serialization=False)
    )


def module_of(persistence, **state):
    full = {"_parameters": {}, "_buffers": {}, "_modules": {}, "_init_args": (), "_init_kwargs": {}, **state}
    return Call(
        persistence.reconstruct, {"type": "class", "version": 6, "module_src": "", "class_name": "Net", "state": full}
    )


HARMFUL = {
    "system": (lambda m, p: Call(os.system, command(m)), r"posix\.system"),
    "eval": (lambda m, p: Call(eval, f"open({str(m)!r}, 'w').close()"), r"(builtins|__builtin__)\.eval"),
    "exec": (lambda m, p: Call(exec, f"open({str(m)!r}, 'w').close()"), r"(builtins|__builtin__)\.exec"),
    "open": (lambda m, p: Call(open, str(m), "w"), r"(_?io|builtins|__builtin__)\.open"),
    "import": (lambda m, p: Call(builtins.__import__, "this"), r"(builtins|__builtin__)\.__import__"),
    "getattr": (lambda m, p: Call(getattr, {}, "keys"), r"(builtins|__builtin__)\.getattr"),
    "subprocess": (lambda m, p: Call(subprocess.Popen, ["touch", str(m)]), r"(subprocess|commands)\.Popen"),
    "attrgetter": (lambda m, p: Call(operator.attrgetter, "system"), r"operator\.attrgetter"),
    "torch.load": (lambda m, p: Call(torch.load, str(m)), r"torch\.serialization\.load"),
    "torch.hub": (lambda m, p: Call(torch.hub.load, "a/b", "c"), r"torch\.hub\.load"),
    "numpy.load": (lambda m, p: Call(np.load, str(m), None, True), r"numpy.*\.load"),
    "a module's class": (lambda m, p: Call(nn.Linear, 2, 2), r"torch\.nn\.modules\.linear\.Linear"),
    "within a network": (
        lambda m, p: module_of(p, _modules={"model": module_of(p, hidden=Call(os.system, command(m)))}),
        r"posix\.system",
    ),
    "as an argument of what is allowed": (
        lambda m, p: Call(torch._utils._rebuild_tensor_v2, Call(os.system, command(m)), 0, (1,), (1,), False, {}),
        r"posix\.system",
    ),
    "as a function that is called later": (
        lambda m, p: Call(Call(operator.attrgetter, "a"), 1),
        r"operator\.attrgetter",
    ),
    "inside of a storage": (
        lambda m, p: Call(
            torch.storage._load_from_bytes,
            torch_saved(Call(os.system, command(m)), _use_new_zipfile_serialization=False),
        ),
        r"_load_from_bytes.*torch refuses.*asks for posix\.system",
    ),
    "inside of a zipped storage": (
        lambda m, p: Call(torch.storage._load_from_bytes, torch_saved({"a": Call(os.system, command(m))})),
        r"_load_from_bytes.*torch refuses.*asks for posix\.system",
    ),
    "a plain pickle inside of a storage": (
        lambda m, p: Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.system, command(m)))),
        r"_load_from_bytes.*torch refuses",
    ),
    "a numpy object": (
        lambda m, p: Call(np.float64(1).__reduce__()[0], np.dtype("O"), pickle.dumps(Call(os.system, command(m)))),
        r"numpy\.dtype.*'O8'",
    ),
    "a numpy array of objects": (
        lambda m, p: np.array([Call(os.system, command(m))], dtype=object),
        r"numpy\.dtype.*'O8'",
    ),
    "a numpy record": (lambda m, p: np.zeros(1, dtype=[("a", "f8")]), r"numpy\.dtype.*'V8'"),
    "a codec": (lambda m, p: Call(__import__("_codecs").encode, "abc", "rot13"), r"_codecs\.encode.*rot13"),
    "a class that is only named": (lambda m, p: Call(np.ndarray, (2,)), r"numpy\.ndarray.*only named"),
}


@pytest.mark.parametrize(("content", "message"), HARMFUL.values(), ids=HARMFUL)
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_could_do_harm_is_refused_by_name(tmp_path, marker, content, message, protocol):
    def both(persistence):
        return {"ema": precond(), "more": content(marker, persistence)}

    path = saved(tmp_path / "net.pkl", both, marker, protocol)
    with pytest.raises(ValueError, match=message) as caught:
        read_edm_pickle(path)
    assert str(path) in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["system", "eval", "exec", "a numpy array of objects"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_the_harmful_ones_would_have_done_harm(marker, name):
    pickle.loads(pickle.dumps(HARMFUL[name][0](marker, None)))
    assert marker.exists()


def opcodes(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


def text(value):
    raw = value.encode()
    return b"\x8c" + bytes([len(raw)]) + raw


CRAFTED = {
    # a dotted name, which pickle's own lookup would follow through the attributes
    "dotted name": (opcodes(text("torch.storage"), text("io.open"), b"\x93"), r"torch\.storage\.io\.open"),
    "dotted allowed name": (
        opcodes(text("torch.storage"), text("_load_from_bytes.__globals__"), b"\x93"),
        r"_load_from_bytes\.__globals__",
    ),
    "old opcodes": (b"(S'true'\nios\nsystem\n.", r"os\.system"),
    "state of a function": (
        opcodes(b"ccollections\nOrderedDict\n", b"}", text("a"), b"K\x01sb"),
        "sets the state of a Function",
    ),
    "slots of a function": (
        opcodes(b"ccollections\nOrderedDict\n", b"N}", text("_function"), b"K\x01s\x86b"),
        "sets the state of a Function",
    ),
    "state of a class": (
        opcodes(b"cdnnlib.util\nEasyDict\n", b"N}", text("harm"), b"K\x01s\x86b"),
        "EasyDict|__setstate__",
    ),
    "state of a container's class": (
        opcodes(b"ctorch.nn.modules.container\nModuleDict\n", b"N}", text("harm"), b"K\x01s\x86b"),
        "__setstate__",
    ),
    "attributes of an object": (
        opcodes(b"cdnnlib.util\nEasyDict\n", b")\x81", b"}", text("harm"), b"K\x01sb"),
        "sets the state of an EasyDict",
    ),
    "something outside": (b"Pelsewhere\n.", "outside of the file"),
    "an extension": (b"\x82\x01.", "extension"),
    "cut off": (pickle.dumps({"ema": [1, 2, 3]})[:-4], "no EDM pickle, or broken"),
    "no pickle": (b"PK\x03\x04 and so on", "no EDM pickle, or broken"),
    "empty": (b"", "no EDM pickle, or broken"),
}


@pytest.mark.parametrize(("raw", "message"), CRAFTED.values(), ids=CRAFTED)
def test_crafted_opcodes_are_refused(tmp_path, raw, message):
    path = tmp_path / "net.pkl"
    path.write_bytes(raw)
    before = {name: dict(vars(thing)) for name, thing in vars(inert_pickle).items() if isinstance(thing, type)}
    with pytest.raises(ValueError, match=message):
        read_edm_pickle(path)
    assert before == {name: dict(vars(thing)) for name, thing in vars(inert_pickle).items() if isinstance(thing, type)}


def rebuilt(offset=0, size=(2, 2), stride=(2, 1), of=None):
    return Call(torch._utils._rebuild_tensor_v2, storage() if of is None else of, offset, size, stride, False, {})


MISSHAPEN = {
    "beyond its storage": (lambda p: rebuilt(offset=1), "reaches beyond its storage"),
    "stride beyond": (lambda p: rebuilt(stride=(3, 1)), "reaches beyond its storage"),
    "repeated": (lambda p: rebuilt(size=(10**9, 4), stride=(0, 1)), "more numbers than its storage"),
    "before its storage": (lambda p: rebuilt(offset=-1), "no sizes"),
    "negative stride": (lambda p: rebuilt(stride=(-1, 1)), "no sizes"),
    "size and stride": (lambda p: rebuilt(stride=(1,)), "different lengths"),
    "size of floats": (lambda p: rebuilt(size=(2.0, 2)), "no sizes"),
    "of no storage": (lambda p: rebuilt(of=b"abcd"), "something else than a storage"),
    "a dict for a storage": (
        lambda p: Call(torch.storage._load_from_bytes, torch_saved({"a": 1})),
        "gives it a dict where a storage",
    ),
    "text for a storage": (lambda p: Call(torch.storage._load_from_bytes, "abc"), "gives it a str for bytes"),
    "parameter of no tensor": (
        lambda p: Call(torch._utils._rebuild_parameter, [1], False, {}),
        "something else than a tensor",
    ),
    "state of a tensor": (
        lambda p: Call(torch._utils._rebuild_tensor_v2, storage(), 0, (4,), (1,), False, {}, state=(1, 2, 3, 4)),
        "sets the state of a StoredTensor",
    ),
    "weights that are none": (lambda p: module_of(p, _parameters={"w": 3}), "'w' is no tensor"),
    "modules that are none": (lambda p: module_of(p, _modules={"a": {"b": 1}}), "'a' is no module"),
    "modules that are no dict": (lambda p: module_of(p, _modules=[1]), "no dict of names"),
    "numbers as names": (lambda p: module_of(p, _modules={1: None}), "no dict of names"),
    "arguments without names": (lambda p: module_of(p, _init_args=(1,)), "arguments without names"),
    "tensors as arguments": (lambda p: module_of(p, _init_kwargs={"a": rebuilt()}), "a StoredTensor"),
    "no class": (lambda p: Call(p.reconstruct, {"type": "function"}), "no object of a class"),
    "no dict": (lambda p: Call(p.reconstruct, [1]), "no dict of names"),
    "too many arguments": (lambda p: Call(p.reconstruct, {}, {}), "in an unusual way"),
}


@pytest.mark.parametrize(("content", "message"), MISSHAPEN.values(), ids=MISSHAPEN)
def test_what_has_an_unusual_form_is_refused(tmp_path, marker, content, message):
    path = saved(tmp_path / "net.pkl", lambda p: {"ema": content(p)}, marker)
    with pytest.raises(ValueError, match=message):
        read_edm_pickle(path)


def test_a_module_within_itself_is_refused(tmp_path, marker):
    modules = {}

    def content(persistence):
        modules["again"] = module_of(persistence, _modules=modules)
        # the dict first: what is within it can then refer to it
        return {"modules": modules, "ema": modules["again"]}

    with pytest.raises(ValueError, match="'again' is a module that is somewhere else"):
        read_edm_pickle(saved(tmp_path / "net.pkl", content, marker))


def test_a_module_at_two_places_is_refused(tmp_path, marker):
    def content(persistence):
        twice = module_of(persistence)
        return {"ema": module_of(persistence, _modules={"a": twice, "b": twice})}

    with pytest.raises(ValueError, match="'b' is a module that is somewhere else"):
        read_edm_pickle(saved(tmp_path / "net.pkl", content, marker))


def test_an_entry_that_is_not_there_is_named(tmp_path, marker):
    path = saved(tmp_path / "net.pkl", {"ema": precond(), "loss_fn": EDMLoss()}, marker)
    with pytest.raises(ValueError, match="no network 'emma'; its networks are: ema"):
        read_edm_pickle(path, "emma")
    with pytest.raises(ValueError, match="no network 'ema'; its networks are: none"):
        read_edm_pickle(saved(path, [1, 2], marker))


SONGS = {
    "plain": {},
    "conditional": {"label_dim": 5, "label_dropout": 0.1},
    "augmented": {"augment_dim": 9},
    "all": {"label_dim": 5, "augment_dim": 9, "in_channels": 1, "out_channels": 2, "num_blocks": 2},
    "three levels": {"channel_mult": [2, 1, 3], "attn_resolutions": [8, 2], "img_resolution": 16},
    "many groups": {"model_channels": 160, "channel_mult": [1, 1]},
}
DHARIWALS = {
    "plain": {"attn_resolutions": []},
    "conditional": {"label_dim": 5},
    "all": {
        "label_dim": 5,
        "augment_dim": 9,
        "label_dropout": 0.2,
        "attn_resolutions": [8, 4],
        "channel_mult": [1, 2, 2],
    },
}
DHARIWAL_SMALL = {**SMALL, "model_channels": 64}
CASES = {
    **{f"song, {name}": (SongUNet, {**SMALL, **more}) for name, more in SONGS.items()},
    **{f"adm, {name}": (DhariwalUNet, {**DHARIWAL_SMALL, **more}) for name, more in DHARIWALS.items()},
}


@pytest.mark.parametrize(("kind", "arguments"), CASES.values(), ids=CASES)
def test_the_imported_network_computes_the_same(tmp_path, marker, kind, arguments):
    torch.manual_seed(1)
    peer = kind(**{"in_channels": 3, "out_channels": 3, **arguments}).double().eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            # small enough that the numbers stay of order one through all blocks
            parameter.mul_(0.5 if parameter.ndim > 1 else 1.0)
    read = read_edm_pickle(saved(tmp_path / "net.pkl", {"ema": peer}, marker))
    net = UNet(**edm_arguments(read)).double().eval()
    net.load_state_dict(edm_state(read, net), strict=True)
    x = torch.randn(3, *net.image_shape, dtype=torch.float64)
    t = torch.tensor([-1.3, 0.2, 1.1], dtype=torch.float64)
    label, hot = None, None
    if net.num_classes:
        label = torch.tensor([0, 4, 5 if net.null_class else 2])
        hot = torch.eye(6, 5, dtype=torch.float64)[label]
    for augment in (None, torch.randn(3, 9, dtype=torch.float64)) if net.augment_dim else (None,):
        expected = peer(x, t, hot, augment)
        assert expected.std() > 1e-3
        out = net(x, t, Condition(label=label, augment=augment))
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


def test_the_preconditioned_network_and_the_inner_one_say_the_same(tmp_path, marker):
    read = read_edm_pickle(saved(tmp_path / "net.pkl", {"ema": precond()}, marker))
    assert edm_arguments(read) == edm_arguments(read.model)
    net = UNet(**edm_arguments(read))
    inner, outer = edm_state(read.model, net), edm_state(read, net)
    assert inner.keys() == outer.keys()
    assert all(torch.equal(inner[name], outer[name]) for name in inner)


@pytest.mark.parametrize(("preset", "kind", "more", "millions"), [
    ("edm_cifar10", "SongUNet", {"img_resolution": 32, "channel_mult": [2, 2, 2], "augment_dim": 9}, 55.73),
    ("adm_imagenet64", "DhariwalUNet", {"img_resolution": 64, "label_dim": 1000}, 295.9),
])  # fmt: skip
def test_published_networks_are_the_presets(preset, kind, more, millions):
    network = EDMNetwork(kind, {"in_channels": 3, "out_channels": 3, **more}, {})
    with torch.device("meta"):
        net = UNet(**edm_arguments(network))
        published = UNet.preset(preset, augment_dim=more.get("augment_dim", 0))
    assert sum(parameter.numel() for parameter in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in published.state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("SongUNet", {"embedding_type": "fourier"}, "embedding_type='fourier'"),
        ("SongUNet", {"channel_mult_noise": 2}, "channel_mult_noise=2"),
        ("SongUNet", {"encoder_type": "residual"}, "encoder_type='residual'"),
        ("SongUNet", {"decoder_type": "skip"}, "decoder_type='skip'"),
        ("SongUNet", {"resample_filter": [1, 3, 3, 1]}, r"resample_filter=\[1, 3, 3, 1\]"),
        ("SongUNet", {"out_channels": 5}, "turns 3 channels into 5"),
        ("SongUNet", {"future": 1}, "future=1, of which UNet knows nothing"),
        ("DhariwalUNet", {"embedding_type": "positional"}, "embedding_type='positional'"),
        ("DhariwalUNet", {"channel_mult": [2, 3]}, r"channel_mult=\[2, 3\]"),
        ("Discriminator", {}, "no U-Net of EDM that can be mapped 'Discriminator'"),
    ],
)
def test_networks_that_cannot_be_mapped_are_refused_by_name(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        edm_arguments(EDMNetwork(kind, {"img_resolution": 8, "in_channels": 3, "out_channels": 3, **arguments}, {}))


def test_a_network_that_does_not_say_its_size_is_refused():
    with pytest.raises(ValueError, match="does not say its img_resolution, in_channels"):
        edm_arguments(EDMNetwork("SongUNet", {"out_channels": 3}, {}))


def test_weights_that_do_not_fit_are_refused_by_name():
    torch.manual_seed(0)
    arguments = {**SMALL, "in_channels": 3, "out_channels": 3}
    state = SongUNet(**arguments).state_dict()
    network = EDMNetwork("SongUNet", arguments, dict(state))
    net = UNet(**edm_arguments(network))
    assert edm_state(network, net).keys() == net.state_dict().keys()

    def changed(name, value):
        return EDMNetwork("SongUNet", arguments, {**state, name: value})

    with pytest.raises(ValueError, match="no place for the weights more"):
        edm_state(changed("more", torch.zeros(1)), net)
    with pytest.raises(ValueError, match=r"'input\.bias' has the shape \(3,\)"):
        edm_state(changed("enc.8x8_conv.bias", torch.zeros(3)), net)
    name = "enc.4x4_down.conv0.resample_filter"
    with pytest.raises(ValueError, match=r"'enc\.4x4_down\.conv0' resamples by another filter"):
        edm_state(changed(name, state[name] * 2), net)
    short = {k: v for k, v in state.items() if k != "dec.4x4_in0.qkv.weight"}
    with pytest.raises(ValueError, match=r"has no 'dec\.4x4_in0\.qkv\.weight'"):
        edm_state(EDMNetwork("SongUNet", arguments, short), net)
