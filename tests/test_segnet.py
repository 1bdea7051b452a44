"""SegNet: shapes, the published parameter counts, and ImageNet weights from every source, whole and damaged."""

import gc
import hashlib
import os
import pickle
import socket
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from fadeviz import FadevizError
from fadeviz.models import NETWORKS, SegNet, build_network, segnet
from fadeviz.models.costs import operator_cost
from fadeviz.upsamplers import UPSAMPLERS, Upsampler

# torchvision's vgg16_bn, written down: the places of the convolutions in `features` (the norm is the next one), their
# output channels, and the places of the five poolings.
CONVS = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
CHANNELS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
POOLS = (6, 13, 23, 33, 43)
PUBLISHED = {
    "nearest": 0,
    "bilinear": 0,
    "max_unpool": 0,
    "deconv": 5_494_208,
    "pixel_shuffle": 21_976_832,
    "carafe": 383_028,
    "fade": 262_338,
}
"""Parameters that the operators add to SegNet at width 1."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small maps gain nothing from threads, and lose much to them where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def error_of(function, *arguments):
    with pytest.raises(FadevizError) as caught:
        function(*arguments)
    line = str(caught.value)
    assert len(line.splitlines()) == 1, line
    return line


@pytest.fixture(scope="module")
def state():
    """Random weights of VGG16-BN under torchvision's names, in float16."""
    random = torch.Generator().manual_seed(0)
    tensors, before = {}, 3
    for place, channels in zip(CONVS, CHANNELS, strict=True):
        weight = torch.randn(channels, before, 3, 3, generator=random) * (2 / (9 * before)) ** 0.5
        norm = {name: torch.randn(channels, generator=random) * 0.2 for name in ("weight", "bias", "running_mean")}
        tensors |= {
            f"features.{place}.weight": weight,
            f"features.{place}.bias": torch.randn(channels, generator=random) * 0.1,
            f"features.{place + 1}.weight": 1 + norm["weight"],
            f"features.{place + 1}.bias": norm["bias"],
            f"features.{place + 1}.running_mean": norm["running_mean"],
            f"features.{place + 1}.running_var": 0.5 + torch.rand(channels, generator=random),
        }
        before = channels
    return {name: tensor.half() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def net():
    """The network at width 1; tests load weights into its encoder."""
    return SegNet("nearest").eval()


@pytest.fixture(scope="module")
def safetensors_file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "vgg16_bn.safetensors"
    save_file({**state, "classifier.0.weight": torch.zeros(3, 2)}, path)
    return path


@pytest.fixture(scope="module")
def pth_file(state, tmp_path_factory):
    """Named as torch.hub wants it: the file's name ends with the beginning of its SHA-256."""
    folder = tmp_path_factory.mktemp("served")
    counters = {f"features.{place + 1}.num_batches_tracked": torch.tensor(7) for place in CONVS}
    torch.save({**state, **counters, "classifier.6.bias": torch.zeros(1000)}, folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    return (folder / "new.pth").rename(folder / f"vgg16_bn-{digest[:8]}.pth")


def torchvision_features(state, x):
    """What the five stages of torchvision's network give before they are pooled."""
    features = []
    for place in CONVS:
        if place - 1 in POOLS:
            x = F.max_pool2d(x, 2)
        weight, bias = (state[f"features.{place}.{key}"].float() for key in ("weight", "bias"))
        keys = ("running_mean", "running_var", "weight", "bias")
        norm = [state[f"features.{place + 1}.{key}"].float() for key in keys]
        x = F.relu(F.batch_norm(F.conv2d(x, weight, bias, padding=1), *norm))
        if place + 3 in POOLS:
            features.append(x)
    return features


def own_features(net, x):
    features = []
    for stage in net.encoder:
        x = stage(x)
        features.append(x)
        x = F.max_pool2d(x, 2)
    return features


@torch.no_grad()
def check_loaded(net, state, weights):
    for tensor in net.encoder.state_dict().values():
        tensor.zero_()
    source = net.load_encoder(weights)
    x = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(1))
    got, wanted = own_features(net, x), torchvision_features(state, x)
    assert len(got) == len(wanted) == 5
    for ours, theirs in zip(got, wanted, strict=True):
        assert theirs.std() > 1e-3  # else the comparison says nothing
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    return source


class TestNetwork:
    @pytest.mark.parametrize("name", UPSAMPLERS)
    @pytest.mark.parametrize("size", [(64, 64), (96, 32)])
    def test_shape(self, name, size):
        model = SegNet(name, classes=3, width=0.125)
        assert model(torch.randn(2, 3, *size)).shape == (2, 3, *size)

    @pytest.mark.parametrize("name", UPSAMPLERS)
    def test_channels_last_gives_the_same(self, name):
        torch.manual_seed(0)
        model = SegNet(name, width=0.125).double().eval()
        x = torch.randn(2, 3, 32, 64, dtype=torch.float64)
        wanted = model(x)
        model = model.to(memory_format=torch.channels_last)
        got = model(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("name", UPSAMPLERS)
    def test_every_parameter_learns(self, name):
        torch.manual_seed(0)
        model = SegNet(name, width=0.125)
        model(torch.randn(2, 3, 32, 32)).square().sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key

    @pytest.mark.parametrize("size", [(33, 64), (64, 48), (16, 16), (0, 32)])
    def test_sizes_that_do_not_fit(self, size):
        model = SegNet("nearest", width=0.125)
        line = error_of(model, torch.zeros(1, 3, *size))
        assert line == f"SegNet: the image is {size[0]}x{size[1]}; both sides must be divisible by 32"

    @pytest.mark.parametrize("width", [0.0, -1.0, 5.0, float("nan"), float("inf")])
    def test_width(self, width):
        assert "must be above 0 and at most 4" in error_of(lambda: SegNet("nearest", width=width))

    def test_the_figures_layer_is_there(self):
        model = SegNet("fade", width=0.125)
        assert model.get_submodule(model.figure_layer) is model.decoder[3].upsample

    def test_operators_differ_in_the_operator_alone(self):
        states = {}
        for name in UPSAMPLERS:
            torch.manual_seed(3)
            whole = SegNet(name, width=0.125).state_dict()
            states[name] = {key: tensor for key, tensor in whole.items() if ".upsample." not in key}
        first = states.pop("nearest")
        assert first["encoder.0.0.weight"].std() > 0
        assert first["head.weight"].std() > 0
        for name, other in states.items():
            assert other.keys() == first.keys(), name
            for key in first:
                assert torch.equal(other[key], first[key]), (name, key)

    def test_other_seeds_give_other_weights(self):
        weights = []
        for seed in (3, 4):
            torch.manual_seed(seed)
            weights.append(SegNet("nearest", width=0.125).head.weight)
        assert not torch.equal(*weights)

    def test_unknown_names(self):
        assert error_of(build_network, "segnett").startswith("no network 'segnett'. Nearest: 'segnet'")
        assert "no upsampler 'caraffe'" in error_of(build_network, "segnet", "caraffe")
        assert "segnet" in NETWORKS


class TestParameters:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_operators(self, name):
        with torch.device("meta"):
            model = SegNet(name)
        operators = [module for module in model.modules() if isinstance(module, Upsampler)]
        assert len(operators) == 5
        assert sum(p.numel() for operator in operators for p in operator.parameters()) == PUBLISHED[name]
        assert operator_cost(name, "segnet").parameters == PUBLISHED[name]

    def test_encoder_is_vgg16_bn(self, net):
        wanted, before = 0, 3
        for channels in CHANNELS:
            wanted += 9 * before * channels + channels + 2 * channels
            before = channels
        assert wanted == 14_723_136
        assert sum(p.numel() for p in net.encoder.parameters()) == wanted


class TestWeights:
    def test_safetensors_float16(self, net, state, safetensors_file):
        assert check_loaded(net, state, safetensors_file) == "vgg16_bn.safetensors"
        assert all(p.dtype == torch.float32 for p in net.parameters())

    def test_pth(self, net, state, pth_file):
        assert check_loaded(net, state, str(pth_file)) == pth_file.name
        assert net.encoder[0][1].num_batches_tracked == 7

    def test_the_decoder_is_left_alone(self, net, safetensors_file):
        before = {key: tensor.clone() for key, tensor in net.state_dict().items() if not key.startswith("encoder")}
        net.load_encoder(safetensors_file)
        after = net.state_dict()
        assert all(torch.equal(after[key], tensor) for key, tensor in before.items())

    def test_the_real_file(self, net, shared):
        file = shared / "weights" / "vgg16_bn_features_from_vgg16_fp16.safetensors"
        assert net.load_encoder(file) == file.name
        with torch.no_grad():
            features = own_features(net, torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        for feature in features:
            assert feature.isfinite().all()
            assert 0.01 < feature.std() < 100

    def test_another_width(self, safetensors_file):
        line = error_of(SegNet("nearest", width=0.5).load_encoder, safetensors_file)
        assert "features.0.weight is (64, 3, 3, 3), this network (width 0.5) needs (32, 3, 3, 3)" in line
        assert line.endswith("The weights are for width=1")

    def test_another_network(self, net, tmp_path):
        torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(10)}, tmp_path / "resnet.pth")
        line = error_of(net.load_encoder, tmp_path / "resnet.pth")
        assert line.startswith("resnet.pth is not a VGG16-BN: it has no 'features.0.bias' (78 of 91 missing). Give")

    def test_vgg16_without_norms(self, net, state, tmp_path):
        plain = {key: tensor[:1] for key, tensor in state.items() if "running" not in key}
        save_file(plain, tmp_path / "vgg16.safetensors")
        assert "it has no 'features.1.running_mean' (26 of 91 missing)" in error_of(
            net.load_encoder, tmp_path / "vgg16.safetensors"
        )

    def test_not_finite(self, net, state, tmp_path):
        bad = {**state, "features.11.running_var": torch.full((128,), torch.nan)}
        save_file(bad, tmp_path / "bad.safetensors")
        before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
        line = error_of(net.load_encoder, tmp_path / "bad.safetensors")
        assert "bad.safetensors is damaged: 1.4.running_var holds values that are not finite" in line
        assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())

    @pytest.mark.parametrize("name", ["none.pth", "none.safetensors", "."])
    def test_no_such_file(self, net, tmp_path, name):
        assert error_of(net.load_encoder, tmp_path / name).startswith(f"no weights file {tmp_path / name}. Give a")

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    @pytest.mark.parametrize("kept", [0, 1, 100, 100_000, -1000])
    def test_truncated(self, net, safetensors_file, pth_file, tmp_path, suffix, kept):
        whole = safetensors_file if suffix == ".safetensors" else pth_file
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(whole.read_bytes()[:kept])
        line = error_of(net.load_encoder, path)
        assert line.startswith(f"{path} ")
        assert "damaged" in line
        assert line.endswith("Get it again")

    def test_damaged_in_the_middle(self, net, tmp_path):
        path = tmp_path / "bad.pth"
        for zipped in (True, False):
            torch.save({"features.0.bias": torch.zeros(10)}, path, _use_new_zipfile_serialization=zipped)
            whole = path.read_bytes()
            for start in range(0, len(whole), 29):
                path.write_bytes(whole[:start] + b"\xff\x01" + whole[start + 2 :])
                error_of(net.load_encoder, path)  # damaged, or not a VGG16-BN: never another exception

    def test_code_in_a_pickle_is_not_run(self, net, tmp_path):
        class Bait:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "executed"),)

        torch.save({"features.0.weight": Bait()}, tmp_path / "bait.pth")
        (tmp_path / "bare.pth").write_bytes(pickle.dumps(Bait(), protocol=2))
        for name in ("bait.pth", "bare.pth"):
            assert "damaged" in error_of(net.load_encoder, tmp_path / name)
        assert not (tmp_path / "executed").exists()
        pickle.loads((tmp_path / "bare.pth").read_bytes())
        assert (tmp_path / "executed").exists()  # the bait would have worked

    def test_nobody_is_told_to_run_the_code(self, net, tmp_path):
        torch.save({"hyperparameters": os.system}, tmp_path / "bait.pth")
        assert "set to `False`" not in error_of(net.load_encoder, tmp_path / "bait.pth")

    @pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"features.0.weight": torch.zeros(2)}}, torch.zeros(3)])
    def test_no_state_dict(self, net, tmp_path, content):
        torch.save(content, tmp_path / "model.pth")
        assert "holds no plain state dict of tensors" in error_of(net.load_encoder, tmp_path / "model.pth")


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()


@pytest.fixture
def server(pth_file, tmp_path, monkeypatch):
    """Serves the weights on this machine alone; torch.hub keeps its files in ``tmp_path``."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # closing it waits for its threads

    with Server(("127.0.0.1", 0), partial(Handler, directory=pth_file.parent)) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        server.url = f"http://127.0.0.1:{server.server_port}"
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
class TestImageNet:
    @pytest.fixture(autouse=True)
    def torch_hubs_sockets(self):
        """torch.hub leaves its connections to the garbage collector: collect them where their warning is ignored."""
        yield
        gc.collect()

    def test_downloaded_once(self, net, state, pth_file, server, monkeypatch):
        monkeypatch.setattr(segnet, "IMAGENET_URL", f"{server.url}/{pth_file.name}")
        for _ in range(2):
            assert check_loaded(net, state, "imagenet") == "torchvision vgg16_bn (ImageNet)"
        assert server.asked == [f"/{pth_file.name}"]

    def test_wrong_checksum(self, net, pth_file, server, monkeypatch, tmp_path):
        (pth_file.parent / "vgg16_bn-00000000.pth").write_bytes(b"not these weights")
        monkeypatch.setattr(segnet, "IMAGENET_URL", f"{server.url}/vgg16_bn-00000000.pth")
        line = error_of(net.load_encoder, "imagenet")
        assert server.url in line
        assert "invalid hash value" in line
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def test_not_found(self, net, server, monkeypatch):
        monkeypatch.setattr(segnet, "IMAGENET_URL", f"{server.url}/gone-00000000.pth")
        line = error_of(net.load_encoder, "imagenet")
        assert "404" in line
        assert "weights=FILE" in line

    def test_no_network(self, net, monkeypatch, tmp_path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(segnet, "IMAGENET_URL", f"http://127.0.0.1:{port}/vgg16_bn-00000000.pth")
        line = error_of(net.load_encoder, "imagenet")
        assert line.startswith(f"cannot download http://127.0.0.1:{port}/")
        assert "weights=FILE" in line
        assert "weights='none'" in line

    @pytest.mark.parametrize("content", [b"", b"half"])
    def test_damaged_cache(self, net, tmp_path, monkeypatch, content):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        cached = tmp_path / "hub" / "checkpoints" / "vgg16_bn-00000000.pth"
        cached.parent.mkdir(parents=True)
        cached.write_bytes(content)
        monkeypatch.setattr(segnet, "IMAGENET_URL", "http://127.0.0.1:9/vgg16_bn-00000000.pth")
        assert str(cached) in error_of(net.load_encoder, "imagenet")
