"""The monitor watches and changes nothing: the run's numbers, its hooks, its loggers, its budget."""

import math

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from monitored import adam, events, run, sgd
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import manualnn
from manualnn.training import TrainingError
from manualnn.training.cli import command as cli
from manualnn.training.monitors import Monitor, budget, callback
from manualnn.training.monitors.history import RECORDS
from manualnn.training.monitors.layers import WINDOW, LayerHooks, labels_of
from manualnn.training.networks import CNN
from manualnn.training.run.callbacks import BestCheckpoint


class Shared(nn.Module):
    """One layer called twice, one frozen, one behind a checkpoint, an activation called as a function."""

    def __init__(self):
        super().__init__()
        self.first, self.twice = nn.Linear(64, 24), nn.Linear(24, 24)
        self.frozen, self.last = nn.Linear(24, 24), nn.Linear(24, 10)
        self.frozen.requires_grad_(False)
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout(0.2)

    def forward(self, images):
        x = self.relu(self.first(images.flatten(1)))
        x = self.relu(self.twice(self.relu(self.twice(x)))) + x
        x = checkpoint(lambda t: self.relu(self.frozen(t)), x, use_reentrant=False)
        return self.last(F.silu(self.dropout(x)))


def functional():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.hidden, self.out = (
                nn.Conv2d(1, 4, 3),
                nn.Linear(36, 16),
                nn.Linear(16, 10),
            )

        def forward(self, images):
            x = F.max_pool2d(F.relu(self.conv(images)), 2)
            return self.out(F.dropout(F.relu(self.hidden(x.flatten(1))), 0.3, self.training))

    return Net()


def two_groups(parameters):
    parameters = list(parameters)
    groups = [{"params": parameters[:2], "lr": 0.01}, {"params": parameters[2:]}]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


MLP = {"hidden_units": [24, 16], "dropout": 0.2}
REGIMES = {
    "one node": {"model": MLP},
    "accumulated": {"model": MLP, "accumulate_grad_batches": 3},
    "clipped": {"model": MLP, "gradient_clip_val": 0.1},
    "bf16": {"model": MLP, "precision": "bf16-mixed"},
    "float64": {"model": MLP, "precision": "64-true"},
    "Adam, GELU": {"model": MLP | {"activation": "gelu"}, "optimizer": adam(0.01)},
    "groups": {"model": MLP, "optimizer": two_groups},
    "one image a batch": {"model": MLP, "data": {"batch_size": 1}, "limit_train_batches": 5},
    "converted": {"model": lambda: {"network": CNN(10, (1, 8, 8), (4, 8), 16)}},
    "not converted": {"model": lambda: {"network": CNN(10, (1, 8, 8), (4, 8), 16), "convert": "off"}},
    "shared, frozen, checkpointed": {"model": lambda: {"network": Shared()}, "optimizer": sgd(0.02)},
    "functional": {"model": lambda: {"network": functional()}},
}  # fmt: skip


def go(folder, case, every, **more):
    case = dict(case) | more
    case["data"] = {"batch_size": 256, **case.get("data", {})}
    torch.manual_seed(0)
    given = case.pop("model")
    return run(folder, every, 2, model=given() if callable(given) else given, **case)


@pytest.mark.parametrize("name", REGIMES)
@pytest.mark.one_in(3)
def test_no_number_of_the_run_changes(name, tmp_path):
    runs, states = [], []
    for every in ("off", 1):
        runs.append(go(tmp_path / str(every), REGIMES[name], every))
        states.append(torch.random.get_rng_state())
    (plain, _, before), (watched, monitor, after) = runs
    assert [r.step for r in monitor.history.records] == list(range(1, after.global_step + 1))[
        -RECORDS:
    ]
    assert after.global_step > 1
    assert before.global_step == after.global_step
    for key, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[key]), key
    assert torch.equal(*states)
    for key, value in before.callback_metrics.items():
        assert torch.equal(value, after.callback_metrics[key]), key
    for group, other in zip(
        before.optimizers[0].state.values(), after.optimizers[0].state.values(), strict=True
    ):
        assert all(torch.equal(torch.as_tensor(group[k]), torch.as_tensor(other[k])) for k in group)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in watched.modules())
    assert {"flow", "validation/confusion"} <= set(events(tmp_path / "1").Tags()["images"])
    assert events(tmp_path / "off").Tags()["images"] == []


# What the numbers are.


def test_signals_are_the_definitions():
    torch.manual_seed(0)
    W = nn.Sequential(
        nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)
    ).double()
    watch, x = LayerHooks(manualnn.convert(W)), torch.randn(7, 5, dtype=torch.float64)
    optimizer = torch.optim.SGD(W.parameters(), lr=0.1)
    before = [layer.weight.detach().clone() for layer in watch.layers]
    watch.begin()
    W(x).square().sum().backward()
    watch.before_update()
    optimizer.step()
    signals = watch.end()

    z = [None] * 3
    with torch.no_grad():
        z[0] = F.linear(x, before[0], W[0].bias + 0.1 * W[0].bias.grad)
    z[0].requires_grad_()
    z[1] = F.linear(z[0].tanh(), before[1], W[2].bias.detach() + 0.1 * W[2].bias.grad)
    z[2] = F.linear(z[1].relu(), before[2], W[4].bias.detach() + 0.1 * W[4].bias.grad)
    errors = torch.autograd.grad(z[2].square().sum(), z)
    outputs = [z[0].tanh(), z[1].relu(), z[2]]
    for l, one in enumerate(signals):
        weight = watch.layers[l].weight
        assert one.dz_norm == pytest.approx(errors[l].norm().item(), rel=1e-10)
        assert one.dz_spread == pytest.approx(errors[l].square().mean().sqrt().item(), rel=1e-10)
        assert one.dW_norm == pytest.approx(weight.grad.norm().item(), rel=1e-10)
        assert one.a_mean == pytest.approx(outputs[l].mean().item(), rel=1e-10)
        assert one.a_spread == pytest.approx(outputs[l].std(correction=0).item(), rel=1e-10)
        change = (weight.detach() - before[l]).norm() / before[l].norm()
        assert one.update == pytest.approx(math.log10(change), rel=1e-9)


def test_a_layer_called_twice_is_one_layer_with_all_of_its_signals():
    torch.manual_seed(0)
    layer = nn.Linear(4, 4).double()
    net = nn.Sequential(layer, nn.Sigmoid(), layer, nn.Sigmoid()).double()
    watch, x = LayerHooks(net), torch.randn(3, 4, dtype=torch.float64)
    watch.begin()
    net(x).sum().backward()
    watch.before_update()
    (one,) = watch.end()
    a = torch.cat([layer(x).sigmoid(), layer(layer(x).sigmoid()).sigmoid()])
    assert one.a_mean == pytest.approx(a.mean().item(), rel=1e-10)
    assert one.a_spread == pytest.approx(a.std(correction=0).item(), rel=1e-10)
    z = [layer(x).detach().requires_grad_()]
    z.append(layer(z[0].sigmoid()))
    errors = torch.autograd.grad(z[1].sigmoid().sum(), z)
    assert one.dz_norm == pytest.approx(torch.cat(errors).norm().item(), rel=1e-10)


def test_dead_and_saturated_units_are_counted_over_a_window():
    relu, tanh = nn.Linear(1, 4), nn.Linear(4, 4, bias=False)
    net = nn.Sequential(relu, nn.ReLU(), tanh, nn.Tanh())
    with torch.no_grad():
        relu.weight.fill_(1.0)
        relu.bias.copy_(
            torch.tensor([2.0, -0.5, -9.0, -9.0])
        )  # the second: on for half, the rest off
        tanh.weight.copy_(torch.diag(torch.ones(4)))
        tanh.weight[0, 0] = 9.0  # flat on one side
    watch = LayerHooks(net)

    def step(x):
        watch.begin()
        net(x).sum().backward()
        watch.before_update()
        return watch.end()

    for _ in range(WINDOW // 128 - 1):
        assert step(torch.ones(128, 1))[0].dead is None
    first, second = step(torch.zeros(128, 1))
    assert (first.dead, first.saturated) == (0.5, None)
    assert (second.dead, second.saturated) == (None, 0.25)
    for _ in range(WINDOW // 128):
        last = step(torch.zeros(128, 1))
    assert last[0].dead == 0.75  # the window before is forgotten


def test_channels_are_the_units_of_a_convolution():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    with torch.no_grad():
        net[0].bias[:1] = -99.0
    watch = LayerHooks(net)
    watch.begin()
    net(torch.rand(WINDOW, 1, 5, 5)).sum().backward()
    watch.before_update()
    (one,) = watch.end()
    assert one.dead == 0.25


def test_labels_sort_by_depth():
    net = nn.Sequential(nn.Flatten(), nn.Sequential(*(nn.Linear(2, 2) for _ in range(11))))
    labels = labels_of(LayerHooks(net).layers)
    assert labels == sorted(labels)
    assert (labels[0], labels[-1]) == ("01_Linear", "11_Linear")
    watch = LayerHooks(CNN())
    assert watch.labels == ["01_conv1", "02_conv2", "03_hidden", "04_scores"]


def test_layers_stand_in_the_order_in_which_they_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.b, self.a = nn.Linear(3, 2), nn.Linear(4, 3)

        def forward(self, x):
            return self.b(self.a(x).relu())

    net = Backwards()
    watch = LayerHooks(net)
    watch.begin()
    net(torch.randn(2, 4)).sum().backward()
    watch.before_update()
    watch.end()
    assert watch.labels == ["01_a", "02_b"]


def test_a_parametrized_weight_is_a_layer_and_its_parametrization_is_none():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    watch = LayerHooks(net)
    assert watch.labels == ["01_ParametrizedLinear", "02_Linear"]
    watch.begin()
    net(torch.randn(2, 3)).sum().backward()
    watch.before_update()
    signals = watch.end()
    assert all(s.dz_norm and s.dW_norm for s in signals)


# When.


def steps_of(monitor, folder, tag="dz_log10/01_Linear"):
    return [e.step for e in events(folder).Scalars(tag)]


def test_every_is_in_steps_of_the_optimiser(tmp_path):
    _, monitor, trainer = run(
        tmp_path, 4, 2, data={"batch_size": 128}, accumulate_grad_batches=2,
        callbacks=[Hooked()],
    )  # fmt: skip
    assert trainer.global_step == 12
    assert steps_of(monitor, tmp_path) == [1, 4, 8, 12]
    # An epoch has 11 batches: two a step, of which both are watched or none, and one that is left over.
    assert trainer.callbacks[0].watched == [0, 1, 6, 7, 13, 14, 21]


class Hooked(Callback):
    """Notes in which batches, counted from 0, the layers have hooks."""

    def __init__(self):
        self.watched, self.count = [], 0

    def on_before_backward(self, trainer, pl_module, loss):
        if any(m._forward_hooks for m in pl_module.network.modules()):
            self.watched.append(self.count)
        self.count += 1


def test_the_budget_is_a_share_of_the_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now[0])
    money = budget.Budget(0.01)
    assert not money.allows("step", 0.0)
    money.start()
    now[0] = 9.9
    assert not money.allows("step", 0.1)
    now[0] = 10.1
    assert money.allows("step", 0.1)
    money.spend("step", 0.2)
    now[0] = 29.0
    assert not money.allows("step", 0.1)
    now[0] = 31.0
    assert money.allows(
        "step", 0.1
    )  # 0.2 are spent, and the first time says nothing about the next one
    money.spend("step", 0.3)
    now[0] = 79.0
    assert not money.allows("step", 0.1)  # 0.5 are spent, and the last one cost 0.3
    now[0] = 81.0
    assert money.allows("step", 0.1)


def test_what_is_drawn_at_the_end_is_paid_for_beforehand(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now[0])
    money = budget.Budget(0.01, at_end=True)
    money.start()
    now[0] = 19.0
    assert not money.allows("picture", 0.1)
    now[0] = 21.0
    assert money.allows("picture", 0.1)


def test_where_a_picture_is_cheap_there_is_one_an_epoch(tmp_path, monkeypatch):
    """A tenth of a second is an epoch here; as long as ten minutes, by this share."""
    monkeypatch.setattr(callback, "FOR_FLOW", callback.FOR_FLOW * 6000)
    monkeypatch.setattr(callback, "FOR_STEPS", callback.FOR_STEPS * 6000)
    run(tmp_path, "auto", 4, data={"batch_size": 128})
    assert [e.step for e in events(tmp_path).Images("flow")] == [11, 21, 31, 41]


def test_by_itself_it_takes_few_steps_and_draws_at_the_end(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        callback, "FOR_FLOW", 1e-9
    )  # on a slow machine a step may pay for a picture
    monkeypatch.setattr(Monitor, "_is_due", lambda self, step: step in (1, 11))
    original = Monitor._draw_flow
    monkeypatch.setattr(
        Monitor,
        "_draw_flow",
        lambda self, t, m: (drawn.append(t.global_step), original(self, t, m)),
    )
    run(tmp_path, "auto", 3, data={"batch_size": 256})
    assert drawn == [18]
    tags = events(tmp_path).Tags()
    assert set(tags["images"]) == {
        "flow", "validation/confusion", "validation/mistakes", "weights/first_layer",
    }  # fmt: skip
    assert {f"{name}/01_Linear" for name in ("a", "dz", "W")} <= set(tags["histograms"])


# Going on, failing, being elsewhere.


class StopAt(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("power cut")


def curves(folder):
    accumulator = events(folder)
    tags = [t for t in accumulator.Tags()["scalars"] if t.split("/")[0] not in ("time", "lr")]
    return {t: [(e.step, e.value) for e in accumulator.Scalars(t)] for t in tags}


def test_a_continued_run_goes_on_with_the_same_curves(tmp_path):
    case = {
        "data": {"batch_size": 200}, "every": 3, "enable_checkpointing": True,
        "model": {"activation": "tanh"},
    }  # fmt: skip
    _, whole, _ = run(tmp_path / "whole", epochs=5, callbacks=[BestCheckpoint()], **case)
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "cut", epochs=5, callbacks=[StopAt(2), BestCheckpoint()], **case)
    last = tmp_path / "cut/version_0/checkpoints/last.ckpt"
    torch.load(last, weights_only=True)
    _, monitor, _ = run(
        tmp_path / "cut", epochs=5, callbacks=[BestCheckpoint()], ckpt_path=last, **case
    )
    one, other = curves(tmp_path / "whole"), curves(tmp_path / "cut")
    assert "saturated_units/01_Linear" in one
    for tag in one:
        if not tag.startswith(("train", "epoch")):
            assert other[tag] == one[tag], tag
            assert len({step for step, _ in one[tag]}) == len(one[tag])
    assert monitor.history.epochs == whole.history.epochs
    assert [r.step for r in monitor.history.records] == [r.step for r in whole.history.records]


def test_a_finding_is_said_once_however_often_the_run_is_continued(tmp_path, capsys):
    case = {
        "every": 2, "enable_checkpointing": True, "optimizer": sgd(1e-9), "data": {"batch_size": 200},
    }  # fmt: skip
    run(tmp_path, epochs=2, callbacks=[BestCheckpoint()], **case)
    last = tmp_path / "version_0/checkpoints/last.ckpt"
    run(tmp_path, epochs=4, callbacks=[BestCheckpoint()], ckpt_path=last, **case)
    assert capsys.readouterr().out.count("updates too small (") == 1


def test_a_step_that_fails_leaves_no_hooks(tmp_path):
    class Broken(nn.Module):
        def forward(self, x):
            if self.training:
                raise KeyError("mine")
            return x

    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Broken())
    with pytest.raises(KeyError, match="mine"):
        run(tmp_path, 1, 1, model={"network": network})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize("kind", ["none", "csv", "twice the same", "tensorboard and csv"])
def test_each_logger_gets_once_what_it_can_hold(kind, tmp_path):
    board = TensorBoardLogger(tmp_path, name="", version=0)
    loggers = {
        "none": False,
        "csv": CSVLogger(tmp_path, name="", version=0),
        "twice the same": [board, TensorBoardLogger(tmp_path, name="", version=0)],
        "tensorboard and csv": [board, CSVLogger(tmp_path / "csv", name="", version=0)],
    }[kind]
    run(tmp_path, 2, 2, logger=loggers, data={"batch_size": 256})
    if "csv" in kind:
        (file,) = tmp_path.glob("**/metrics.csv")
        header, *rows = file.read_text().splitlines()
        column = header.split(",").index("dz_log10/01_Linear")
        assert len([r for r in rows if r.split(",")[column]]) == 7
    if kind in ("twice the same", "tensorboard and csv"):
        assert steps_of(None, tmp_path) == [1, 2, 4, 6, 8, 10, 12]
        assert [e.step for e in events(tmp_path).Images("flow")] == [6, 12]


def test_only_the_first_process_watches_and_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda self: False))
    _, monitor, _ = run(tmp_path, 1, 1, data={"batch_size": 512})
    assert not monitor.history.records
    assert events(tmp_path).Tags()["images"] == []


def test_a_compiled_network_gets_no_hooks_inside(tmp_path):
    network = torch.compile(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), backend="eager")
    hooked = Hooked()
    _, monitor, _ = run(
        tmp_path, 1, 1, model={"network": network, "convert": "off"}, callbacks=[hooked],
        limit_train_batches=2,
    )  # fmt: skip
    assert hooked.watched == [] and hooked.count == 2
    (signals,) = monitor.history.records[-1].layers
    assert signals.dW_norm > 0 and signals.update is not None and signals.dz_norm is None


# The command line.


@pytest.mark.parametrize("value", ["0", "-3", "sometimes", "true", "1.5"])
def test_every_is_auto_off_or_a_number_of_steps(value, capsys):
    args = ["fit", "--model.hidden_units", "[4]", "--monitor.every", value]
    assert cli.main(args) == 2
    assert "monitor" in capsys.readouterr().err


@pytest.mark.parametrize("every", ["auto", "off"])
def test_the_command_line_watches_unless_told_not_to(every, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = [
        "--model.hidden_units",
        "[8]",
        "--data.batch_size",
        "512",
        "--trainer.accelerator",
        "cpu",
    ]
    assert cli.main(["fit", *args, "--trainer.max_epochs", "1", "--monitor.every", every]) == 0
    folder = tmp_path / "logs/Digits"
    assert ("flow" in events(folder).Tags()["images"]) == (every == "auto")
    assert f"every: {every}" in (folder / "version_0/config.yaml").read_text().replace("'", "")


def test_a_bad_every_is_refused_in_python_too():
    for wrong in (0, True, "never", -1):
        with pytest.raises(TrainingError, match="monitor.every"):
            Monitor(wrong)
