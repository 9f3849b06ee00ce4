"""
Every private name of a library that smd_hf uses: where it lives, how it is called, and what breaks when it changes.

A name is private if it begins with an underscore, or if it is imported from a module that its library does not document. The
address is that of the class or module; the signature lists the parameters without annotations, or is `DATA` for a constant,
`SET` for an attribute that the class's own methods set (since a version of its library), and `USED` for one of other objects that the module reads.
"""

DATA, SET, USED = "constant", "attribute", "used"

PRIVATE_NAMES: dict[str, dict[str, tuple[str, str]]] = {
    # Overridden
    "transformers.trainer:Trainer": {
        "_inner_training_loop": (
            "(self, batch_size=None, args=None, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None)",
            "train() would train by gradients instead of evolving",
        ),
        "_load_best_model": ("(self)", "load_best_model_at_end leaves out weights with other names on disk"),
        "_push_from_checkpoint": (
            "(self, checkpoint_folder)",
            "Trainer pushes checkpoints itself, without retries or our card",
        ),
        # Called
        "_evaluate": ("(self, trial, ignore_keys_for_eval, skip_scheduler=False)", "no evaluation during a run"),
        "_determine_best_metric": ("(self, metrics, trial)", "no best model, and no early stopping"),
        "_finalize_training": (
            "(self, trial, num_train_samples, start_time)",
            "a run fails after its last generation",
        ),
        "_save_checkpoint": ("(self, model, trial)", "no checkpoint is saved"),
        "_init_training_state": (
            "(self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial)",
            "no run begins: the trainer state is not made",
        ),
        # Set
        "_initial_global_step": (f"{SET} since 5.20", "_finalize_training fails"),
        "_total_loss_scalar": (SET, "train_loss in the output of train() is wrong"),
        "_tr_loss": (SET, "_finalize_training fails"),
    },
    "transformers.configuration_utils:PreTrainedConfig": {
        "_attn_implementation": (DATA, "an ensemble's parent ignores the attention that was asked for"),
        "_auto_class": (DATA, "a saved ensemble does not name its configuration class in auto_map"),
        "_commit_hash": (SET, "deltas do not record the revision of their parent"),
        "_name_or_path": (SET, "reports, cards and deltas do not name the parent"),
    },
    "transformers.modeling_utils:PreTrainedModel": {
        "_supports_attention_backend": (DATA, "an ensemble refuses attention implementations that its parent has"),
        "_supports_flash_attn": (DATA, "an ensemble refuses attention implementations that its parent has"),
        "_supports_flex_attn": (DATA, "an ensemble refuses attention implementations that its parent has"),
        "_supports_sdpa": (DATA, "an ensemble refuses attention implementations that its parent has"),
        "_tied_weights_keys": (DATA, "an ensemble of a parent with tied weights cannot be saved"),
    },
    "transformers.hf_argparser": {
        "string_to_bool": ("(v)", "--disable_tqdm needs a value"),
    },
    "transformers.hf_argparser:HfArgumentParser": {
        "_add_dataclass_arguments": ("(self, dtype)", "--help has no headings"),
        "_parse_dataclass_field": ("(parser, field)", "no command can read its arguments"),
    },
    # Imported from undocumented modules
    "transformers.conversion_mapping": {
        "get_model_conversion_mapping": (
            "(model, key_mapping=None, hf_quantizer=None, add_legacy=True)",
            "published ensembles use names in memory instead of checkpoint names (guarded)",
        ),
    },
    "transformers.core_model_loading": {
        "PrefixChange": ("(prefix_to_add=None, prefix_to_remove=None, model_prefix=None)", "as above (guarded)"),
        "WeightRenaming": ("(source_patterns, target_patterns)", "as above (guarded)"),
        "_weight_conversions": (USED, "a quantised model that was loaded cannot be saved again"),
        "revert_weight_conversion": (
            "(model, state_dict)",
            "no names of tensors in checkpoints: no deltas, no saving",
        ),
    },
    "transformers.dynamic_module_utils": {
        "get_class_from_dynamic_module": (
            "(class_reference, pretrained_model_name_or_path, cache_dir=None, force_download=False, proxies=None, token=None, "
            "revision=None, local_files_only=False, repo_type=None, code_revision=None, **kwargs)",
            "an ensemble of a parent with code of its own does not load",
        ),
        "get_relative_import_files": (
            "(module_file)",
            "code that travels with a model is saved or pushed incompletely",
        ),
    },
    "transformers.models.auto.modeling_auto": {
        "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES": (
            DATA,
            "CLIP and SigLIP are not refused with a reason",
        ),
    },
    "transformers.trainer": {
        "DEFAULT_PROGRESS_CALLBACK": (DATA, "two progress bars"),
        "TRAINER_STATE_NAME": (DATA, "no run is resumed"),
    },
    "transformers.trainer_callback": {
        "ExportableState": ("()", "callbacks that keep state begin anew on resume"),
        "TrainerState": (DATA, "a progress bar cannot be built"),
    },
    "transformers.trainer_pt_utils": {
        "nested_numpify": ("(tensors)", "preprocess_logits_for_metrics cannot be fitness"),
    },
    "transformers.trainer_utils": {
        "EvalLoopOutput": (
            "(predictions, label_ids, metrics, num_samples)",
            "tasks other than classification are not evaluated",
        ),
        "HubStrategy": (DATA, "no checkpoint is pushed"),
        "PREFIX_CHECKPOINT_DIR": (DATA, "no checkpoint is found"),
        "SaveStrategy": (DATA, "no checkpoint is pushed"),
        "TrainOutput": ("(global_step, training_loss, metrics)", "only an annotation"),
        "enable_full_determinism": ("(seed, warn_only=False)", "full_determinism fails with model_init"),
        "get_last_checkpoint": ("(folder)", "smd-hf evolve does not refuse a folder that holds a run"),
        "number_of_arguments": ("(func)", "model_init is called with the wrong arguments"),
    },
    "transformers.utils": {
        "ADAPTER_CONFIG_NAME": (DATA, "a PEFT adapter is not refused with a reason"),
        "CONFIG_NAME": (DATA, "no config.json is found"),
        "IMAGE_PROCESSOR_NAME": (DATA, "preprocessor_config.json is not copied beside a delta's model"),
        "SAFE_WEIGHTS_INDEX_NAME": (DATA, "sharded checkpoints are not found"),
        "SAFE_WEIGHTS_NAME": (DATA, "checkpoints are not found"),
        "TRANSFORMERS_DYNAMIC_MODULE_NAME": (DATA, "code that travels with a model is not saved"),
        "cached_file": ("(path_or_repo_id, filename, **kwargs)", "no file of a model is found"),
        "extract_commit_hash": ("(resolved_file, commit_hash)", "models and deltas do not record their revision"),
        "is_timm_config_dict": ("(config_dict)", "timm models do not load by their Hub id"),
    },
    "transformers.utils.hub": {
        "PushInProgress": ("(jobs=None)", "checkpoints are not pushed in the background"),
    },
    "accelerate.accelerator:Accelerator": {
        "_models": (SET, "the first evaluation wraps the model's forward, and compiles it a second time"),
    },
    "accelerate.utils": {
        "find_executable_batch_size": (
            "(function=None, starting_batch_size=128, reduce_batch_size_fn=None)",
            "auto_find_batch_size does not lower the batch size",
        ),
        "gather_object": ("(object)", "processes cannot exchange scores"),
        "parse_flag_from_env": (
            "(key, default=False)",
            "CPU offload and other flags of accelerate launch are not refused",
        ),
    },
    "accelerate.utils.memory": {
        "should_reduce_batch_size": ("(exception)", "running out of memory is not explained"),
    },
    "huggingface_hub.constants": {
        "SAFETENSORS_INDEX_FILE": (DATA, "sharded weights are not pushed"),
        "SAFETENSORS_SINGLE_FILE": (DATA, "weights are not pushed"),
    },
    "huggingface_hub.dataclasses": {
        "strict": ("(cls=None, *, accept_kwargs=False)", "a delta's configuration is not checked"),
        "validated_field": (
            "(validator, default=MISSING, default_factory=MISSING, init=True, repr=True, hash=None, compare=True, metadata=None, **kwargs)",
            "a delta's configuration is not checked",
        ),
    },
    "huggingface_hub.file_download": {
        "_CACHED_NO_EXIST": (DATA, "a folder that is known to have no delta is asked for one again, offline too"),
        "repo_folder_name": ("(*, repo_id, repo_type)", "the revision of a cached parent is not found offline"),
    },
    "huggingface_hub.utils": {
        "are_progress_bars_disabled": (
            "(name=None)",
            "HF_HUB_DISABLE_PROGRESS_BARS does not hide the bar of smd-hf push",
        ),
        "httpx": (DATA, "a broken connection is not told from a missing file"),
        "parse_ratelimit_headers": ("(headers)", "requests beyond the rate limit are repeated too early"),
        "validate_repo_id": ("(repo_id)", "a delta may name a parent that cannot exist"),
    },
    "datasets.packaged_modules.imagefolder.imagefolder": {
        "ImageFolder": (DATA, "smd-hf evolve cannot tell which files of a folder are images"),
    },
    "pymoo.operators.survival.rank_and_crowding.metrics": {
        "calc_crowding_distance": ("(F, **kwargs)", "several objectives cannot be selected on"),
    },
    "pymoo.util.nds.non_dominated_sorting": {
        "NonDominatedSorting": (
            "(epsilon=None, method='fast_non_dominated_sort', dominator=None)",
            "several objectives cannot be ranked",
        ),
    },
    # Not of the ecosystem, but no less private
    "argparse:ArgumentParser": {
        "_actions": (SET, "hidden arguments appear in --help"),
        "_option_string_actions": (SET, "no command can read its arguments"),
    },
    "sklearn.metrics._scorer:_BaseScorer": {
        "_score_func": (SET, "scorers of clustering are not told from those of classification"),
    },
    "torch:Tensor": {"_version": (DATA, "prefix replay cannot see a change in place")},
    "torch.nn:Module": {
        "_compiled_call_impl": (DATA, "prefix replay replays compiled modules"),
        "_forward_hooks": (SET, "prefix replay replays modules that have hooks of the user's"),
        "_forward_pre_hooks": (SET, "prefix replay replays modules that have hooks of the user's"),
    },
    "torch._ops": {"OpOverload": (DATA, "exported graphs cannot be cut into segments")},
    "torch._subclasses.fake_tensor": {"FakeTensor": (DATA, "exported graphs cannot be cut into segments")},
    "torch.ops:aten": {
        "_unsafe_view": (DATA, "OpenVINO cannot convert a graph that is cut at a reshaped view (naflexvit of timm)"),
    },
    "torch.nn.modules.module": {
        "_global_forward_hooks": (DATA, "prefix replay replays modules under global hooks"),
        "_global_forward_pre_hooks": (DATA, "prefix replay replays modules under global hooks"),
    },
    "torch.utils._python_dispatch": {
        "is_traceable_wrapper_subclass": ("(t)", "quantised weights are not found"),
    },
}
