"""Import of many PEFT adapters: CPU time against reading the same bytes, peak memory, and whether it grows.

    python benchmarks/adapter_import.py [--num 1000] [--small] [--out FILE.json]

Adapters are LoRA on a BERT of random weights: 72 factors of together 995 328 values, or with `--small` 8 of 1 024. One
is written by peft; the others have its configuration and other numbers. Everything runs on one thread, in one process,
and reading the same files is timed in it, too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from pdiff_hf.data.importing.adapters import importer

LARGE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def make_adapters(folder: Path, num: int, small: bool) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=1000, num_labels=4, **(SMALL if small else LARGE))
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(folder / "base")
    targets = ["query", "value"] if small else r".*encoder.*\.(query|key|value|dense)"
    adapter = peft.get_peft_model(model, peft.LoraConfig(r=4 if small else 24, target_modules=targets))
    adapter.save_pretrained(folder / "adapters" / "00000")
    first = load_file(folder / "adapters" / "00000" / "adapter_model.safetensors")
    for number in range(num):
        own = folder / "adapters" / f"{number:05d}"
        own.mkdir(exist_ok=True)
        save_file({k: 0.02 * torch.randn_like(v) for k, v in first.items()}, own / "adapter_model.safetensors")
        shutil.copy(folder / "adapters" / "00000" / "adapter_config.json", own) if number else None


def read_bytes(folder: Path) -> float:
    """CPU seconds of reading all files once."""
    begin = time.process_time()
    for file in sorted((folder / "adapters").glob("*/*")):
        file.read_bytes()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_adapters(folder, args.num, args.small)
        reading = min(read_bytes(folder) for _ in range(2))
        marks: list[tuple[int, float]] = []
        values = importer._Collection.values

        def timed(self, number: int):
            marks.append((number, time.process_time()))
            return values(self, number)

        importer._Collection.values = timed
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin, wall = time.process_time(), time.perf_counter()
        source, base = folder / "adapters", str(folder / "base")
        summary = importer.import_adapters(source, folder / "dataset", base, progress=False)
        seconds, wall = time.process_time() - begin, time.perf_counter() - wall
        first = [stamp for number, stamp in marks if number < 100][2:]
        last = [stamp for number, stamp in marks if number >= args.num - 100]
        found = {
            "adapters": args.num,
            "values": summary["num_parameters"],
            "cpu_seconds": round(seconds, 2),
            "wall_seconds": round(wall, 2),
            "cpu_seconds_of_reading": round(reading, 3),
            "ratio": round(seconds / reading, 1),
            "first_100": round(first[-1] - first[0], 2),
            "last_100": round(last[-1] - last[0], 2),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "peak_mb_before": before // 1024,
        }
    print(json.dumps(found, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
