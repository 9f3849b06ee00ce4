"""`smd-hf export`: a model for ONNX Runtime or OpenVINO."""

from collections.abc import Sequence
from pathlib import Path

from transformers import TimmWrapperImageProcessor

from ..artifacts.ensemble import SMDEnsembleForImageClassification
from ..artifacts.exporting import NEEDED, check_installed, export_model
from ..artifacts.loading import load_with_processor
from ..errors import SMDError
from ..files import check_output_dir
from .parsing import SimpleParser, add_loading_arguments, hub_token
from .terminal import quiet_libraries


def make_parser() -> SimpleParser:
    parser = SimpleParser(
        "export",
        "Export a model in float32 to ONNX or OpenVINO. The exported model is run on images of noise, and kept only if its logits are "
        "those of PyTorch within the tolerance.",
    )
    parser.add_argument("path", help="a model or a delta: a folder, or an id on the Hub")
    parser.add_argument("--format", choices=tuple(NEEDED), default="onnx", help="default: onnx")
    parser.add_argument(
        "--output_dir", required=True, help="receives model.onnx or openvino_model.xml, and the configuration"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="largest difference of a logit, as a share of the largest logit (default: 0.001)",
    )
    add_loading_arguments(parser, "the model's repository")
    return parser


def run(argv: Sequence[str]) -> int:
    """
    Exports, and prints where the file is and how far its logits are from PyTorch's.

    Raises:
        `SMDError`: for an ensemble, a model that does not load or cannot be exported, or logits that differ.
    """
    arguments = make_parser().parse_args(argv)
    check_installed(arguments.format)
    folder = Path(arguments.output_dir)
    check_output_dir(folder)
    quiet_libraries()
    with hub_token(arguments.token):
        model, processor = load_with_processor(
            arguments.path, revision=arguments.revision, trust_remote_code=arguments.trust_remote_code
        )
    if isinstance(model, SMDEnsembleForImageClassification):
        raise SMDError(
            f"'{arguments.path}' is an ensemble, and only single models are exported. Merge it first (smd-hf merge {arguments.path} "
            "--output_dir merged), or export one of its members."
        )
    exported = export_model(model, processor, arguments.format, folder, arguments.tolerance)
    model.config.save_pretrained(folder)
    if not isinstance(processor, TimmWrapperImageProcessor):
        processor.save_pretrained(folder)
    batch = "any number of images" if exported.any_batch else "one image"
    print(f"{exported.path} takes {batch} at a time.")
    print(
        f"Its logits differ from PyTorch's by at most {exported.difference:.2g}; the largest is {exported.scale:.3g}."
    )
    return 0
