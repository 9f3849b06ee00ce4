"""
What an evolution does with the arguments of `TrainingArguments`: uses, ignores or refuses them.

Without gradients, a third of Trainer's arguments have no effect. They are accepted, because scripts and
files of arguments share them, and one warning names those that were given. An argument that would give another result than
the one asked for is an error.
"""

from typing import Any

from accelerate.utils import parse_flag_from_env
from transformers.utils import logging

from ..errors import SMDError

logger = logging.get_logger(__name__)

_WITHOUT_EFFECT = """
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1
    adam_beta2 adam_epsilon optim_target_modules gradient_accumulation_steps average_tokens_across_devices
    max_grad_norm activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
    gradient_checkpointing_kwargs liger_kernel_config use_cache neftune_noise_alpha torch_empty_cache_steps
    include_num_input_tokens_seen ignore_data_skip length_column_name dataloader_persistent_workers
    dataloader_multiprocessing_context dataloader_in_order ddp_find_unused_parameters ddp_bucket_cap_mb
    ddp_broadcast_buffers ddp_static_graph
"""
NO_EFFECT = dict.fromkeys(_WITHOUT_EFFECT.split(), "") | {
    "per_device_train_batch_size": "per_device_eval_batch_size is the batch size of scoring",
    "use_liger_kernel": "its kernels are for language models",
    "data_seed": "seed decides everything",
    "train_sampling_strategy": "every generation scores the same images in the same order",
    "dataloader_drop_last": "all images are scored",
}
"""Arguments without effect on an evolution, with a hint where that helps. Some have an effect in `evaluate`."""

SWITCHED_OFF = {
    "activation_checkpointing": False,
    "gradient_checkpointing": False,
    "use_liger_kernel": False,
    "neftune_noise_alpha": None,
    "train_sampling_strategy": "random",
}
"""Arguments by which Trainer would change the model or the order of evaluation."""

REFUSED = ("fsdp", "fsdp_config", "deepspeed", "parallelism_config", "batch_eval_metrics", "enable_jit_checkpoint")
"""Arguments that are an error. `fsdp_config` has no effect without `fsdp`."""

REPLACED = ("num_train_epochs", "max_steps", "bf16_full_eval", "fp16_full_eval", "label_names")
"""Arguments that follow from others; another value is an error that names the argument to use."""

OF_SCRIPTS = ("do_train", "do_eval", "do_predict", "save_only_model", "remove_unused_columns", "local_rank")
"""Arguments that Trainer ignores too, or that are always on."""

HIDDEN = (*NO_EFFECT, *REFUSED, *REPLACED, *OF_SCRIPTS)
"""Accepted on the command line, but not shown by `smd-hf evolve --help`."""

_SHARDING_FLAGS = {
    "FSDP": "ACCELERATE_USE_FSDP",
    "DeepSpeed": "ACCELERATE_USE_DEEPSPEED",
    "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM",
    "parallelism_config": "ACCELERATE_USE_PARALLELISM_CONFIG",
}


def check_inherited_arguments(args: Any) -> None:
    """Refuses arguments of Trainer that would give another result than the one asked for."""
    check_not_sharded(args)
    for name, default in (("max_steps", -1), ("num_train_epochs", 3.0)):
        value = getattr(args, name)
        if value not in (default, args.num_generations):
            raise SMDError(
                f"{name} is {value:g} and num_generations is {args.num_generations}, but one generation is one step and one "
                "epoch. Set only num_generations."
            )
    if args.bf16_full_eval or args.fp16_full_eval:
        raise SMDError(
            "bf16_full_eval and fp16_full_eval would round the parent's weights for good. Load the model in the dtype in which "
            "it should evolve (dtype='bfloat16'), or use bf16=True for mixed precision."
        )
    if args.batch_eval_metrics:
        raise SMDError(
            "batch_eval_metrics=True gives compute_metrics one batch at a time, but children are compared by metrics over all "
            "images, and logits of a classifier fit into memory. Leave it out, and let compute_metrics take all "
            "predictions, without compute_result."
        )
    if args.label_names not in (None, ["labels"]):
        raise SMDError(
            f"label_names is {args.label_names}, but scoring reads the labels of a batch from 'labels'. Leave it out, and let the "
            "data_collator return them under this name."
        )
    if args.enable_jit_checkpoint:
        raise SMDError(
            "enable_jit_checkpoint would take over SIGTERM, which already stops an evolution safely: what has been scored is kept, "
            "and resume_from_checkpoint=True (--resume) continues from there. Leave it out."
        )


def check_not_sharded(args: Any, found: str | None = None) -> None:
    """
    Refuses FSDP, DeepSpeed and other parallelism that shards the weights.

    Args:
        args ([`EvolutionArguments`]): their `fsdp`, `deepspeed` and `parallelism_config`; and the environment that
            `accelerate launch` sets.
    """
    given = [name for name in ("fsdp", "deepspeed", "parallelism_config") if getattr(args, name)]
    launched = [f"{name} (from accelerate's configuration)" for name, flag in _SHARDING_FLAGS.items() if _flag(flag)]
    names = given + launched or ([found] if found else [])
    if names:
        raise SMDError(
            f"{' and '.join(names)} would shard the weights over the processes, but a child changes single weights in place, so "
            "every process needs the whole model. Leave it out: without gradients and optimizer a model needs little memory. To "
            "use several GPUs, start one process for each with `torchrun --nproc_per_node N` or `accelerate launch --multi_gpu`."
        )


def _flag(name: str) -> bool:
    return bool(parse_flag_from_env(name, default=False))


def ignored_arguments(args: Any) -> list[str]:
    """The arguments without effect that were given a value other than their default."""
    given = args.non_default()
    # False is the same as their default None; transformers before 5.22 has only the second.
    off = {name for name in ("activation_checkpointing", "gradient_checkpointing") if not getattr(args, name, None)}
    names = [name for name in NO_EFFECT if name in given and name not in off]
    if args.include_num_input_tokens_seen not in (False, "no"):
        names.append("include_num_input_tokens_seen")
    smooths = args.recombination == "gauss_newton" and args.loss == "cross_entropy"
    if args.label_smoothing_factor and not smooths:
        names.append("label_smoothing_factor")
    return names


def warn_of_ignored_arguments(args: Any) -> None:
    """Warns, once and on one process, of all given arguments that have no effect."""
    names = ignored_arguments(args)
    if names and args.process_index == 0:
        logger.warning(f"No effect on an evolution, which uses no gradients: {', '.join(map(_with_hint, names))}.")


def _with_hint(name: str) -> str:
    hint = NO_EFFECT.get(name, "only the cross_entropy of a gauss_newton step, and the loss of evaluate, are smoothed")
    return f"{name} ({hint})" if hint else name


def switch_off(args: Any) -> None:
    """Switches off the arguments by which Trainer would change the model or the order of evaluation."""
    for name, value in SWITCHED_OFF.items():
        setattr(args, name, value)


def warn_of_idle_gpus(args: Any) -> None:
    """Says how to use all GPUs, if a process without a launcher sees several."""
    if args.idle_gpus:
        count = args.n_gpu + args.idle_gpus
        logger.warning(
            f"{count} GPUs are visible and one is used. To use all, start one process for each: `torchrun --nproc_per_node {count} "
            f"SCRIPT` or `accelerate launch --multi_gpu --num_processes {count} SCRIPT` (on the command line: `torchrun "
            f"--nproc_per_node {count} --no-python smd-hf evolve ...`)."
        )
