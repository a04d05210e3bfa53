"""Masks in the training loops of other libraries: whatever wraps the optimizer, its own steps count."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import transmask as tm  # noqa: E402
from transmask.torch import sparsify  # noqa: E402


def build(refresh_every=2):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8))
    return model, sparsify(model, "2:4", refresh_every=refresh_every)


def batches(count):
    return [torch.randn(12, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def loss_of(model, batch):
    return (model(batch) - batch[:, :8]).square().mean()


def plainly(steps):
    model, controller = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    controller.attach(optimizer)
    for batch in batches(steps):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model, controller


def assert_same_run(model, controller, steps):
    expected, other = plainly(steps)
    assert [record.step for record in controller.history] == [record.step for record in other.history]
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attach_prepared", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_accelerate(attach_prepared, accumulate):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model, controller = build()
    raw = torch.optim.SGD(model.parameters(), lr=0.5)
    prepared, optimizer = accelerator.prepare(model, raw)
    assert type(optimizer) is not torch.optim.SGD
    controller.attach(optimizer if attach_prepared else raw)
    with pytest.raises(tm.InvalidArgumentError, match="`optimizer` must not be attached yet, got it twice"):
        controller.attach(raw if attach_prepared else optimizer)
    for batch in batches(6):
        for part in batch.chunk(accumulate):
            with accelerator.accumulate(prepared):
                accelerator.backward(loss_of(prepared, part))
                optimizer.step()
                optimizer.zero_grad()
    assert len(controller.history) == 6
    assert_same_run(model, controller, 6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model, controller = build()

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x, labels=None):
            return {"loss": loss_of(self.net, x)}

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=12, max_steps=6, use_cpu=True, report_to=[],
        save_strategy="no", lr_scheduler_type="constant", max_grad_norm=0, disable_tqdm=True,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    controller.attach(optimizer)
    rows = [{"x": row} for batch in batches(6) for row in batch]

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(rows)

    InOrder(model=Wrapped(), args=arguments, train_dataset=rows, optimizers=(optimizer, None)).train()
    assert_same_run(model, controller, 6)


def test_gradient_checkpointing_changes_nothing():
    model, controller = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    controller.attach(optimizer)
    for batch in batches(6):
        optimizer.zero_grad()
        (checkpoint(model, batch, use_reentrant=False) - batch[:, :8]).square().mean().backward()
        optimizer.step()
    assert_same_run(model, controller, 6)


class Wrapper:
    """Has what it wraps as `optimizer`, and is no Optimizer itself."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        self.optimizer.step()


def test_a_wrapper_of_a_wrapper():
    model, controller = build()
    raw = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer = Wrapper(raw)
    assert controller.attach(optimizer) is controller
    for batch in batches(6):
        raw.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    assert_same_run(model, controller, 6)


@pytest.mark.parametrize("wrong", [Wrapper(None), Wrapper(3), None, "sgd"])
def test_what_wraps_no_optimizer_is_refused(wrong):
    _, controller = build()
    with pytest.raises(tm.InvalidTypeError) as caught:
        controller.attach(wrong)
    name = type(wrong).__name__
    assert str(caught.value) == f"`optimizer` must be a torch.optim.Optimizer, got {name}. Attach what it wraps."


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning(tmp_path, accumulate):
    """The optimizer is attached where Lightning asks for it, and a resumed run is the uninterrupted one."""
    lightning = pytest.importorskip("lightning")

    class Training(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.controller = build()

        def training_step(self, batch):
            return loss_of(self.model, batch)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
            self.controller.attach(optimizer)
            return optimizer

    def fit(epochs, resumed=None):
        torch.manual_seed(1)
        training = Training()
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            accumulate_grad_batches=accumulate,
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        parts = [part for batch in batches(6) for part in batch.chunk(accumulate)]
        data = torch.utils.data.DataLoader(parts, batch_size=None)
        trainer.fit(training, data, ckpt_path=resumed)
        return trainer, training

    trainer, training = fit(1)
    assert len(training.controller.history) == 6
    assert_same_run(training.model, training.controller, 6)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    _, straight = fit(2)
    _, resumed = fit(2, tmp_path / "one.ckpt")
    for key, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
