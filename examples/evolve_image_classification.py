"""
Evolve any image classifier of the Hub on your images; the arguments are those of `smd-hf evolve`.

    python examples/evolve_image_classification.py \
        --model_name_or_path timm/resnet18.a1_in1k \
        --train_dir photos/train --validation_dir photos/test \
        --population_size 32 --num_generations 5 --mutable_parameters norms head \
        --output_dir evolved
"""

from dataclasses import asdict

from transformers import HfArgumentParser

from smd_hf import (
    DataArguments,
    EvolutionArguments,
    EvolutionTrainer,
    ModelArguments,
    load_image_processor,
    load_model,
    load_splits,
)


def make_parser() -> HfArgumentParser:
    return HfArgumentParser((ModelArguments, DataArguments, EvolutionArguments))


def main(model_args: ModelArguments, data_args: DataArguments, training_args: EvolutionArguments) -> dict:
    # 1. Data: training images to evolve on, validation images to report on
    train_dataset, eval_dataset = load_splits(
        **asdict(data_args),
        image_column_name=training_args.image_column_name,
        label_column_name=training_args.label_column_name,
        seed=training_args.seed,
        cache_dir=model_args.cache_dir,
        token=model_args.token,
    )

    # 2. The parent and its image processor
    name = model_args.model_name_or_path
    loading = dict(
        revision=model_args.model_revision,
        cache_dir=model_args.cache_dir,
        token=model_args.token,
        trust_remote_code=model_args.trust_remote_code,
    )
    model = load_model(name, dtype=model_args.dtype, **loading)
    processor = load_image_processor(name, model=model, **loading)

    # 3. Evolution
    trainer = EvolutionTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    # 4. What it brought: everything is in output_dir as well
    print(trainer.report["verdict"])
    return trainer.report


if __name__ == "__main__":
    main(*make_parser().parse_args_into_dataclasses())
