"""What a training goes on from: that differences are found and told, and that observing puts everything back."""

import collections
import copy
import functools
import pickle
import random
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fadeviz import FadevizError
from fadeviz.recording.modules import modules_of_loss
from fadeviz.recording.probe import Probe
from fadeviz.recording.state import state_changes, state_of

IMAGES = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.ones(2, 6, 8, dtype=torch.long)


class Net(nn.Module):
    """One layer, and something done in its forward pass, in eval mode as in training."""

    def __init__(self, **attributes):
        super().__init__()
        self.up = nn.Conv2d(3, 2, 1)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        self.change(x)
        return self.up(x)

    def change(self, x):
        pass


def changes_of(net, loss_fn=F.cross_entropy, mode="eval", kinds=None, **batch):
    before = state_of(net, loss_fn)
    images, targets = batch.get("images", IMAGES), batch.get("targets", TARGETS)
    Probe(net, "up", kinds).observe(images, targets, loss_fn, step=0, mode=mode)
    return state_changes(before, state_of(net, loss_fn))


class Counts(Net):
    def change(self, x):
        self.calls += 1
        self.seen = x
        self.sizes.append(x.shape)
        self.sums["all"] = x.sum()


class Accumulates(Net):
    def change(self, x):
        self.total += x.detach().sum()
        self.totals[0] += 1
        self.pair[0].mul_(2)
        self.array += 1


class Draws(Net):
    def change(self, x):
        torch.rand(1, generator=self.torch_generator)
        self.numpy_generator.random()
        self.old_generator.rand()
        self.python_generator.random()


class Registers(Net):
    def change(self, x):
        if not hasattr(self, "later"):
            self.later = nn.Conv2d(3, 1, 1)
            self.register_buffer("mean", x.mean(), persistent=False)
        self.up.bias = nn.Parameter(self.up.bias.detach() + 1)
        self.up.weight.requires_grad_(False)


class Buffers(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("largest", torch.zeros(3))
        self.register_buffer("history", torch.zeros(0), persistent=False)
        self.alias = self.largest[:1]
        self.up.register_buffer("tied", self.largest)

    def change(self, x):
        self.largest.copy_(torch.maximum(self.largest, x.detach().amax((0, 2, 3))))
        assert self.up.tied is self.largest
        assert torch.equal(self.alias, self.largest[:1])  # copies share their memory as the originals do
        self.history.resize_(4).fill_(1)


class Clips(Net):
    def change(self, x):
        self.up.weight.data.mul_(0.5)
        self.up.bias.data = self.up.bias.data + 1


class Hides(Net):
    def change(self, x):
        self.hidden[0](x)


KINDS_OF_TRACES = {
    "counters": lambda: Counts(calls=0, sizes=[], sums={}),
    "a Counter": lambda: Counts(calls=0, sizes=[], sums=collections.Counter()),
    "tensors and arrays": lambda: Accumulates(
        total=torch.zeros(()), totals=[torch.zeros(2)], pair=(torch.ones(1), 0), array=np.zeros(2)
    ),
    "generators": lambda: Draws(
        torch_generator=torch.Generator(),
        numpy_generator=np.random.default_rng(0),
        old_generator=np.random.RandomState(0),
        python_generator=random.Random(0),
    ),
    "what is registered": Registers,
    "buffers": Buffers,
    "parameters": Clips,
    "hidden modules": lambda: Hides(hidden=[nn.BatchNorm2d(3)]),
}


@pytest.mark.parametrize("mode", ["eval", "batch"])
@pytest.mark.parametrize("what", KINDS_OF_TRACES)
def test_what_a_model_does_in_forward_is_undone(what, mode):
    net = KINDS_OF_TRACES[what]().train()
    before = state_of(net)
    assert changes_of(net, mode=mode) == []
    net(IMAGES)  # the same thing is found where nobody undoes it
    assert state_changes(before, state_of(net))


def test_parameters_that_a_model_writes_to_are_put_back_every_time():
    net = Clips()
    weight = net.up.weight.detach().clone()
    probe = Probe(net, "up")
    for step in range(3):
        probe.observe(IMAGES, TARGETS, F.cross_entropy, step=step)
        assert torch.equal(net.up.weight, weight)


def test_a_module_keeps_the_very_objects_it_had():
    net = Accumulates(total=torch.zeros(()), totals=[torch.zeros(2)], pair=(torch.ones(1), 0), array=np.zeros(2))
    objects = dict(vars(net))
    inside = net.totals[0]
    changes_of(net)
    assert all(vars(net)[name] is value for name, value in objects.items())
    assert net.totals[0] is inside


def test_global_generators():
    def draws(output, targets):
        assert 0 <= random.random() + np.random.rand() + float(torch.rand(1)) < 3  # noqa: NPY002
        return output.mean()

    assert changes_of(Net(), draws) == []
    before = state_of(Net())
    random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    assert state_changes(before, state_of(Net()))[-3:] == [
        "torch's generator changed",
        "Python's generator (random) changed",
        "NumPy's generator (np.random) changed",
    ]


class Running(nn.Module):
    """A loss with a running mean, as large-scale detection losses keep it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def forward(self, output, targets):
        assert not self.training
        self.mean.mul_(0.9).add_(output.detach().mean())
        return output.mean() / self.mean.clone()

    def other(self, output, targets):
        return self(output, targets)


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_losses_that_are_modules_or_refer_to_them(mode):
    loss = Running().train()

    def calls(output, targets):
        return loss(output, targets)

    class Criterion:
        def __init__(self):
            self.parts = {"running": loss}

        def __call__(self, output, targets):
            return self.parts["running"](output, targets)

        def total(self, output, targets):
            return self(output, targets)

    criterion, part = Criterion(), functools.partial(calls)
    two = lambda o, t: calls(o, t) + loss(o, t)  # noqa: E731
    for loss_fn in (loss, loss.forward, loss.other, calls, two, criterion, criterion.total, part):
        assert changes_of(Net(), loss_fn, mode) == []
        assert float(loss.mean) == 1
        assert loss.training


class Trainer:
    """What training scripts keep a loss in."""

    shared = None

    def __init__(self, loss):
        self.criterion, self.model, self.parts = loss, nn.BatchNorm2d(2), {"a": [("x", loss)]}

    @property
    def chosen(self):
        return self.parts["a"][0][1]

    def total(self, output, targets):
        return self.criterion(output, targets)

    def more(self, output, targets):
        return self.total(output, targets)


class Heir(Trainer):
    def total(self, output, targets):
        return super().total(output, targets)


class Slots:
    __slots__ = ("criterion",)

    def __init__(self, loss):
        self.criterion = loss

    def __call__(self, output, targets):
        return self.criterion(output, targets)


def named(loss):
    def default(output, targets, *, loss=loss):
        return loss(output, targets)

    return default


def called(function):
    return lambda output, targets: function(output, targets)


WAYS_TO_A_LOSS = {
    "an attribute": lambda loss, trainer: lambda o, t: trainer.criterion(o, t),
    "a property": lambda loss, trainer: lambda o, t: trainer.chosen(o, t),
    "a method": lambda loss, trainer: lambda o, t: trainer.more(o, t),
    "a bound method": lambda loss, trainer: trainer.more,
    "an inherited method": lambda loss, trainer: Heir(loss).total,
    "of the class": lambda loss, trainer: lambda o, t: Trainer.shared(o, t),
    "a default": lambda loss, trainer: named(loss),
    "a function in a function": lambda loss, trainer: called(called(loss)),
    "slots": lambda loss, trainer: Slots(loss),
}


@pytest.mark.parametrize("way", WAYS_TO_A_LOSS)
def test_a_loss_is_found_through_what_the_code_names(way, monkeypatch):
    loss = Running()
    trainer = Trainer(loss)
    monkeypatch.setattr(Trainer, "shared", loss)
    assert changes_of(Net(), WAYS_TO_A_LOSS[way](loss, trainer)) == []
    assert float(loss.mean) == 1
    # What the code does not name is none of the loss: a trainer leads to the model, and to all there is.
    assert modules_of_loss(WAYS_TO_A_LOSS[way](loss, trainer)) == [loss]


def test_a_loss_that_no_variable_holds_yet():
    def loss_fn(output, targets):
        return later(output, targets)

    assert modules_of_loss(loss_fn) == []
    later = Running()
    assert modules_of_loss(loss_fn) == [later]
    assert modules_of_loss(F.cross_entropy) == []


class Teaches(Net):
    """The usual ways to hide a second model from the optimiser; it follows the first in the forward pass."""

    def change(self, x):
        for teacher in (self.hidden[0], self.box.model):
            teacher(x)
            with torch.no_grad():
                for own, parameter in zip(teacher.parameters(), self.up.parameters(), strict=False):
                    own.mul_(0.5).add_(parameter.mean())


def test_hidden_models_are_put_back():
    box = types.SimpleNamespace(model=nn.BatchNorm2d(3))
    net = Teaches(hidden=[nn.Conv2d(3, 2, 1)], box=box)
    teachers = nn.ModuleList([net.hidden[0], box.model])
    before = copy.deepcopy(teachers.state_dict())
    assert changes_of(net) == []
    assert all(torch.equal(value, before[key]) for key, value in teachers.state_dict().items())


def test_a_parameter_that_is_written_to_later_is_told_and_then_put_back():
    class Late(Net):
        def change(self, x):
            if self.begun:
                with torch.no_grad():
                    self.up.bias.add_(1)

    net = Late(begun=False)
    probe = Probe(net, "up")
    values = []
    for step in range(3):
        net.begun = step > 0
        probe.observe(IMAGES, TARGETS, F.cross_entropy, step=step)
        values.append(net.up.bias.detach().clone())
    assert probe.notes == ["at step 1 the observation left a trace: the model wrote to 'up.bias'"]
    assert torch.equal(values[1], values[0] + 1)
    assert torch.equal(values[2], values[1])


def test_what_cannot_be_guarded_is_found():
    class Own:
        count = 0

    class Keeps(Net):
        def change(self, x):
            self.own.count += 1
            self.own.rate = 0.5
            for parameter in self.parameters():
                parameter.grad = torch.ones_like(parameter)

    own = Own()
    own.count = 3
    changes = changes_of(Keeps(own=own))
    assert "the attribute 'own' of 'Keeps' changed" in changes
    assert "the gradient of 'up.weight' changed" in changes


def test_changes_in_words():
    net = nn.Sequential(collections.OrderedDict(up=nn.Conv2d(3, 2, 1), norm=nn.BatchNorm2d(2)))
    net.count, net.ratio = 0, float("nan")
    before = state_of(net)
    assert state_changes(before, state_of(net)) == []
    net.norm.eval()
    net.count = 2
    net.extra = 1
    net.up.weight.requires_grad_(False)
    with torch.no_grad():
        net.up.bias[0] = -7
    del net.norm.running_var
    handle = net.up.register_forward_hook(print)
    assert state_changes(before, state_of(net)) == [
        "the attribute 'count' of 'Sequential' was 0, is 2",
        "the hooks of 'up' was 0, is 1",
        "requires_grad of 'up.weight' was True, is False",
        "the parameter 'up.bias' changed",
        "the training mode of 'norm' was True, is False",
        "the buffer 'norm.running_var' is gone",
        "the attribute 'extra' of 'Sequential' is new",
    ]
    handle.remove()


def test_observers_of_quantisation_aware_training():
    from torch.ao import quantization

    class Small(Net):
        def __init__(self):
            super().__init__()
            self.quant = quantization.QuantStub()

        def forward(self, x):
            return self.up(self.quant(x))

    net = Small().train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: quantisation moves to another library
        net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        net = quantization.prepare_qat(net)
    for mode in ("eval", "batch"):
        assert changes_of(net, mode=mode) == []


def test_under_inference_mode_and_with_what_was_made_in_it():
    net = Net()
    wanted = Probe(net, "up").observe(IMAGES, TARGETS, F.cross_entropy, step=0)
    with torch.inference_mode():
        frozen = copy.deepcopy(net)
        images, targets = IMAGES.clone(), TARGETS.clone()
        found = [
            Probe(model, "up").observe(images, targets, F.cross_entropy, step=0, mode=mode)
            for model in (net, frozen)
            for mode in ("eval", "batch")
        ]
    found.append(Probe(frozen, "up").observe(images, targets, F.cross_entropy, step=0))
    assert frozen.up.weight.is_inference()
    for snapshots in found:
        for snapshot, want in zip(snapshots, wanted, strict=True):
            np.testing.assert_array_equal(snapshot.value, want.value)


class Remembers(Net):
    def forward(self, x):
        self.last = self.up(x)
        self.all = [self.last]
        return self.last


def test_copies_of_the_model_are_possible_afterwards():
    net = Remembers()
    Probe(net, "up").observe(IMAGES, TARGETS, F.cross_entropy, step=0)
    assert not hasattr(net, "last")
    twin = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    assert torch.equal(twin.up.weight, net.up.weight)
    torch.optim.swa_utils.AveragedModel(net)


def test_lazy_modules_are_refused_with_what_to_do():
    net = nn.Sequential(nn.LazyConv2d(2, 1), nn.LazyBatchNorm2d())
    state_of(net)
    with pytest.raises(FadevizError, match=r"'0.weight' of LazyConv2d has no shape.*Run one batch through the model"):
        Probe(net, "0").observe(IMAGES, TARGETS, F.cross_entropy, step=0)
    net(IMAGES)
    assert len(Probe(net, "0").observe(IMAGES, TARGETS, F.cross_entropy, step=0)) == 2


def test_weights_that_were_never_loaded_are_refused():
    net = nn.Sequential(nn.Conv2d(3, 2, 1, device="meta"))
    state_of(net)
    with pytest.raises(FadevizError, match="'0.weight' of Conv2d is on the meta device.*Load the model's weights"):
        Probe(net, "0").observe(IMAGES, TARGETS, F.cross_entropy, step=0)


def test_a_scripted_part_learns_nothing():
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = torch.jit.script(nn.BatchNorm2d(2))
    net = nn.Sequential(nn.Conv2d(3, 2, 1), scripted).train()
    mean = net[1].running_mean.clone()
    for mode in ("eval", "batch"):
        assert len(Probe(net, "0").observe(IMAGES, TARGETS, F.cross_entropy, step=0, mode=mode)) == 2
    assert torch.equal(net[1].running_mean, mean)
    assert net[1].training
