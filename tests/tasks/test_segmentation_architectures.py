"""Every class that `AutoModelForSemanticSegmentation` maps, as a tiny random model, through a whole run."""

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from smd_hf import EvolutionTrainer
from tests.architectures.configs import PYRAMID, SMALL
from tests.plain import plain_arguments
from tests.tasks.segmenter import CLASSES, make_rows
from tests.tasks.stranger import stranger  # noqa: F401

SIZE = 64
STAGES = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "patch_size": 16,
}
RESNET = transformers.ResNetConfig(
    embedding_size=8,
    hidden_sizes=[8, 8, 16, 16],
    depths=[1, 1, 1, 1],
    out_features=["stage1", "stage2", "stage3", "stage4"],
)
CONFIGS = {
    "beit": STAGES | {"image_size": SIZE, "out_indices": [0, 1, 2, 3], "use_auxiliary_head": False},
    "data2vec-vision": STAGES | {"image_size": SIZE, "out_indices": [0, 1, 2, 3], "use_auxiliary_head": False},
    "dpt": STAGES
    | {
        "image_size": SIZE,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 16,
        "use_auxiliary_head": False,
    },
    "mobilenet_v2": {"depth_multiplier": 0.35, "image_size": SIZE},
    "mobilevit": SMALL["mobilevit"] | {"image_size": SIZE, "aspp_out_channels": 16},
    "mobilevitv2": SMALL["mobilevitv2"] | {"image_size": SIZE, "aspp_out_channels": 16},
    "sapiens2": STAGES
    | {"image_size": SIZE, "head_config": {"upsample_out_channels": [16], "conv_out_channels": [16]}},
    "segformer": PYRAMID | {"decoder_hidden_size": 16},
    "tipsv2_dpt": {
        "backbone_config": transformers.Tipsv2VisionConfig(
            **STAGES,
            image_size=SIZE,
            out_features=["stage1", "stage2", "stage3", "stage4"],
            reshape_hidden_states=False,
            apply_layernorm=True,
        ),
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 16,
    },
    "upernet": {"backbone_config": RESNET, "hidden_size": 16, "use_auxiliary_head": False},
}


def test_every_class_is_known():
    assert set(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES) == CONFIGS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_run_of_each(model_type, tmp_path, stranger):  # noqa: F811
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[model_type](**CONFIGS[model_type], num_labels=CLASSES)
    model = getattr(transformers, MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[model_type])(config)
    model.save_pretrained(tmp_path / "parent")
    processor = transformers.SegformerImageProcessor(size={"height": SIZE, "width": SIZE}, do_reduce_labels=False)
    processor.save_pretrained(tmp_path / "parent")
    args = plain_arguments(
        str(tmp_path / "out"), population_size=4, fitness="mean_iou", per_device_eval_batch_size=4, use_cpu=True,
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    test = make_rows(6, seed=1)
    trainer = EvolutionTrainer(str(tmp_path / "parent"), args, train_dataset=make_rows(10), eval_dataset=test)
    trainer.train()
    assert trainer.report["task"] == "image-segmentation"
    image = test[0]["image"]
    predicted = stranger.predict("image-segmentation", tmp_path / "out", image)
    trainer.model.eval()
    with torch.no_grad():
        outputs = trainer.model(**processor(image, return_tensors="pt"))
    [classes] = processor.post_process_semantic_segmentation(outputs, [image.size[::-1]])
    names = trainer.model.config.id2label
    found = sorted((names[int(each)], int((classes == each).sum())) for each in classes.unique())
    assert sorted((each["label"], each["mask"]) for each in predicted) == found
