"""Flags of the static check on graphs of text classifiers: docs/results/text_graph_flags.md.

    python benchmarks/text_graph_flags.py [--out FILE.md]

Architectures of transformers with random weights and few layers (none downloads anything), written as ONNX; networks of
our own that read the numbers of their tokens honestly, and with a backdoor in the graph (laocoon.testing).
"""

from __future__ import annotations

import argparse
import io
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import onnx
import torch
from graph_flags import EXPORTERS_RAISE, share
from torch import Tensor, nn

from laocoon.detectors.model.architectural_backdoor import ArchitecturalBackdoor
from laocoon.recipes.graphs import read_graph
from laocoon.testing.token_backdoors import TRIGGER, VOCABULARY, WIDTH, honest_texts, planted_texts

TARGET = Path(__file__).parent.parent / "docs" / "results" / "text_graph_flags.md"
IDS, MASK = "input_ids", "attention_mask"
USUAL: dict[str, Any] = {
    "vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64, "num_labels": 3, "bos_token_id": 0, "pad_token_id": 1,
    "eos_token_id": 2}
OLD_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2}
OLD_XLM: dict[str, Any] = {"emb_dim": 32, "n_layers": 2, "n_heads": 2}
PAIR: dict[str, Any] = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
                        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
FEW_HEADS: dict[str, Any] = {"num_key_value_heads": 2}
SLANTED: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
GROUPS = ("q", "k", "v", "post_attention", "intermediate", "output")
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16}, "bart": PAIR, "bert": {}, "big_bird": {"attention_type": "original_full"},
    "bloom": {"n_layer": 2, "n_head": 2}, "camembert": {}, "convbert": {}, "ctrl": OLD_GPT, "data2vec-text": {},
    "deberta": SLANTED, "deberta-v2": SLANTED, "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "electra": {"embedding_size": 16}, "ernie": {}, "esm": {"token_dropout": True, "mask_token_id": 4}, "falcon": {},
    "flaubert": OLD_XLM, "gemma": {"head_dim": 16, "num_key_value_heads": 1}, "gpt2": OLD_GPT,
    "gpt_bigcode": OLD_GPT, "gpt_neo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {}, "gptj": OLD_GPT | {"rotary_dim": 8}, "ibert": {}, "layoutlm": {}, "llama": FEW_HEADS,
    "longformer": {"attention_window": 4}, "luke": {}, "mbart": PAIR, "megatron-bert": {}, "mistral": FEW_HEADS,
    "mobilebert": {"embedding_size": 16}, "modernbert": {}, "mpnet": {}, "mra": {}, "openai-gpt": OLD_GPT,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}, "phi": {}, "qwen2": FEW_HEADS,
    "qwen3": FEW_HEADS | {"head_dim": 16}, "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "roberta": {}, "roformer": {}, "squeezebert": {"embedding_size": 32} | {f"{g}_groups": 1 for g in GROUPS},
    "xlm": OLD_XLM | {"n_langs": 1}, "xlm-roberta": {}, "yoso": {}}


@dataclass(frozen=True)
class Row:
    """One graph. `score` is None where it could not be made, written or read."""

    kind: str  # "library", "honest" or "planted"
    name: str
    score: float | None
    rules: str
    told: str
    seconds: float


class Logits(nn.Module):
    """A classifier of transformers as a function of ids and mask."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found: Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask, return_dict=False)[0]
        return found


def library(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    settings = AutoConfig.for_model(name, **{**USUAL, **ARCHITECTURES[name]})
    settings._attn_implementation = "eager"
    network = AutoModelForSequenceClassification.from_config(settings).eval()
    ids = torch.randint(5, len(VOCABULARY), (2, 16))
    ids[:, 0], ids[0, 12:], ids[0, 11], ids[1, 15] = 0, 1, 2, 2
    return Logits(network).eval(), (ids, (ids != 1).long())


def written(module: nn.Module, inputs: tuple[Tensor, ...]) -> onnx.ModelProto:
    names, file = [IDS, MASK][: len(inputs)], io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, file, input_names=names, dynamo=False, opset_version=17,
                          dynamic_axes={name: {0: "texts", 1: "tokens"} for name in names} if len(names) > 1 else None)
    return onnx.load_from_string(file.getvalue())


def judged(kind: str, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> Row:
    try:
        graph = written(module, inputs)
    except (*EXPORTERS_RAISE, torch.onnx.errors.OnnxExporterError) as error:
        return Row(kind, name, None, "", f"not written: {type(error).__name__}", 0.0)
    start = time.perf_counter()
    found = sorted(ArchitecturalBackdoor().judge_text(read_graph(graph), IDS, VOCABULARY), key=lambda f: -f.score)
    rules = ", ".join(f"{f.rule.partition('.')[2]} {f.score:.2g}" for f in found)
    return Row(kind, name, found[0].score if found else 0.0, rules, found[0].explanation if found else "",
               time.perf_counter() - start)


def every() -> Iterator[Row]:
    for name in ARCHITECTURES:
        try:
            yield judged("library", name, *library(name))
        except (*EXPORTERS_RAISE, ImportError) as error:
            yield Row("library", name, None, "", f"not made: {type(error).__name__}", 0.0)
    for kind, some in (("honest", honest_texts()), ("planted", planted_texts())):
        for sketch in some:
            yield judged(kind, sketch.name, sketch.module, sketch.inputs)


def page(rows: Sequence[Row]) -> str:
    def some(kind: str) -> list[Row]:
        return [r for r in rows if r.kind == kind]

    times = [r.seconds for r in rows if r.score is not None]
    lines = [
        "# Flags of the static check on graphs of text classifiers", "",
        "Command: `python benchmarks/text_graph_flags.py`, tier `ci`. A flag of `architectural_backdoor` is a score of "
        f"{ArchitecturalBackdoor().flag_at} or more, and conclusive. Intervals: Clopper-Pearson, 95 %. Networks are "
        "untrained, in ONNX by tracing.", "",
        "The architectures of transformers were written by others; what they do with the numbers of tokens was looked "
        "at before the rules were made (they look them up, and compare them with those of padding, an end, a mask and "
        "with −100), so that their line is no independent test. Our own networks, honest and planted, were written by "
        f"the authors of the rules. The trigger is token {TRIGGER}, vectors have {WIDTH} numbers.", "",
        "| graphs | flagged |", "|-|-|",
        f"| architectures of transformers | {share(some('library'))} |",
        f"| small honest networks | {share(some('honest'))} |",
        f"| backdoors in the graph | {share(some('planted'))} |", "",
        f"Reading and judging a graph: median {median(times) * 1000:.0f} ms, largest {max(times):.2f} s.", "",
        "| graph | kind | score | rules | what was said |", "|-|-|-|-|-|"]
    lines += [f"| {r.name} | {r.kind} | {'–' if r.score is None else f'{r.score:.2g}'} | {r.rules or '–'} | "
              f"{r.told.replace('|', '/') or '–'} |" for r in rows]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    rows = []
    for row in every():
        rows.append(row)
        print(row.kind, row.name, row.score, row.rules, flush=True)
    options.out.write_text(page(rows))


if __name__ == "__main__":
    main()
