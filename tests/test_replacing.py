"""Replacing the upsampling of a model that exists: what fits, what is left and why, and that all else stays."""

import copy
import inspect
import io
import json
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack

import fadeviz
from fadeviz import FadevizError, Recorder, replace_upsamplers
from fadeviz.recording.state import state_changes, state_of
from fadeviz.replacement import UpsamplerChain
from fadeviz.upsamplers import CARAFE, UPSAMPLERS, Skip, Upsampler, build_upsampler

IMAGES = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def convs(before, after):
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """Two stages whose upsampling is a module or a call; transposed convolutions halve the channels."""

    def __init__(self, kind="upsample"):
        super().__init__()
        self.kind = kind
        self.enc1, self.enc2, self.enc3 = convs(3, 8), convs(8, 16), convs(16, 32)
        halves = kind in ("transposed", "sized")
        if kind == "upsample":
            self.up2, self.up1 = nn.Upsample(scale_factor=2, mode="bilinear"), nn.Upsample(scale_factor=2.0)
        elif kind == "transposed":
            self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 4, 2, 1)
        elif kind == "sized":
            self.up2, self.up1 = (nn.ConvTranspose2d(c, c // 2, 3, 2, 1) for c in (32, 16))
        self.dec2, self.dec1 = convs(32 if halves else 48, 16), convs(16 if halves else 24, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def up(self, name, x, skip):
        if self.kind == "call":
            return F.interpolate(x, size=skip.shape[-2:], mode="bilinear")
        if self.kind == "sized":
            return getattr(self, name)(x, output_size=skip.shape[-2:])
        return getattr(self, name)(x)

    def forward(self, x):
        fine = self.enc1(x)
        middle = self.enc2(F.max_pool2d(fine, 2))
        x = self.enc3(F.max_pool2d(middle, 2))
        x = self.dec2(torch.cat([middle, self.up("up2", x, middle)], 1))
        return self.head(self.dec1(torch.cat([fine, self.up("up1", x, fine)], 1)))


class Head(nn.Module):
    """Calls of factor 1, 2, 4 and 8 in a loop, as in SegFormer's head."""

    def __init__(self):
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(4))
        self.fuse = nn.Conv2d(16, 2, 1)

    def forward(self, maps):
        maps = [project(x) for project, x in zip(self.project, maps, strict=True)]
        return self.fuse(torch.cat([F.interpolate(x, size=maps[0].shape[-2:], mode="bilinear") for x in maps], 1))


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = Head()

    def forward(self, x):
        logits = self.head([F.avg_pool2d(x, s) for s in (1, 2, 4, 8)])
        return F.interpolate(logits, scale_factor=4)


class Block(nn.Module):
    """ESPCN's and SRGAN's block, whose convolution and shuffle are attributes."""

    def __init__(self, channels=8, between=None, norm=False):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 3, padding=1)
        self.between = between or nn.Identity()
        self.shuffle = nn.PixelShuffle(2)
        self.norm = nn.BatchNorm2d(4 * channels) if norm else None
        self.act = nn.PReLU()

    def forward(self, x):
        x = self.conv(x)
        return self.act(self.shuffle(self.between(x if self.norm is None else self.norm(x))))


class Shared(nn.Module):
    """One nn.Upsample for two stages."""

    def __init__(self, *channels):
        super().__init__()
        self.up = nn.Upsample(scale_factor=2)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip((3, *channels), channels, strict=False))

    def forward(self, x):
        for conv in self.convs:
            x = self.up(conv(x))
        return x


def rows(report):
    return {row.layer: row for row in report.replaced}


def reasons(report):
    return {row.layer: row.reason for row in report.left}


class TestModules:
    def test_upsample(self):
        model = UNet().eval()
        before = copy.deepcopy(model.state_dict())
        random = torch.get_rng_state()
        report = replace_upsamplers(model, "carafe", IMAGES)
        assert torch.equal(torch.get_rng_state(), random)
        assert isinstance(model.up1, CARAFE)
        assert isinstance(model.up2, CARAFE)
        assert [(row.layer, row.was, row.factor, row.in_channels, row.out_channels) for row in report.replaced] == [
            ("up2", "Upsample", 2, 32, 32),
            ("up1", "Upsample", 2, 16, 16),
        ]
        assert report.left == ()
        assert rows(report)["up1"].parameters == sum(p.numel() for p in CARAFE(16).parameters())
        after = model.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before.items())
        assert {key.split(".")[0] for key in set(after) - set(before)} == {"up1", "up2"}
        assert model(IMAGES).shape == (2, 2, 16, 24)
        assert model(torch.rand(1, 3, 36, 20)).shape == (1, 2, 36, 20)
        assert "kernels" in dict(model.up1.named_children())
        assert not _get_current_function_mode_stack()

    @pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
    def test_the_same_interpolation_gives_the_same(self, mode):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=2, mode=mode))
        before = model(IMAGES)
        replace_upsamplers(model, mode, IMAGES)
        assert isinstance(model[1], UPSAMPLERS[mode].build)
        assert torch.equal(model(IMAGES), before)

    def test_transposed_convolutions_change_the_channels(self):
        model = UNet("transposed")
        report = replace_upsamplers(model, "carafe")  # their channels are known without images
        assert rows(report)["up2"].notes == ("1x1 convolution after it",)
        assert rows(report)["up2"].removed == 2 * 2 * 32 * 16 + 16
        assert model.up2.in_channels == 32
        assert model.up2.project.weight.shape == (16, 32, 1, 1)
        assert model(IMAGES).shape == (2, 2, 16, 24)
        x = torch.rand(1, 32, 4, 6)
        by_hand = model.up2.project(CARAFE.forward(model.up2, x))
        assert torch.equal(model.up2(input=x), by_hand)

    def test_pixel_shuffle_makes_the_channels_itself(self):
        model = UNet("transposed")
        report = replace_upsamplers(model, "pixel_shuffle:icnr=true")
        assert rows(report)["up2"].notes == ()
        assert (model.up2.out_channels, model.up2.icnr) == (16, True)

    def test_transposed_convolutions_that_are_called_with_an_output_size(self):
        model = UNet("sized")
        report = replace_upsamplers(copy.deepcopy(model), "carafe", IMAGES)
        assert {row.layer for row in report.replaced} == {"up1", "up2"}
        with pytest.raises(FadevizError, match=r"'up2' \(ConvTranspose2d\) turns h pixels into 2h-1, not 2h"):
            replace_upsamplers(model, "carafe")
        replace_upsamplers(model, "carafe", IMAGES)
        with pytest.raises(
            FadevizError, match="'up2' multiplies the sides by 2: it turns 2x3 into 4x6, but the model asks"
        ):
            model(torch.rand(1, 3, 20, 24)[:, :, :10, :14])

    @pytest.mark.parametrize(
        ("kernel_size", "stride", "padding", "output_padding"),
        [(2, 2, 0, 0), (3, 2, 1, 1), (4, 2, 1, 0), (5, 2, 2, 1), (8, 4, 2, 0), ((4, 2), 2, (1, 0), 0)],
    )
    def test_transposed_convolutions_that_fit(self, kernel_size, stride, padding, output_padding):
        model = nn.Sequential(nn.ConvTranspose2d(3, 4, kernel_size, stride, padding, output_padding))
        shape = model(IMAGES).shape
        (row,) = replace_upsamplers(model, "bilinear").replaced
        assert (row.factor, row.in_channels, row.out_channels) == (stride, 3, 4)
        assert model(IMAGES).shape == shape

    def test_a_decoder_of_transposed_convolutions(self):
        """DCGAN: the first layer, from 1x1 to 4x4, has stride 1."""

        def up(before, after):
            return [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(True)]

        start = [nn.ConvTranspose2d(8, 32, 4, 1, 0, bias=False), nn.BatchNorm2d(32), nn.ReLU(True)]
        model = nn.Sequential(*start, *up(32, 16), *up(16, 8), nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False), nn.Tanh())
        report = replace_upsamplers(model, "dysample", torch.rand(2, 8, 1, 1))
        assert list(rows(report)) == ["3", "6", "9"]
        assert reasons(report) == {"0": "has stride 1"}
        assert model[3].project.bias is None
        assert model(torch.rand(2, 8, 1, 1)).shape == (2, 3, 32, 32)

    def test_a_factor_of_four_is_a_chain(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=4))
        (row,) = replace_upsamplers(model, "carafe", IMAGES).replaced
        assert row.factor == 4
        assert isinstance(model[1], UpsamplerChain)
        assert [name for name, _ in model[1].named_children()] == ["x2", "x4"]
        x = torch.rand(1, 4, 5, 6)
        assert torch.equal(model[1](x), model[1].x4(model[1].x2(x)))
        one = CARAFE(4)
        assert model[1].multiply_adds(5, 6) == one.multiply_adds(5, 6) + one.multiply_adds(10, 12)

    def test_one_module_in_two_places(self):
        model = Shared(4, 4)
        replace_upsamplers(model, "carafe", IMAGES)
        assert model(IMAGES).shape == (2, 4, 64, 96)
        with pytest.raises(FadevizError, match="is used with 4, 8 channels in one pass"):
            replace_upsamplers(Shared(4, 8), "carafe", IMAGES)
        twice = nn.ModuleDict({"a": nn.ConvTranspose2d(3, 3, 2, 2)})
        twice["b"] = twice["a"]
        replace_upsamplers(twice, "nearest", layers="b")
        assert twice["a"] is twice["b"]

    @pytest.mark.parametrize(
        ("module", "reason"),
        [
            (nn.Upsample(scale_factor=3), "has factor 3; a power of two"),
            (nn.Upsample(scale_factor=2.2), "has factor 2.2; a power of two"),
            (nn.Upsample(scale_factor=0.5), "has factor 0.5; a power of two"),
            (nn.Upsample(scale_factor=1), "keeps the size"),
            (nn.Upsample(scale_factor=(2, 4)), r"has scale_factor \(2.0, 4.0\); one factor"),
            (nn.Upsample(size=(16, 24)), "keeps the size"),
            (nn.Upsample(size=(8, 24)), "downsamples, from 16x24 to 8x24"),
            (nn.Upsample(size=(20, 30)), "goes from 16x24 to 20x30, which is no whole factor"),
            (nn.Upsample(size=(32, 96)), "multiplies rows by 2 and columns by 4"),
            (nn.Upsample(scale_factor=2, mode="trilinear"), "upsamples volumes"),
            (nn.ConvTranspose2d(3, 3, 3, 2, 1), "goes from 16x24 to 31x47"),
            (nn.ConvTranspose2d(3, 3, 5, 2), r"turns h pixels into 2h\+3, not 2h"),
            (nn.ConvTranspose2d(3, 3, 2, 2, groups=3), "has groups 3"),
            (nn.ConvTranspose2d(3, 3, 3, 2, 2, 1, dilation=2), r"has dilation \(2, 2\)"),
            (nn.ConvTranspose2d(3, 3, 2, (2, 1)), "one factor for both sides"),
            (nn.ConvTranspose2d(3, 3, 3, 3), "has factor 3"),
            (nn.utils.parametrizations.spectral_norm(nn.ConvTranspose2d(3, 3, 2, 2)), "has a parametrization"),
            (nn.PixelShuffle(2), "does not come from a Conv2d"),
        ],
    )
    def test_what_does_not_fit(self, module, reason):
        model = nn.Sequential(nn.Conv2d(3, 12, 1) if isinstance(module, nn.PixelShuffle) else nn.Identity(), module)
        if isinstance(module, nn.PixelShuffle):
            model.insert(1, nn.BatchNorm2d(12))
        whole = nn.Sequential(nn.ConvTranspose2d(3, 3, 2, 2), nn.AvgPool2d(2), model)
        if getattr(module, "mode", "") == "trilinear":
            with pytest.raises(FadevizError, match=reason):
                replace_upsamplers(nn.Sequential(module), "carafe", torch.rand(1, 3, 4, 4, 4))
            return
        report = replace_upsamplers(whole, "bilinear", IMAGES)
        assert [row.layer for row in report.replaced] == ["0"]
        (left,) = report.left
        assert left.was == type(module).__name__
        with pytest.raises(FadevizError, match=reason) as error:
            replace_upsamplers(model, "bilinear", IMAGES)
        assert "nothing was replaced in Sequential" in str(error.value)
        assert "\n" not in str(error.value)

    def test_other_axes_and_values(self):
        with pytest.raises(FadevizError, match="has an input of 3 axes"):
            replace_upsamplers(nn.Sequential(nn.Upsample(scale_factor=2)), "carafe", torch.rand(1, 3, 8))
        with pytest.raises(FadevizError, match="upsamples sequences"):
            replace_upsamplers(nn.Sequential(nn.ConvTranspose1d(3, 3, 2, 2)), "carafe", torch.rand(1, 3, 8))
        masks = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
        with pytest.raises(FadevizError, match="has whole numbers as input"):
            replace_upsamplers(nn.Sequential(nn.Upsample(scale_factor=2)), "carafe", masks)

    def test_hooks_are_not_lost(self):
        model = UNet("transposed")
        model.up2.register_forward_hook(lambda *_: None)
        assert reasons(replace_upsamplers(model, "carafe")) == {
            "up2": "has hooks, which would be lost. Remove them first"
        }
        with pytest.raises(FadevizError, match="'up2' cannot be replaced: it has hooks"):
            replace_upsamplers(UNetWithHook(), "carafe", layers="up1,up2")

    def test_align_corners_is_reported(self):
        model = nn.Sequential(nn.UpsamplingBilinear2d(scale_factor=2))
        (row,) = replace_upsamplers(model, "bilinear", IMAGES).replaced
        assert (row.was, row.notes) == ("UpsamplingBilinear2d", ("align_corners=True is not kept",))

    def test_a_size_stays_the_size(self):
        model = nn.Sequential(nn.Upsample(size=(32, 48)))
        replace_upsamplers(model, "carafe", IMAGES)
        assert model(IMAGES).shape == (2, 3, 32, 48)
        with pytest.raises(FadevizError, match="it turns 8x8 into 16x16, but the model asks for 32x48"):
            model(torch.rand(1, 3, 8, 8))

    def test_operators_are_left(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2))
        replace_upsamplers(model, "deconv", IMAGES, layers="1")  # which contains a transposed convolution
        report = replace_upsamplers(model, "carafe", IMAGES)
        assert list(rows(report)) == ["2"]
        assert reasons(report) == {"1": "is one of fadeviz's operators already"}


class UNetWithHook(UNet):
    def __init__(self):
        super().__init__("transposed")
        self.up2.register_forward_hook(lambda *_: None)


class TestPixelShuffle:
    @pytest.mark.parametrize("images", [None, IMAGES], ids=["alone", "with images"])
    @pytest.mark.parametrize("factor", [2, 4])
    def test_in_a_sequence(self, images, factor):
        """ESPCN: the convolution becomes the operator, the shuffle nothing, and an activation between stays."""
        model = nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3 * factor**2, 5, padding=2), nn.Tanh(), nn.PixelShuffle(factor)
        )
        (row,) = replace_upsamplers(model, "carafe", images).replaced
        assert (row.layer, row.was, row.factor) == ("1", "Conv2d, PixelShuffle", factor)
        assert (row.in_channels, row.out_channels) == (8, 3)
        assert isinstance(model[3], nn.Identity)
        y = model(IMAGES)
        assert y.shape == (2, 3, factor * 16, factor * 24)
        assert y.abs().max() < 1

    def test_in_a_block(self):
        model = nn.Sequential(nn.Conv2d(3, 8, 1), Block(between=nn.ReLU(inplace=True)), Block())
        with pytest.raises(FadevizError, match=r"does not follow a Conv2d in an nn.Sequential. Give images="):
            replace_upsamplers(copy.deepcopy(model), "carafe")
        report = replace_upsamplers(model, "carafe", IMAGES, layers=["1.shuffle", "2.conv"])
        assert list(rows(report)) == ["1.conv", "2.conv"]
        assert model(IMAGES).shape == (2, 8, 64, 96)

    def test_a_shuffle_for_several_convolutions(self):
        class Several(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.shuffle = nn.Conv2d(3, 16, 1), nn.Conv2d(4, 12, 1), nn.PixelShuffle(2)

            def forward(self, x):
                return self.shuffle(self.b(self.shuffle(self.a(x))))

        model = Several()
        assert list(rows(replace_upsamplers(model, "carafe", IMAGES))) == ["a", "b"]
        assert model(IMAGES).shape == (2, 3, 64, 96)
        grouped = Several()
        grouped.b = nn.Conv2d(4, 12, 1, groups=2)
        with pytest.raises(FadevizError, match="'shuffle' .PixelShuffle. follows 'b', which has groups 2"):
            replace_upsamplers(grouped, "carafe", IMAGES)

    def test_what_does_not_fit(self):
        for model, reason in [
            (Block(3, norm=True), "does not come from a Conv2d"),
            (Block(3, between=nn.PReLU(12)), "does not come from a Conv2d"),
            (nn.Sequential(nn.Conv2d(3, 12, 3), nn.PixelShuffle(2)), "follows '0', which changes the size"),
            (nn.Sequential(nn.Conv2d(3, 27, 1), nn.PixelShuffle(3)), "has factor 3"),
        ]:
            with pytest.raises(FadevizError, match=reason):
                replace_upsamplers(model, "carafe", IMAGES)

    def test_a_model_that_does_not_run_afterwards_is_left_as_it_was(self):
        class Both(Block):
            def forward(self, x):
                x = self.conv(x)
                return self.shuffle(x), x[:, 31].mean()  # the convolution's other use cannot be seen

        model = Both()
        model.conv.weight.requires_grad_(False)
        images, before = torch.rand(1, 8, 4, 4), state_of(model)
        children = list(model.modules())
        message = "Both does not run with carafe, so it was left unchanged: Both fails for images=: IndexError"
        with pytest.raises(FadevizError, match=message):
            replace_upsamplers(model, "carafe", images)
        assert all(a is b for a, b in zip(model.modules(), children, strict=True))
        assert not state_changes(before, state_of(model))


class TestCalls:
    def test_of_the_model_itself(self):
        model = UNet("call").train()
        model.enc1.eval()
        before = state_of(model)
        report = replace_upsamplers(model, "carafe", IMAGES, calls=":interpolate")
        assert [(row.layer, row.was, row.in_channels) for row in report.replaced] == [
            ("interpolate_0", "interpolate", 32),
            ("interpolate_1", "interpolate", 16),
        ]
        changes = [change for change in state_changes(before, state_of(model)) if not change.endswith("is new")]
        assert changes == []
        assert model.interpolate_0.training
        assert isinstance(model, UNet)
        assert type(model).__name__ == "UNet"
        assert inspect.signature(model.forward) == inspect.signature(UNet("call").forward)
        assert model(IMAGES).shape == (2, 2, 16, 24)
        assert model(torch.rand(2, 3, 36, 20)).shape == (2, 2, 36, 20)
        with pytest.raises(
            FadevizError, match="'interpolate_0' multiplies the sides by 2: it turns 4x6 into 8x12, but"
        ):
            model(torch.rand(2, 3, 18, 24))
        assert not _get_current_function_mode_stack()

    def test_the_operator_is_what_runs(self):
        model = UNet("call").eval()
        twin = copy.deepcopy(model)
        replace_upsamplers(model, "bilinear", IMAGES, calls=":interpolate")
        assert torch.equal(model(IMAGES), twin(IMAGES))
        model.interpolate_1.register_forward_hook(lambda module, inputs, output: output * 0)
        assert not torch.equal(model(IMAGES), twin(IMAGES))

    def test_powers_of_two_are_chains(self):
        model = Pyramid()
        report = replace_upsamplers(model, "carafe", IMAGES, calls="head:interpolate")
        assert [(row.layer, row.factor) for row in report.replaced] == [
            ("head.interpolate_1", 2),
            ("head.interpolate_2", 4),
            ("head.interpolate_3", 8),
        ]
        assert reasons(report) == {"head.interpolate_0": "keeps the size (factor 1)"}
        assert not hasattr(model, "interpolate_0")  # calls of other modules stay
        assert model(IMAGES).shape == (2, 2, 64, 96)
        assert model(torch.rand(1, 3, 32, 16)).shape == (1, 2, 128, 64)
        assert [name for name, _ in model.head.interpolate_3.named_children()] == ["x2", "x4", "x8"]

    def test_every_call(self):
        model = Pyramid()
        report = replace_upsamplers(model, "carafe", IMAGES, calls="**:interpolate")
        assert next(iter(rows(report))) == "interpolate_0"
        assert model.interpolate_0.scale_factor == 4
        assert len(report.replaced) == 4
        with pytest.raises(FadevizError, match="is in a module some of whose calls are replaced already"):
            replace_upsamplers(model, "nearest", IMAGES, calls="head:interpolate")

    def test_each_forward_pass_of_a_module_begins_at_its_first_call(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.up = Up()

            def forward(self, x):
                return self.up(self.up(x))

        class Up(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 3, 1)

            def forward(self, x):
                return F.interpolate(self.conv(x), scale_factor=2)

        model = Twice()
        report = replace_upsamplers(model, "carafe", IMAGES, calls="up:interpolate")
        assert [row.layer for row in report.replaced] == ["up.interpolate_0"]
        assert model(IMAGES).shape == (2, 3, 64, 96)

    def test_a_call_of_training_alone_is_not_confused_with_another(self):
        class Auxiliary(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 1)

            def resize(self, x):
                return F.interpolate(x, scale_factor=2)

            def forward(self, x):
                x = self.conv(x)
                if self.training:
                    self.auxiliary = self.resize(x.detach())
                return self.resize(x) + 0

        model = Auxiliary()
        replace_upsamplers(model, "bilinear", IMAGES, calls=":interpolate")
        seen = []
        model.interpolate_0.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].requires_grad))
        model.train()(IMAGES)
        copy.deepcopy(model)(IMAGES)
        assert seen == [True, True]
        assert torch.equal(model.auxiliary, F.interpolate(model.conv(IMAGES), scale_factor=2))

    def test_other_calls_than_those_that_were_replaced(self):
        class Loop(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.times = nn.Conv2d(3, 3, 1), 2

            def forward(self, x):
                x = self.conv(x)
                if self.times == 0:
                    return F.interpolate(x, scale_factor=2)
                for _ in range(self.times):
                    x = F.avg_pool2d(F.interpolate(x, scale_factor=2), 2)
                return x

        model = Loop()
        assert len(replace_upsamplers(model, "carafe", IMAGES, calls=":interpolate").replaced) == 2
        model.times = 1
        assert model(IMAGES).shape == IMAGES.shape
        model.times = 3
        with pytest.raises(FadevizError, match=r"Loop calls F.interpolate more often than .* \(in forward\), and each"):
            model(IMAGES)
        model.times = 0
        with pytest.raises(FadevizError, match="Loop makes other calls of F.interpolate in training mode than for the"):
            model(IMAGES)
        assert not _get_current_function_mode_stack()

    def test_what_is_replaced_already(self):
        model = UNet("call")
        replace_upsamplers(model, "carafe", IMAGES, calls=":interpolate")
        with pytest.raises(FadevizError, match="interpolate in UNet, other than those that are replaced already"):
            replace_upsamplers(model, "dysample", IMAGES, calls="**:interpolate")
        with pytest.raises(FadevizError, match="calls has ':interpolate', whose calls are replaced already"):
            replace_upsamplers(model, "dysample", IMAGES, calls=":interpolate")

    def test_classes_that_allow_no_subclass(self):
        class Base(nn.Module):
            def __init_subclass__(cls, *, tag):
                super().__init_subclass__()

        class Tagged(Base, tag="a"):
            def forward(self, x):
                return F.interpolate(x, scale_factor=2)

        with pytest.raises(FadevizError, match="is in a Tagged, a class of which no subclass can be made"):
            replace_upsamplers(Tagged(), "carafe", IMAGES, calls=":interpolate")
        with pytest.raises(FadevizError, match="is in a torch.fx.GraphModule, whose copies would lose it"):
            replace_upsamplers(torch.fx.symbolic_trace(UNet("call")), "carafe", IMAGES, calls=":interpolate")

    @pytest.mark.parametrize(
        ("call", "reason"),
        [
            (lambda x: F.interpolate(x, scale_factor=(2, 4)), "multiplies rows by 2 and columns by 4"),
            (lambda x: F.interpolate(x, scale_factor=2.04), "has scale_factor 2.04; a power of two"),
            (lambda x: F.interpolate(x, scale_factor=3), "has factor 3; a power of two"),
            (lambda x: F.interpolate(x, scale_factor=0.5), "downsamples, from 16x24 to 8x12"),
            (lambda x: F.interpolate(x, (19, 29)), "goes from 16x24 to 19x29"),
            (lambda x: F.interpolate(x.mean((2, 3), keepdim=True), size=16), "spreads one pixel over a map"),
            (lambda x: F.interpolate(x.flatten(2), scale_factor=2), "has an input of 3 axes"),
            (lambda x: F.interpolate(x[:, None], scale_factor=2), "has an input of 5 axes"),
        ],
    )
    def test_what_does_not_fit(self, call, reason):
        class Model(nn.Module):
            def forward(self, x):
                return call(x)

        with pytest.raises(
            FadevizError, match=rf"nothing was replaced in Model: 'interpolate_0' .interpolate. {reason}"
        ):
            replace_upsamplers(Model(), "carafe", IMAGES, calls=":interpolate")

    def test_an_interrupted_pass_leaves_nothing_behind(self):
        model = UNet("call")
        replace_upsamplers(model, "carafe", IMAGES, calls=":interpolate")

        def interrupt(*_):
            raise KeyboardInterrupt

        handle = model.head.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(IMAGES)
        assert not _get_current_function_mode_stack()
        handle.remove()
        assert model(IMAGES).shape == (2, 2, 16, 24)

    def test_an_error_leaves_the_class(self):
        class Picky(UNet):
            def forward(self, x):
                y = super().forward(x)
                assert not any("interpolate" in name for name, _ in self.named_modules())
                return y

        model = Picky("call")
        before = state_of(model)
        with pytest.raises(FadevizError, match="Picky does not run with carafe, so it was left unchanged"):
            replace_upsamplers(model, "carafe", IMAGES, calls=":interpolate", guides=None)
        assert type(model) is Picky
        assert not state_changes(before, state_of(model))

    @pytest.mark.parametrize(
        ("calls", "message"),
        [
            ("enc1:interpolate", "calls has 'enc1:interpolate', but there is no such call in UNet"),
            ("enc*:interpolate", "matches no call of interpolate in UNet"),
            ("enc1", "calls has 'enc1': a name such as 'decoder.up1:interpolate' is needed"),
            (":cat", "calls has ':cat', but only calls of interpolate can be replaced"),
            ("encoder:interpolate", "no layer in UNet 'encoder'"),
        ],
    )
    def test_calls_that_are_not_there(self, calls, message):
        with pytest.raises(FadevizError, match=message):
            replace_upsamplers(UNet("call"), "carafe", IMAGES, calls=calls)

    def test_of_a_module_that_upsamples_by_itself(self):
        with pytest.raises(
            FadevizError, match=r"'up1' is a module that upsamples by itself \(Upsample\). Name it in layers"
        ):
            replace_upsamplers(UNet(), "carafe", IMAGES, calls="up1:interpolate")
        with pytest.raises(FadevizError, match="matches no call of interpolate in UNet"):
            replace_upsamplers(UNet(), "carafe", IMAGES, calls="**:interpolate")

    def test_the_name_is_taken(self):
        model = UNet("call")
        model.interpolate_0 = None
        report = replace_upsamplers(model, "carafe", IMAGES, calls=":interpolate")
        assert reasons(report) == {"interpolate_0": "needs the name interpolate_0, which its module has already"}


class TestGuides:
    GUIDES = {"up2": "enc2", "up1": "enc1"}  # noqa: RUF012

    @pytest.mark.parametrize("operator", [name for name, row in UPSAMPLERS.items() if row.needs == "feature"])
    def test_every_operator_that_reads_one(self, operator):
        model = UNet("transposed")
        report = replace_upsamplers(model, operator, IMAGES, guides=self.GUIDES)
        assert rows(report)["up1"].guide == "enc1"
        assert rows(report)["up1"].notes == ("1x1 convolution before it",)
        seen = {}
        for name in ("enc3", "enc2", "up2"):
            keep = partial(seen.__setitem__, name)
            getattr(model, name).register_forward_hook(lambda module, inputs, output, keep=keep: keep(output))
        model.eval()(IMAGES)
        by_hand = model.up2.forward(model.up2.project(seen["enc3"]), Skip(seen["enc2"]))
        assert torch.equal(seen["up2"], by_hand)

    @pytest.mark.parametrize(("operator", "convolves"), [("fade", True), ("sapa_b", False), ("fade:gate=off", False)])
    def test_of_another_number_of_channels(self, operator, convolves):
        """As in most U-Nets, where the encoder's map has fewer channels than the decoder's."""
        model, seen = UNet(), {}
        report = replace_upsamplers(model, operator, IMAGES, guides={"up2": "enc2", "up1": "enc1"})
        notes = ("1x1 convolution of the guide's 16 channels",) if convolves else ()
        assert rows(report)["up2"].notes == notes
        assert hasattr(model.up2, "project_guide") == convolves
        for name in ("enc3", "enc2", "up2"):
            keep = partial(seen.__setitem__, name)
            getattr(model, name).register_forward_hook(lambda module, inputs, output, keep=keep: keep(output))
        model.eval()(IMAGES)
        guide = model.up2.project_guide(seen["enc2"]) if convolves else seen["enc2"]
        assert torch.equal(seen["up2"], model.up2.forward(seen["enc3"], Skip(guide)))

    def test_gradients_reach_operator_and_guide(self):
        model = UNet()
        replace_upsamplers(model, "sapa_b", IMAGES, guides={"up2": "enc2", "up1": "enc1"})
        model(IMAGES).square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert model.up1.query.weight.grad.abs().sum() > 0

    def test_in_a_chain_they_are_averaged(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.up = nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=4)

            def forward(self, x):
                x = self.first(x)
                return self.up(F.avg_pool2d(x, 4))

        model = Model()
        replace_upsamplers(model, "sapa_b", IMAGES, guides={"up": "first"})
        feature = model.first(IMAGES)
        x = F.avg_pool2d(feature, 4)
        by_hand = model.up.x4(model.up.x2(x, Skip(F.avg_pool2d(feature, 2))), Skip(feature))
        assert torch.equal(model(IMAGES), by_hand)

    def test_of_calls_and_by_calls(self):
        """The activation's own call of relu returns what the block returns."""
        model, twin = UNet("call").eval(), UNet("call").eval()
        twin.load_state_dict(model.state_dict())
        model.enc1[2].inplace = twin.enc1[2].inplace = False
        guides = {"interpolate_0": "enc2", "interpolate_1": "enc1.2:relu"}
        report = replace_upsamplers(model, "sapa_b", IMAGES, calls=":interpolate", guides=guides)
        assert {name: row.guide for name, row in rows(report).items()} == guides
        modules = {**guides, "interpolate_1": "enc1"}
        replace_upsamplers(twin, "sapa_b", IMAGES, calls=":interpolate", guides=modules)
        expected = twin(IMAGES)
        for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(one(IMAGES), expected)

    def test_no_output_of_an_earlier_pass_is_read(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder, self.up, self.skips = nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=2), False

            def forward(self, x):
                x = x[:, :1].expand(-1, 4, -1, -1) if self.skips else self.encoder(x)
                return self.up(F.max_pool2d(x, 2))

        model = Model()
        replace_upsamplers(model, "sapa_i", IMAGES, guides={"up": "encoder"})
        model(IMAGES)
        model.skips = True
        with pytest.raises(
            FadevizError, match="'up' reads the output of 'encoder', its guide, which did not run before"
        ):
            model(IMAGES)

    def test_activation_checkpointing_reads_them_again(self):
        class Model(UNet):
            def forward(self, x):
                fine = self.enc1(x)
                low = F.max_pool2d(fine, 2).repeat(1, 2, 1, 1)
                return torch.utils.checkpoint.checkpoint(self.up1, low, use_reentrant=False)

        model = Model("transposed")
        replace_upsamplers(model, "fade", IMAGES, guides={"up1": "enc1"}, layers="up1")
        model(IMAGES).square().mean().backward()
        assert model.up1.gate.conv.weight.grad is not None

    @pytest.mark.parametrize(
        ("guides", "message"),
        [
            ({"up2": "enc2"}, "'up1' has none. Give guides={'up1': ...}, e.g. 'enc1'"),
            ({"up2": "enc1", "up1": "enc1"}, "the guide 'enc1' of 'up2' is 16x24 (2 images) after its latest call "
             "before it; 8x12 (2 images), the size of the output, is needed. Choose another layer, e.g. 'enc2'"),
            ({"up2": "dec1", "up1": "enc1"}, "the guide 'dec1' does not run before 'up2'"),
            ({"up2": "enc4", "up1": "enc1"}, "no layer in UNet 'enc4'"),
            ({"up3": "enc2"}, "no upsampler to guide 'up3'. Nearest: 'up2', 'up1'"),
            ({"up2": "enc*", "up1": "enc1"}, "guides has 'enc*': the name of one layer is needed"),
        ],
    )  # fmt: skip
    def test_bad_ones(self, guides, message):
        with pytest.raises(FadevizError) as error:
            replace_upsamplers(UNet("transposed"), "fade", IMAGES, guides=guides)
        assert message in str(error.value)
        assert "\n" not in str(error.value)

    def test_of_what_is_not_replaced(self):
        model = UNetWithHook()
        with pytest.raises(FadevizError, match="'up2' cannot be replaced: it has hooks"):
            replace_upsamplers(model, "fade", IMAGES, guides=self.GUIDES)
        with pytest.raises(FadevizError, match="carafe does not read any. Leave guides=... out"):
            replace_upsamplers(UNet(), "carafe", IMAGES, guides=self.GUIDES)
        with pytest.raises(FadevizError, match="guides=... needs images=..."):
            replace_upsamplers(UNet(), "fade", guides=self.GUIDES)

    def test_a_guide_that_is_no_map(self):
        class Tokens(nn.Module):
            def forward(self, x):
                return x.flatten(2), 1

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.tokens, self.up = Tokens(), nn.Upsample(scale_factor=2)

            def forward(self, x):
                return self.tokens(x), self.up(x)

        with pytest.raises(
            FadevizError, match=r"the guide 'tokens' of 'up' returns tuple of 0 \(2, 3, 384\), 1 int; a map"
        ):
            replace_upsamplers(Model(), "sapa_b", IMAGES, guides={"up": "tokens"})


class TestModel:
    def replaced(self, kind="transposed", operator="fade", **options):
        model = UNet(kind)
        guides = {"up2": "enc2", "up1": "enc1"} if operator == "fade" else None
        replace_upsamplers(model, operator, IMAGES, guides=guides, **options)
        return model

    @pytest.mark.parametrize(
        ("kind", "operator", "options"),
        [("transposed", "fade", {}), ("transposed", "carafe", {}), ("call", "carafe", {"calls": ":interpolate"})],
    )
    def test_is_copied_pickled_and_saved(self, kind, operator, options):
        model = self.replaced(kind, operator, **options).eval()
        expected = model(IMAGES)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
        other = self.replaced(kind, operator, **options, seed=1).eval()
        other.load_state_dict(model.state_dict())
        for twin in (*copies, other):
            assert type(twin).__name__ == "UNet"
            assert torch.equal(twin(IMAGES), expected)
        changed = copies[0]
        for parameter in changed.parameters():
            parameter.data.zero_()
        changed(IMAGES)
        assert torch.equal(model(IMAGES), expected)

    def test_the_seed_decides(self):
        first, again, other = (self.replaced(operator="carafe", seed=seed) for seed in (0, 0, 1))
        weights = [model.up1.compressor.weight for model in (first, again, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        assert not torch.equal(first.up1.content_encoder.weight[0], first.up2.content_encoder.weight[0])

    def test_dtype_and_modes(self):
        model = UNet("transposed").double().eval()
        model.up1.train().requires_grad_(False)
        replace_upsamplers(model, "fade", IMAGES, guides={"up2": "enc2", "up1": "enc1"})
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
        assert (model.up1.training, model.up2.training) == (True, False)
        assert all(parameter.requires_grad for parameter in model.up1.parameters())
        assert model(IMAGES.double()).dtype == torch.float64
        assert model.float()(IMAGES).dtype == torch.float32
        assert model.to("meta").up1.gate.conv.weight.device.type == "meta"

    @pytest.mark.parametrize("operator", ["fade", "carafe"])
    def test_learns(self, operator):
        torch.manual_seed(0)
        model = self.replaced(operator=operator)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        masks = (IMAGES.mean(1) > 0.5).long()
        losses = []
        for _ in range(8):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(IMAGES), masks)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]

    def test_is_recorded(self, tmp_path):
        model = self.replaced()
        before = state_of(model)
        batch = IMAGES.repeat(2, 1, 1, 1), torch.zeros(4, 16, 24, dtype=torch.long)
        with Recorder(model, "up*", "0", tmp_path / "run", batch=batch, loss_fn=F.cross_entropy, kinds="all"):
            pass
        run = fadeviz.open_run(tmp_path / "run")
        assert list(run.layers) == ["up2", "up1"]
        assert {"feature", "gradient", "gate", "kernel_entropy", "kernels", "guide"} <= set(run.layers["up1"])
        assert not state_changes(before, state_of(model))

    def test_calls_are_recorded(self, tmp_path):
        model = self.replaced("call", "carafe", calls=":interpolate")
        batch = IMAGES, torch.zeros(2, 16, 24, dtype=torch.long)
        with Recorder(model, "interpolate_*", "0", tmp_path / "run", batch=batch, loss_fn=F.cross_entropy):
            pass
        run = fadeviz.open_run(tmp_path / "run")
        assert list(run.layers) == ["interpolate_0", "interpolate_1"]
        assert "kernel_entropy" in run.layers["interpolate_1"]

    def test_export(self):
        model = self.replaced("call", "bilinear", calls=":interpolate").eval()
        exported = torch.export.export(model, (IMAGES,)).module()
        torch.testing.assert_close(exported(IMAGES), model(IMAGES))

    @pytest.mark.slow  # the compiler takes seconds to import
    @pytest.mark.parametrize(("kind", "whole"), [("transposed", True), ("call", False)])
    def test_compile(self, kind, whole):
        options = {"calls": ":interpolate"} if kind == "call" else {}
        model = self.replaced(kind, "fade" if whole else "carafe", **options).eval()
        compiled = torch.compile(model, backend="eager", fullgraph=whole)
        torch.testing.assert_close(compiled(IMAGES), model(IMAGES))


class TestArguments:
    @pytest.mark.parametrize(
        ("operator", "message"),
        [
            ("caraf", "no upsampler 'caraf'. Nearest: 'carafe'"),
            ("carafe:kernels=3", "no option of carafe 'kernels'"),
            ("carafe:scale_factor=4", "'carafe:scale_factor=4' has a scale_factor, which follows from the model"),
            ("fade:skip_channels=3", "has skip_channels, which follows from the model"),
            ("pixel_shuffle:out_channels=3", "has out_channels, which follows from the model"),
            ("max_unpool", "max_unpool reads the indices of its own max pooling"),
            ("fade", "fade reads a guide, an encoder feature of the output's size, and 'up2' has none"),
            (None, "operator is None, a NoneType: a name is needed, such as 'carafe'"),
            (CARAFE(4), "operator is CARAFE.*: a name is needed"),
        ],
    )
    def test_operators(self, operator, message):
        with pytest.raises(FadevizError, match=message):
            replace_upsamplers(UNet("transposed"), operator, IMAGES)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"guides": "enc1"}, "guides is 'enc1': a dict is needed, of a layer for the name of each operator"),
            ({"guides": {1: "enc1"}}, "guides is {1: 'enc1'}: a dict is needed"),
            ({"seed": "a"}, "seed is 'a', a str: a whole number is needed"),
            ({"seed": 2**70}, "seed is 1180591620717411303424: torch takes whole numbers of up to 63 bits"),
            ({"calls": True}, "calls is True: a name such as 'decoder.up1:interpolate' is needed, or None"),
            ({"calls": ()}, r"calls is \(\): a name such as"),
            ({"model": UNet}, "the model is the class UNet: a torch.nn.Module is needed"),
            ({"images": IMAGES.numpy()}, "UNet fails for images=: .* It was called with ndarray"),
        ],
    )
    def test_of_the_wrong_type(self, arguments, message):
        with pytest.raises(FadevizError, match=message) as caught:
            replace_upsamplers(**{"model": UNet("transposed"), "operator": "carafe", "images": IMAGES} | arguments)
        assert "\n" not in str(caught.value)

    def test_in_inference_mode(self):
        model = UNet("transposed")
        with torch.inference_mode():
            replace_upsamplers(model, "carafe", IMAGES)
        model(IMAGES).sum().backward()
        assert all(parameter.grad is not None for parameter in model.up1.parameters())

    def test_layers(self):
        model = UNet("transposed")
        assert list(rows(replace_upsamplers(copy.deepcopy(model), "carafe", layers="up1"))) == ["up1"]
        twin = copy.deepcopy(model)
        assert list(rows(replace_upsamplers(twin, "carafe", layers=twin.up2))) == ["up2"]
        with pytest.raises(FadevizError, match="layer 'enc1' of UNet is a Sequential, which is not replaced"):
            replace_upsamplers(model, "carafe", layers="up1,enc1")
        with pytest.raises(FadevizError, match="no layer in UNet 'up3'. Nearest: 'up2', 'up1'"):
            replace_upsamplers(model, "carafe", layers="up3")
        with pytest.raises(FadevizError, match=r"layers='enc1.\*' matches no module of UNet that upsamples"):
            replace_upsamplers(model, "carafe", layers="enc1.*")

    def test_images(self):
        with pytest.raises(FadevizError, match="'up2' .Upsample. has channels that are not known without images"):
            replace_upsamplers(UNet(), "carafe")
        with pytest.raises(FadevizError, match="calls=... needs images=..."):
            replace_upsamplers(UNet("call"), "carafe", calls=":interpolate")
        with pytest.raises(FadevizError, match="UNet fails for images=: RuntimeError: "):
            replace_upsamplers(UNet(), "carafe", torch.rand(1, 4, 8, 8))
        model = UNet()
        replace_upsamplers(model, "carafe", {"x": IMAGES})
        assert isinstance(model.up1, CARAFE)

    def test_models(self):
        with pytest.raises(FadevizError, match=r"nothing to replace in Sequential: .* calls='\*\*:interpolate'"):
            replace_upsamplers(nn.Sequential(nn.Conv2d(3, 3, 1)), "carafe", IMAGES)
        with pytest.raises(FadevizError, match="has no shape before the first batch"):
            replace_upsamplers(nn.Sequential(nn.LazyConvTranspose2d(3, 2, 2)), "carafe")
        many = nn.Sequential(*(nn.Upsample(scale_factor=3) for _ in range(7)))
        with pytest.raises(FadevizError, match="'4' .Upsample. has factor 3; a power of two is needed; and 2 more$"):
            replace_upsamplers(many, "carafe")

    def test_the_report(self):
        model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.Upsample(scale_factor=3))
        report = replace_upsamplers(model, "nearest", IMAGES)
        assert str(report) == repr(report) == (
            "replaced  was              operator  factor  channels  parameters  before\n"
            "0         ConvTranspose2d  nearest        2    3 -> 4          16      52  1x1 convolution after it\n"
            "\n"
            "left  was       because it\n"
            "1     Upsample  has factor 3; a power of two is needed"
        )  # fmt: skip
        assert json.loads(json.dumps(report.to_dict()))["replaced"][0]["in_channels"] == 3


@pytest.mark.parametrize("operator", [name for name, row in UPSAMPLERS.items() if not row.needs])
def test_every_operator_without_a_guide(operator):
    model = UNet()
    replace_upsamplers(model, operator, IMAGES)
    assert model(IMAGES).shape == (2, 2, 16, 24)
    assert isinstance(model.up1, type(build_upsampler(operator, 16)))
    assert isinstance(model.up1, Upsampler)


@pytest.mark.slow  # transformers takes seconds to import
def test_segformers_head():
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 1, 2, 4], decoder_hidden_size=16
    )
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    images = torch.rand(1, 3, 64, 96)
    report = replace_upsamplers(copy.deepcopy(model), "carafe", images, calls="decode_head:interpolate")
    assert [(row.layer, row.factor, row.in_channels) for row in report.replaced] == [
        ("decode_head.interpolate_1", 2, 16),
        ("decode_head.interpolate_2", 4, 16),
        ("decode_head.interpolate_3", 8, 16),
    ]
    assert reasons(report) == {"decode_head.interpolate_0": "keeps the size (factor 1)"}
    guide = "segformer.stages.0.patch_embeddings.proj"
    guided = {"calls": "decode_head:interpolate", "guides": {"decode_head:interpolate": guide}}
    report = replace_upsamplers(model, "sapa_b", {"pixel_values": images}, **guided)
    assert {row.guide for row in report.replaced} == {guide}
    labels = torch.zeros(1, 64, 64, dtype=torch.long)
    model.train()(torch.rand(1, 3, 64, 64), labels=labels).loss.backward()
    assert all(p.grad is not None for p in model.decode_head.parameters())
    assert isinstance(model.decode_head.interpolate_3.x8, type(build_upsampler("sapa_b", 16)))
