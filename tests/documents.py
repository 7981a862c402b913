"""The examples of README and docs, run in their order in one folder, as a reader runs them.

What a test needs beside is said in a comment before the block, which is not seen on the page:

    <!-- test: skip: REASON -->                     the block is not run
    <!-- test: given: NAME, NAME -->                what the reader has by then, see `GIVEN`
    <!-- test: run: --profile cpu-smoke -->         options behind every `pdiff run` of the block
    <!-- test: 300 -> 3 -->                         a text in another's place
    <!-- test: file: NAME -->                       the block is a file of this name

Several are separated by `;`. Lines that begin with `accelerate` start processes, which other tests do.
"""

import argparse
import json
import os
import re
import runpy
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "training/README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"^(?:<!-- test: (?P<marks>.*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
LANGUAGES = ("bash", "python", "yaml")


@dataclass
class Block:
    language: str
    text: str
    marks: dict


def read_blocks(name):
    blocks = []
    for match in BLOCK.finditer((ROOT / name).read_text(encoding="utf-8")):
        text, marks = match["text"], {}
        for mark in (match["marks"] or "").split("; "):
            if " -> " in mark:
                old, new = mark.split(" -> ")
                assert old in text, (name, mark)
                text = text.replace(old, new)
            elif mark:
                key, _, value = mark.partition(": ")
                marks[key] = value
        blocks.append(Block(match["language"], text, marks))
    return blocks


class Session:
    """A reader in an empty folder, which is the current one.

    `pdiff` runs the command line: exit code and what was said; `runs` are finished runs by name, to be copied.
    """

    def __init__(self, pdiff, folder, demo):
        self.pdiff, self.folder, self.demo, self.names = pdiff, folder, demo, {}

    def run(self, block):
        if "skip" in block.marks:
            return
        for name in filter(None, block.marks.get("given", "").split(", ")):
            GIVEN[name](self)
        if "file" in block.marks:
            Path(block.marks["file"]).write_text(block.text, encoding="utf-8")
        elif block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                self.command(line, block.marks)
        elif block.language == "yaml":
            from pdiff_hf.runs.recipe import load_recipe

            Path("recipe.yaml").write_text(block.text, encoding="utf-8")
            load_recipe("recipe.yaml")
        elif block.language == "python":
            exec(compile(block.text, "<example>", "exec"), self.names)

    def command(self, line, marks):
        words = [found for word in shlex.split(line, comments=True) for found in self._expanded(word)]
        if not words or words[0] == "accelerate":
            return
        if words[0] == "pdiff":
            code, said = self.pdiff(*words[1:], *shlex.split(marks.get(words[1], "")))
            assert code == 0, f"{line}\n{said}"
            assert "Traceback" not in said, said
        else:
            assert words[0] == "python", line
            self._script(words[1:])

    def _expanded(self, word):
        """As the shell does it."""
        return sorted(str(path) for path in Path().glob(word)) if "*" in word and "=" not in word else [word]

    def _script(self, words):
        own, sys.argv = sys.argv, words
        try:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, words
        finally:
            sys.argv = own


# What the reader has


def demo(session):
    """What `pdiff demo` and `pdiff run` leave behind."""
    if not Path("runs/demo").exists():
        shutil.copytree(session.demo, "runs/demo")


def parts_of_demo(session):
    demo(session)
    from pdiff_hf import ParameterDataset, PDiffPipeline
    from pdiff_hf.evaluation import ParameterEvaluator
    from pdiff_hf.tasks.evaluators import open_task

    dataset = ParameterDataset("runs/demo/dataset")
    model, layout, vectors = dataset.base_model.build(), dataset.layout, dataset.vectors()[:8]
    images, labels = open_task(dataset).arrays("test")
    pipe = PDiffPipeline.from_pretrained("runs/demo/pipeline")
    session.names |= {"model": model, "layout": layout, "vectors": vectors, "originals": vectors, "folder": Path()}
    session.names |= {"images": images, "labels": labels, "pipe": pipe}
    session.names["evaluator"] = ParameterEvaluator(model, layout, images[:100], labels[:100])


def vit(classes=3):
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=classes))


def trainer(session):
    """A model of transformers, its arguments and examples."""
    from transformers import TrainingArguments

    rows = [{"pixel_values": torch.rand(3, 8, 8), "labels": i % 3} for i in range(8)]
    options = {"max_steps": 20, "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_steps": 10}
    session.names |= {"model": vit(), "data": rows, "args": TrainingArguments("output", **options)}


def output(session):
    """What a `Trainer` saves when it trains the head of a network."""
    from transformers import Trainer

    trainer(session)
    for name, parameter in session.names["model"].named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    Trainer(session.names["model"], session.names["args"], train_dataset=session.names["data"]).train()


OWN_CLASS = """
from torch import nn


class MLP(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))
"""


def own(session):
    """Networks of a class of the reader's, and a step of its training."""
    if Path("nets.py").exists():
        return
    Path("nets.py").write_text(OWN_CLASS, encoding="utf-8")
    sys.path.insert(0, os.getcwd())
    from nets import MLP

    os.mkdir("mlps")
    for index in range(12):
        torch.manual_seed(index)
        torch.save({"model": MLP(8).state_dict(), "epoch": 9}, f"mlps/net_{index}.pth")
    session.names["train_step"] = lambda model: model[0].weight.data.add_(0.01)


def modules(session):
    """Files that can be imported, as those beside a script or a notebook."""
    sys.path.insert(0, os.getcwd())


def lightning(session):
    """What a `Trainer` of Lightning leaves behind."""
    import timm

    folder = Path("lightning_logs/version_0/checkpoints")
    folder.mkdir(parents=True)
    for epoch in range(3):
        model = timm.create_model("test_resnet", num_classes=5)
        state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        values = {"state_dict": state, "epoch": epoch, "hyper_parameters": argparse.Namespace(lr=0.1)}
        torch.save(values, folder / f"epoch={epoch}-step={100 * epoch}.ckpt")


def partial(session):
    """Checkpoints of two norms of a network, and the whole network."""
    import timm

    os.mkdir("p_data")
    state = timm.create_model("test_resnet", num_classes=5).state_dict()
    torch.save(state, "whole.pth")
    for step in range(3):
        norms = {name: torch.rand(tensor.shape) for name, tensor in state.items() if "layer4.0.bn" in name}
        torch.save({n: t for n, t in norms.items() if n.endswith((".weight", ".bias"))}, f"p_data/p_data_{step}.pt")


def nets(session):
    """Checkpoints of a ResNet-18 whose last norms were trained."""
    if Path("nets").exists():
        return
    import timm
    from safetensors.torch import save_file

    model = timm.create_model("resnet18", num_classes=10)
    for folder in ("nets", "checkpoints", "new-checkpoints"):
        os.mkdir(folder)
        for epoch in range(3):
            model.layer4[1].bn2.weight.data += 0.01
            save_file(model.state_dict(), f"{folder}/{epoch}-acc0.9.safetensors")


def images(session):
    """A folder of images by class."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for split, number in (("train", 140), ("test", 80)):
        for name in ("cat", "dog"):
            os.makedirs(f"images/{split}/{name}")
            for index in range(number):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(f"images/{split}/{name}/{index}.png")


def perceptrons(session):
    """Checkpoints of the network in `nets.py`, along one training."""
    from pdiff_hf.own_code import load_object

    mlp, examples = load_object("nets.py:mlp"), load_object("nets.py:examples")
    torch.manual_seed(0)
    model, (x, y) = mlp(), examples(0)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    os.mkdir("checkpoints")
    for step in range(240):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        if step >= 120 and step % 10 == 0:
            torch.save(model.state_dict(), f"checkpoints/step-{step}.pt")


def nets_in_memory(session):
    """A network of `nets.py`, and some that were trained on from it."""
    from pdiff_hf.own_code import load_object

    names = {name: load_object(f"nets.py:{name}") for name in ("mlp", "evaluate")}
    states = [torch.load(path) for path in sorted(Path("checkpoints").glob("*.pt"))]
    networks = [names["mlp"]() for _ in states]
    for network, state in zip(networks, states, strict=True):
        network.load_state_dict(state)
    session.names |= {"model": networks[0], "networks": networks, "evaluate": names["evaluate"]}


def adapters(session):
    """Adapters of a small BERT, for two tasks in turn."""
    from adapters.adapter_cases import lora, make_adapter, make_base

    if not Path("base").exists():
        make_base(Path(), "bert").rename("base")
    for number in range(8):
        make_adapter(Path(f"adapters/{number}"), Path("base"), lora(), number)
    Path("tasks.json").write_text(json.dumps({str(n): "cats" if n % 2 else "dogs" for n in range(8)}))


GIVEN = {
    function.__name__: function
    for function in (
        demo,
        parts_of_demo,
        trainer,
        output,
        nets,
        own,
        lightning,
        partial,
        images,
        perceptrons,
        nets_in_memory,
        modules,
        adapters,
    )
}
