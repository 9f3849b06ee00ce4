"""The accelerate configurations in examples/distributed load, and say what the README there says."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

FOLDER = Path(__file__).parents[2] / "examples" / "distributed"


@pytest.mark.parametrize("name, machines, processes", [("multi_gpu", 1, 8), ("multi_node", 2, 16)])
def test_accelerate_reads_the_configuration(name, machines, processes):
    path = FOLDER / f"accelerate_{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type == DistributedType.MULTI_GPU and not config.use_cpu
    assert (config.num_machines, config.num_processes) == (machines, processes)
    assert f"examples/distributed/{path.name}" in (FOLDER / "README.md").read_text()
    assert machines == 1 or (config.main_process_port == 29500 and config.rdzv_backend == "static")
