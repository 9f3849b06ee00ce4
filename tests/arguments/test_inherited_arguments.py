"""What becomes of each argument of `TrainingArguments`."""

import argparse
from dataclasses import fields

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from smd_hf import EvolutionTrainer, SMDError
from smd_hf.arguments.inherited_arguments import HIDDEN, NO_EFFECT, OF_SCRIPTS, REFUSED, REPLACED, ignored_arguments
from smd_hf.cli.evolve import run
from smd_hf.search.losses import LOSSES
from tests.plain import plain_arguments
from tests.tiny import tiny_model

EFFECTIVE = {
    "dataloader_prefetch_factor",
    *(
        "output_dir",
        "seed",
        "full_determinism",
        "use_cpu",
        "label_smoothing_factor",
        "resume_from_checkpoint",
        "debug",
    ),
    *("bf16", "fp16", "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode", "auto_find_batch_size"),
    *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter"),
    *("log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "skip_memory_metrics"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "restore_callback_states_from_checkpoint"),
    *(
        "eval_strategy",
        "eval_steps",
        "eval_delay",
        "eval_on_start",
        "per_device_eval_batch_size",
        "prediction_loss_only",
    ),
    *("eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics"),
    *("save_strategy", "save_steps", "save_on_each_node", "save_total_limit", "load_best_model_at_end"),
    *("metric_for_best_model", "greater_is_better", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id"),
    *("hub_strategy", "hub_always_push", "hub_revision", "accelerator_config", "ddp_backend", "ddp_timeout"),
    *("dataloader_num_workers", "dataloader_pin_memory"),
}


def rows(count=12):
    generator = torch.Generator().manual_seed(0)
    return [{"pixel_values": torch.rand(3, 32, 32, generator=generator), "labels": i % 4} for i in range(count)]


def make_args(folder, **kwargs):
    defaults = dict(population_size=2, sigma=0.1, recombination="best", use_cpu=True, disable_tqdm=True)
    return plain_arguments(str(folder), **defaults | kwargs)


def make_trainer(folder, kind=EvolutionTrainer, **kwargs):
    data = {name: rows() for name in ("train_dataset", "eval_dataset")}
    return kind(tiny_model("resnet"), make_args(folder, **kwargs), **data)


def test_every_argument_of_trainer_is_accounted_for_once():
    kinds = (set(NO_EFFECT), set(REFUSED), set(REPLACED), set(OF_SCRIPTS), EFFECTIVE)
    names = {each.name for each in fields(TrainingArguments) if each.init}
    assert names - set().union(*kinds) == set(), "new in transformers: does it count, have no effect, or mislead?"
    assert sum(map(len, kinds)) == len(set().union(*kinds))


def test_arguments_without_effect_are_named_in_one_warning(tmp_path, warned):
    make_trainer(tmp_path, learning_rate=1e-3, weight_decay=0.1, per_device_train_batch_size=64, optim="sgd")
    [message] = warned("No effect")
    assert message == (
        "No effect on an evolution, which uses no gradients: learning_rate, optim, weight_decay, per_device_train_batch_size "
        "(per_device_eval_batch_size is the batch size of scoring)."
    )


def test_defaults_are_not_warned_of(tmp_path, warned):
    make_trainer(tmp_path, learning_rate=5e-5, gradient_checkpointing=False, gradient_accumulation_steps=1)
    assert not warned("No effect")


@pytest.mark.parametrize("objective", LOSSES[:2])
def test_label_smoothing_has_an_effect_on_cross_entropy_alone(objective, tmp_path):
    args = make_args(tmp_path, label_smoothing_factor=0.1, loss=objective, recombination="gauss_newton")
    assert ignored_arguments(args) == ([] if objective == "cross_entropy" else ["label_smoothing_factor"])


def test_what_has_no_effect_does_not_touch_the_model(tmp_path):
    """Trainer would look for embeddings to hook noise to, for Liger kernels, and for the lengths of sequences."""
    switches = dict(neftune_noise_alpha=5.0, train_sampling_strategy="group_by_length", activation_checkpointing=True)
    known = {each.name for each in fields(TrainingArguments)}  # transformers 5.16 has no activation_checkpointing
    trainer = make_trainer(tmp_path, **{name: value for name, value in switches.items() if name in known})
    trainer.train()
    plain = trainer.predict(rows()).predictions
    assert not getattr(trainer.model, "is_activation_checkpointing", False)
    assert (plain == trainer.evaluator.logits(trainer.images.test)).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_train_epochs=10), "num_train_epochs is 10 and num_generations is 1.* Set only num_generations"),
        (dict(batch_eval_metrics=True), "over all images.* Leave it out"),
        (dict(label_names=["target"]), r"label_names is \['target'\].*data_collator"),
        (dict(enable_jit_checkpoint=True), "resume_from_checkpoint=True"),
        (dict(fsdp=True), "fsdp would shard the weights.*torchrun"),
        (dict(deepspeed={"zero_optimization": {"stage": 2}}), "deepspeed would shard the weights"),
    ],
)
def test_what_cannot_be_served_is_refused(kwargs, message, tmp_path):
    with pytest.raises(SMDError, match=message):
        make_args(tmp_path, **kwargs)


def test_as_many_epochs_as_generations_are_what_a_run_does(tmp_path):
    assert make_args(tmp_path, num_train_epochs=2, num_generations=2).num_generations == 2


@pytest.mark.parametrize(
    ("kind", "flag"), [("FSDP", "ACCELERATE_USE_FSDP"), ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED")]
)
def test_sharding_that_accelerate_was_configured_for_is_refused(kind, flag, tmp_path, monkeypatch):
    args = make_args(tmp_path)
    monkeypatch.setenv(flag, "true")
    with pytest.raises(SMDError, match=rf"{kind} \(from accelerate's configuration\) would shard"):
        make_args(tmp_path)
    # Nor in the trainer, by arguments that were made before.
    with pytest.raises(SMDError, match=f"{kind} .*torchrun --nproc_per_node N"):
        EvolutionTrainer(tiny_model("resnet"), args, train_dataset=rows())


def test_sharding_that_is_set_after_the_arguments_were_made_is_refused(tmp_path):
    args = make_args(tmp_path)
    args.fsdp = True
    with pytest.raises(SMDError, match="fsdp would shard"):
        EvolutionTrainer(tiny_model("resnet"), args, train_dataset=rows())


def test_of_several_gpus_without_a_launcher_one_is_used_and_the_batch_is_not_multiplied(tmp_path, monkeypatch, warned):
    """Two GPUs as Trainer counts them; the weights stay on the CPU, where a `DataParallel` would fail."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert TrainingArguments(str(tmp_path)).n_gpu == 2, "Trainer no longer counts GPUs this way"

    class NoCopies(nn.DataParallel):
        def __init__(self, *args, **kwargs):
            raise AssertionError("the model was wrapped in DataParallel")

    monkeypatch.setattr(nn, "DataParallel", NoCopies)
    trainer = make_trainer(tmp_path, use_cpu=False, per_device_eval_batch_size=4)
    assert trainer.args.n_gpu == 1 and trainer.args.eval_batch_size == 4
    assert trainer.images.fitness.batch_size == 4
    trainer.train()
    trainer.evaluate()
    assert trainer.evaluator.full_passes > 0
    [message] = warned("GPUs are visible")
    assert message.startswith("2 GPUs are visible and one is used.") and "torchrun --nproc_per_node 2" in message


def test_one_gpu_or_none_is_not_worth_a_word(tmp_path, monkeypatch, warned):
    make_trainer(tmp_path / "none")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    make_trainer(tmp_path / "one", use_cpu=False)
    assert not warned("GPUs are visible")


def test_help_leaves_out_what_has_no_effect_and_the_command_still_takes_it(capsys):
    with pytest.raises(SystemExit):
        run(["--help"])
    shown = capsys.readouterr().out
    words = set(shown.replace(",", " ").replace("[", " ").replace("]", " ").split())
    assert not words & {f"--{name}" for name in HIDDEN} and "--no_average_tokens_across_devices" not in words
    assert words >= {f"--{name}" for name in EFFECTIVE} and argparse.SUPPRESS not in shown
    # Accepted: what is wrong is another argument.
    with pytest.raises(SMDError, match="--model_name_or_path is missing"):
        run(["--learning_rate", "0.1", "--do_train", "--no_average_tokens_across_devices", "--output_dir", "out"])
