from pathlib import Path

import pytest
from hub_client import TOKEN, ClientError

from factories import make_autoencoder, make_dataset
from pdiff_hf.files import write_json

SCRIPT = Path(__file__).parents[2] / "training" / "train_diffusion.py"
RUN = """
import runpy, sys
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""
LOAD = """
from pdiff_hf import PDiffPipeline
pipe = PDiffPipeline.from_pretrained(repo)
result = len(pipe(num_inference_steps=2).parameters)
"""
SMALL = ["--block_out_channels", "16", "16", "--lr_warmup_steps", "0", "--max_train_steps", "4"]
SMALL += ["--checkpointing_steps", "2"]


@pytest.fixture
def arguments(tmp_path):
    make_autoencoder().save_pretrained(tmp_path / "ae")
    write_json(tmp_path / "ae" / "train_config.json", {"autoencoder": {}})
    folders = {"dataset_dir": make_dataset(tmp_path), "autoencoder_dir": tmp_path / "ae", "output_dir": tmp_path / "p"}
    return [*[word for flag, path in folders.items() for word in (f"--{flag}", str(path))], *SMALL]


def test_trained_pipeline_is_on_the_hub_with_its_card(hub, client, arguments, tmp_path):
    repo = "user/trained-by-script"
    client(RUN, script=SCRIPT, arguments=[*arguments, "--push_to_hub", "--hub_model_id", repo])
    assert client(LOAD, repo=repo) == 1
    assert (tmp_path / "p" / "checkpoint-2").is_dir()
    pushed = client("from huggingface_hub import list_repo_files; result = list_repo_files(repo)", repo=repo)
    assert "README.md" in pushed and "model_index.json" in pushed
    assert not [name for name in pushed if "checkpoint" in name]
    assert TOKEN not in client.output.read_text()


def test_a_missing_name_is_noticed_before_there_is_anything_to_push(client, arguments, tmp_path):
    with pytest.raises(ClientError, match="SystemExit: 2"):
        client(RUN, script=SCRIPT, arguments=[*arguments, "--push_to_hub"])
    assert "--push_to_hub needs --hub_model_id user/name" in client.output.read_text()
    assert not (tmp_path / "p").exists()
