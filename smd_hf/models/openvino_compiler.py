"""Compiles a model for the CPU by OpenVINO, as all of the package does it."""

from typing import Any

from ..parallel.signal_stack import signal_stack_kept
from ..parallel.threads import num_threads


def compiled_for_cpu(model: Any, precision: str = "f32") -> Any:
    """
    An `openvino.CompiledModel` that computes in torch's number of threads.

    Args:
        precision (`str`, *optional*, defaults to `"f32"`): of what is not quantised. By default, OpenVINO would compute in bfloat16 where
            the processor is faster at it.
    """
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": num_threads(),
        "NUM_STREAMS": 1,
        # Each process would hold its passes on the first core.
        "ENABLE_CPU_PINNING": False,
    }
    with signal_stack_kept():
        return openvino.Core().compile_model(model, "CPU", options)
